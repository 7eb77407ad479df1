"""Train cells of the study on a GPU, several at once, without Ray: for a machine that is lent for minutes.

    python benchmarks/gpu_trainings.py --manifest pack/manifest.json --dataset_dir pack --epochs 6 \
        --cells unet_15m_bf16 unet_15m_sr_rht_2d vit_15m_bf16 vit_15m_sr_rht_2d --together 3

Each cell is its bundle, run by the command that a user would type, in its own run folder. Cells are begun in the order
given, ``--together`` at a time; results are written whenever one ends, so a machine that is taken away keeps those of
the cells that were done. The JSON holds each cell's metrics of every epoch, its seconds, and the end of the log of one
that failed. A cell in which plain torch had to do a Triton kernel's work has the right numbers in the wrong time: it
keeps them, says so (``plain_torch``), and the exit status is 1.
`monai-fp4 sweep` does more, and is the way where there is time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import ROOT, Results, default_device

from monai_fp4.data import load_datalist, load_manifest, prepare_data
from monai_fp4.quantization.kernels.triton_support import GIVEN_UP

ARCHS, SCALES, RECIPES = ("unet", "swin", "vit"), ("4m", "15m"), ("bf16", "sr_rht_2d", "full", "chain_rule")
CELLS = tuple(f"{arch}_{scale}_{recipe}" for scale in SCALES for recipe in RECIPES for arch in ARCHS)
"""In the order of their worth: the smaller scale first, BF16 and the whole recipe before the others."""
LOG_LINES = 15


def start(bundle: str, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start one cell; its log is beside its run folder."""
    arguments: dict[str, Any] = {
        "manifest": options.manifest,
        "dataset_dir": Path(options.dataset_dir).resolve(),
        "output_dir": options.runs / bundle,
        "fold": options.fold,
        "seed": options.seed,
        "epochs": options.epochs,
        "image_size": list(options.image_size),
        "device": options.device,
    }
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(ROOT / "bundles" / f"{bundle}.json")]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.together))}
    with (options.runs / f"{bundle}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def outcome(bundle: str, code: int, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """What became of a cell."""
    cell: dict[str, Any] = {"bundle": bundle, "status": "done" if code == 0 else "failed", "seconds": round(seconds, 1)}
    with suppress(OSError, ValueError):
        cell["metrics"] = json.loads((options.runs / bundle / "metrics.json").read_text(encoding="utf-8"))
    lines = (options.runs / f"{bundle}.log").read_text(errors="replace").strip().splitlines()
    given_up = [line.strip() for line in lines if GIVEN_UP in line]
    if given_up:
        cell["plain_torch"] = given_up[0]
    if code == 0 and "metrics" not in cell:
        cell |= {"status": "failed", "error": "it wrote no metrics"}
    elif code:
        cell["error"] = f"status {code}: {lines[-1] if lines else 'it said nothing'}"
    if "error" in cell:
        cell["log"] = lines[-LOG_LINES:]
    return cell


def main() -> int:
    """Train, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="BUNDLE", help="default: %(default)s")
    parser.add_argument("--together", type=int, default=3)
    parser.add_argument("--manifest", default="phantom")
    parser.add_argument("--dataset_dir", default=str(ROOT / "data" / "phantom"))
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image_size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--runs", type=Path, help="folder for the run folders (default: a temporary one)")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if Path(options.manifest).is_file():
        options.manifest = str(Path(options.manifest).resolve())
    temporary = None if options.runs else tempfile.mkdtemp(prefix="monai_fp4_runs_")
    options.runs = Path(temporary or options.runs).resolve()
    options.runs.mkdir(parents=True, exist_ok=True)
    names = ("fold", "seed", "epochs", "image_size", "device", "together")
    data = load_manifest(options.manifest)
    protocol = {name: getattr(options, name) for name in names} | {"manifest": data.name, "all": len(data.patients)}
    prepare_data(options.manifest, options.dataset_dir)  # once, not in every cell at the same time
    for part in ("train", "val"):
        patients = load_datalist(options.manifest, options.dataset_dir, options.fold, part)
        protocol[f"{part}_patients"] = len(patients)
    results = Results(options.output, options.device, protocol)
    waiting, cells = list(options.cells), []
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < options.together:
                bundle = waiting.pop(0)
                running[bundle] = start(bundle, options), time.perf_counter()
            time.sleep(0.2)
            for bundle in [name for name, (process, _) in running.items() if process.poll() is not None]:
                process, begin = running.pop(bundle)
                cells.append(outcome(bundle, process.wait(), time.perf_counter() - begin, options))
                auprc = cells[-1].get("metrics", {}).get("auprc")
                said = cells[-1].get("error") or cells[-1].get("plain_torch") or ""
                print(f"{cells[-1]['status']} {bundle}: AUPRC {auprc}, {cells[-1]['seconds']} s {said}", flush=True)
                results.write({"cells": cells})
    finally:
        for process, _ in running.values():
            process.kill()
            process.wait()
        if temporary:  # checkpoints; whatever is worth keeping is in the JSON
            shutil.rmtree(temporary, ignore_errors=True)
    return int(any(cell["status"] == "failed" or "plain_torch" in cell for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
