"""Run all benchmarks one after another, print the ratios and draw the picture: what ``make bench`` does.

    python benchmarks/run.py                          # everything, about a quarter of an hour on two quiet cores
    python benchmarks/run.py --parts quantize auprc   # some parts; the others keep their figures
    python benchmarks/run.py --quick                  # a smoke test on small inputs, in a temporary folder

Each part is a script of its own and runs in its own process, so one that fails or hangs is reported and the others
still run; the exit status then is 1. A part measures its peers in that process too. Results of a GPU go to
``benchmarks/results/cuda``, apart from those of a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import LOAD_BEFORE, RESULTS, ROOT, default_device, load_average, machine, warn_of, write_whole
from ratios import Ratio, collect

HERE = Path(__file__).resolve().parent
TIMEOUT = 1200.0  # seconds of one part


@dataclass(frozen=True)
class Part:
    """One script.

    Attributes:
        quick: its options in a smoke test.
        full: its options otherwise, where they are not the script's own.
        needs_gpu: it measures nothing without one.
        takes_device: it has an option ``--device``.
    """

    quick: tuple[str, ...]
    full: tuple[str, ...] = ()
    needs_gpu: bool = False
    takes_device: bool = True


_TINY = ("--image_size", "64", "64", "--steps", "1")
PARTS = {
    "quantize": Part(
        ("--rows", "64", "--columns", "64", "--repeats", "2", "--only_ours"), takes_device=False
    ),
    "training_step": Part(("--arch", "unet", "--scale", "500k", "--recipes", "sr_rht_2d", *_TINY)),
    "compiled_step": Part(("--arch", "unet", "--recipes", "sr_rht_2d", "--batch_size", "1", *_TINY)),
    "paper_epoch": Part(("--image_size", "64", "--batch_size", "2", "--batches", "1", "--rounds", "1")),
    "networks": Part(("--arch", "unet", "--scales", "500k", *_TINY)),
    "auprc": Part(("--pixels", "100000", "--repeats", "1", "--stream", "400000", "--piece", "100000")),
    "input": Part(("--arch", "unet", "--patients", "2", "--image_size", "64", "64", "--steps", "1", "--repeats", "1")),
    "reading": Part(("--patients", "1", "--image_size", "64", "64", "--repeats", "1"), takes_device=False),
    "evaluation": Part(("--archs", "unet", "--pictures", "3", "--rounds", "1"), takes_device=False),
    "predict": Part(("--arch", "unet", "--scale", "500k", "--shape", "40", "40", "6", "--repeats", "1")),
    "cuda_kernels": Part(("--small",), needs_gpu=True, takes_device=False),
}  # fmt: skip


def command(name: str, options: argparse.Namespace, output: Path) -> list[str]:
    """The command of one part."""
    part = PARTS[name]
    arguments = list(part.quick if options.quick else part.full)
    if part.takes_device:
        arguments += ["--device", options.device]
    if name in ("input", "reading"):
        folder = options.dataset_dir or ROOT / "data" / "phantom"
        arguments += ["--manifest", options.manifest, "--dataset_dir", str(folder)]
    return [sys.executable, str(HERE / f"{name}.py"), *arguments, "--output", str(output)]


def run_part(name: str, options: argparse.Namespace) -> str:
    """Run one part; the result says what happened to it, and is empty if all went well."""
    if PARTS[name].needs_gpu and not options.device.startswith("cuda"):
        print(f"\n== {name}: not measured, there is no CUDA GPU here", flush=True)
        return ""
    print(f"\n== {name}", flush=True)
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="monai_fp4_bench_") as folder:
        output = Path(folder) / f"{name}.json"  # figures of a part that fails half-way never replace whole ones
        try:
            done = subprocess.run(command(name, options, output), env=environment, check=False, timeout=options.timeout)
        except subprocess.TimeoutExpired:
            return f"{name}: stopped after {options.timeout:.0f} s"
        print(f"== {name}: {time.perf_counter() - begin:.0f} s", flush=True)
        if done.returncode:
            return f"{name}: exit status {done.returncode}"
        if not output.exists():
            return f"{name}: wrote no figures"
        text = output.read_text(encoding="utf-8")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"{name}: its figures are no JSON: {error}"
    write_whole(options.output / f"{name}.json", text)
    return ""


def report(ratios: Sequence[Ratio], quick: bool) -> None:
    """Print the ratios, and unless they are those of a smoke test what was promised about them."""
    print(f"\n{'Measured':58} {'ratio':>9}  goal")
    for ratio in ratios:
        print(f"{ratio.name:58} {ratio.value:9.2f}  {'' if quick else ratio.goal_text()}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=[], help=f"which, of {', '.join(PARTS)}; by default all")
    parser.add_argument("--quick", action="store_true", help="small inputs, no figures worth keeping")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--manifest", default="phantom", help="the data of the parts `input` and `reading`")
    parser.add_argument("--dataset_dir", type=Path, help="where they are; the phantom is written if it is not there")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one part")
    parser.add_argument("--output", type=Path, help="folder for JSON and picture; by default benchmarks/results")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown parts {', '.join(unknown)}: known are {', '.join(PARTS)}")
    options.parts = options.parts or list(PARTS)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns the exit status."""
    options = parse(arguments)
    keep = options.output is None and not options.quick
    if options.output is None:
        gpu = "cuda" if options.device.startswith("cuda") else ""
        options.output = Path(tempfile.mkdtemp(prefix="monai_fp4_bench_")) if options.quick else RESULTS / gpu
    this = machine(options.device)
    print(f"{this['name']}, {this['cores']} cores, torch {this['torch']}, commit {this['commit']}, to {options.output}")
    load = load_average()
    if load is not None:
        os.environ[LOAD_BEFORE] = str(load)
        if not options.quick:
            warn_of(load)
    failures = [failure for name in options.parts if (failure := run_part(name, options))]
    try:
        report(collect(options.output), options.quick)
        # Matplotlib only now: it is not needed for the figures themselves.
        from picture import draw

        gpu = options.device.startswith("cuda")
        pictures = ROOT / "docs" / "assets" if keep and not gpu else options.output
        for path in draw(options.output, pictures):
            print(f"drawn: {path}")
    except Exception as error:  # the figures are written, and the next run or picture.py can draw them
        failures.append(f"summary and picture: {type(error).__name__}: {error}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
