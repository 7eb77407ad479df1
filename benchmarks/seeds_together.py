"""Do several seeds of one cell train faster together on one GPU than one after another?

    python benchmarks/seeds_together.py                       # one, two and four processes of unet_500k on the GPU
    python benchmarks/seeds_together.py --device cpu --counts 2 --steps 2     # that it runs; no figure worth keeping

A small network leaves most of a large GPU idle, so `monai-fp4 sweep` gives a cell of 500k a quarter of one. Whether
that gains anything is measured here: n processes, as n cells would be, each with its own network, make the same number
of training steps of a bundle at the same time, and one process makes them alone. Processes load and warm up first and
then wait for each other, so only steps are timed. With ``seconds(n)`` for the slowest of n, n seeds one after another
take ``n * seconds(1)``, and ``gain`` is that over ``seconds(n)``: 1 where nothing is gained, n where the GPU had room
for all. Without NVIDIA's MPS the kernels of two processes never run at the same moment: what can be gained is the time
in which one process leaves the GPU idle.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results, default_device, refuse_plain_torch

from monai_fp4 import convert
from monai_fp4.engines import build_and_seed


def worker(options: argparse.Namespace) -> None:
    """One process: warm up, say so, wait for a line, make the steps, say how long they took."""
    from networks import bundle_step

    torch.set_num_threads(1)
    size = tuple(options.image_size)
    torch.manual_seed(options.worker)
    images = torch.rand(options.batch_size, 3, *size, device=options.device)
    labels = (torch.rand(options.batch_size, 1, *size, device=options.device) > 0.97).float()
    network = build_and_seed(
        options.arch, options.scale, seed=options.worker, in_channels=3, out_channels=1, image_size=size
    )
    network, _ = convert(network.to(options.device), options.recipe)
    step = bundle_step(network, images, labels)
    finished = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    for _ in range(min(3, options.steps)):
        step()
    finished()
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    for _ in range(options.steps):
        step()
    finished()
    refuse_plain_torch()
    memory = torch.cuda.max_memory_reserved() if options.device.startswith("cuda") else None
    print(json.dumps({"seconds": time.perf_counter() - begin, "memory": memory}), flush=True)


def together(count: int, recipe: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each of so many processes says, all of them at work at the same time."""
    own = ["--arch", options.arch, "--scale", options.scale, "--recipe", recipe, "--device", options.device]
    own += ["--steps", str(options.steps), "--batch_size", str(options.batch_size)]
    own += ["--image_size", *map(str, options.image_size)]
    processes: list[subprocess.Popen[str]] = []
    try:
        for seed in range(count):
            command = [sys.executable, __file__, "--worker", str(seed), *own]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise SystemExit(f"a process of {count} ended before it began, with status {process.wait()}")
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit(f"of {count} processes some failed, with status {[each.returncode for each in processes]}")
        return [json.loads(each) for each in said]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="unet")
    parser.add_argument("--scale", default="500k")
    parser.add_argument("--recipes", nargs="+", default=["bf16", "sr_rht_2d"])
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4], help="processes at once, beside one")
    parser.add_argument("--image_size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, default=RESULTS / "seeds_together.json")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--recipe", default="bf16", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options)
        return
    names = ("arch", "scale", "image_size", "batch_size", "steps", "device")
    results = Results(options.output, options.device, {name: getattr(options, name) for name in names})
    cells: list[dict[str, Any]] = []
    for recipe in options.recipes:
        alone = 0.0
        for count in [1, *options.counts]:
            said = together(count, recipe, options)
            seconds = max(each["seconds"] for each in said)
            alone = alone or seconds
            cells.append(
                {
                    "recipe": recipe,
                    "processes": count,
                    "seconds": round(seconds, 3),
                    "memory_bytes_each": None if said[0]["memory"] is None else max(each["memory"] for each in said),
                    "gain": round(count * alone / seconds, 3),
                }
            )
            print(
                f"{options.arch}_{options.scale}_{recipe}: {count} together {seconds:.1f} s, one after another"
                f" {count * alone:.1f} s, gain {cells[-1]['gain']:.2f}",
                flush=True,
            )
            results.write({"cells": cells})


if __name__ == "__main__":
    main()
