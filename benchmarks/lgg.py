"""Train bundles on the LGG data as a user would, and keep what came out: the figures of docs/results.md.

    python benchmarks/lgg.py --dataset_dir /data/kaggle_3m --name unet_500k_five_folds \
        --cells unet_500k_bf16 --folds 0,1,2,3,4 --epochs 12 --image_size 128 128

Each cell is one `python -m monai.bundle run` in its own process and folder. A cell whose run folder is finished is read
and not run again, and one that was cut off resumes. The file `benchmarks/results/lgg_NAME.json` is written after every
cell.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KEPT = (
    "auprc",
    "auprc_per_patient",
    "dice",
    "recall",
    "precision",
    "dice_per_patient",
    "recall_per_patient",
    "threshold",
)


def run_cell(bundle: str, fold: int, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one bundle on one fold and read its metrics; a run that fails is recorded with its last line."""
    size = "x".join(map(str, arguments.image_size))
    folder = Path(arguments.runs_dir) / f"{bundle}_fold{fold}_seed{seed}_{size}_{arguments.epochs}epochs"
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(ROOT / "bundles" / f"{bundle}.json")]
    options = {
        "manifest": "lgg",
        "dataset_dir": arguments.dataset_dir,
        "output_dir": str(folder),
        "fold": fold,
        "seed": seed,
        "epochs": arguments.epochs,
        "image_size": json.dumps(arguments.image_size),
    }
    if arguments.batch_size:
        options["batch_size"] = arguments.batch_size
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        return {"bundle": bundle, "fold": fold, "seed": seed, "failed": done.stderr.strip().splitlines()[-1]}
    metrics = json.loads((folder / "metrics.json").read_text())
    training = sum(entry["seconds"] for entry in metrics["history"])
    return {
        "bundle": bundle,
        "fold": fold,
        "seed": seed,
        "best_epoch": metrics["best_epoch"],
        "last_epoch_auprc": metrics["history"][-1].get("auprc"),
        **{name: metrics.get(name) for name in KEPT},
        "training_seconds": round(training, 1),
        "wall_seconds": round(seconds, 1) if seconds > training else None,
        "auprc_by_epoch": [entry.get("auprc") for entry in metrics["history"]],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    return {"cpu": name, "cores": os.cpu_count(), "code": commit.stdout.strip(), "python": platform.python_version()}


def main() -> None:
    """Run every cell on every fold and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True, help="folder of the published TIFF files (kaggle_3m)")
    parser.add_argument("--name", required=True, help="the results go to benchmarks/results/lgg_NAME.json")
    parser.add_argument("--cells", required=True, help="bundle names, separated by commas")
    parser.add_argument("--folds", default="0")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=None, help="default: the bundle's own")
    parser.add_argument("--image_size", type=int, nargs=2, default=[128, 128])
    parser.add_argument("--runs_dir", default=str(ROOT / "runs" / "lgg"))
    arguments = parser.parse_args()
    path = RESULTS / f"lgg_{arguments.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    protocol = {"epochs": arguments.epochs, "image_size": arguments.image_size, "batch_size": arguments.batch_size}
    cells: list[dict[str, Any]] = []
    for bundle in arguments.cells.split(","):
        for fold in map(int, arguments.folds.split(",")):
            for seed in map(int, arguments.seeds.split(",")):
                cells.append(run_cell(bundle, fold, seed, arguments))
                print(json.dumps(cells[-1]), flush=True)
                content = {"protocol": protocol, "machine": machine(), "cells": cells}
                path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
