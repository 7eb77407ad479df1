"""Compile the Triton kernels of many training steps at once, so that no benchmark waits for them one by one.

    python benchmarks/warm_kernels.py --arch unet swin vit --scale 15m --recipes full sr_rht_2d --output warm.json

Triton compiles a kernel when it is first launched, for each shape of tile and each set of options, in one thread, and
keeps it in a folder that all processes of a user share. A training step of one recipe needs some dozens of them.
Here each architecture and recipe makes one step in a process of its own, as many at a time as there are cores.
What remains in the JSON, written anew after each, is how long it took, and the error of each that failed or for which
plain torch had to do a kernel's work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from common import Results, default_device

from monai_fp4 import RECIPES

HERE = Path(__file__).resolve().parent
MOST = 12  # processes
BYTES = 6 * 2**30  # of the GPU's memory for one process, at 15m and batch 16


def processes(device: str) -> int:
    """As many as there are cores, and as find room in the GPU's memory."""
    most = min(MOST, os.cpu_count() or 1)
    if device.startswith("cuda"):
        most = min(most, torch.cuda.get_device_properties(device).total_memory // BYTES)
    return max(1, most)


def warm(arch: str, recipe: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One step of one recipe, as `training_step` makes it."""
    command = [sys.executable, str(HERE / "training_step.py"), "--arch", arch, "--scale", options.scale]
    command += ["--recipes", recipe, "--plain", "", "--steps", "1", "--batch_size", str(options.batch_size)]
    command += ["--image_size", *map(str, options.image_size), "--device", options.device]
    command += ["--output", str(folder / f"{arch}_{recipe}.json")]
    begin = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    cell: dict[str, Any] = {"arch": arch, "recipe": recipe, "seconds": round(time.perf_counter() - begin, 1)}
    if done.returncode:
        cell["error"] = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
    print(f"{arch} {recipe}: {cell['seconds']} s {cell.get('error', '')}", flush=True)
    return cell


def main() -> int:
    """Warm up, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["unet", "swin", "vit"])
    parser.add_argument("--scale", default="15m")
    parser.add_argument("--recipes", nargs="+", default=[name for name in RECIPES if name != "bf16"])
    parser.add_argument("--image_size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--processes", type=int, help="at once (default: by cores and the GPU's memory)")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.processes = options.processes or processes(options.device)
    protocol = {name: getattr(options, name) for name in ("scale", "image_size", "batch_size", "device", "processes")}
    results = Results(options.output, options.device, protocol)
    pairs = [(arch, recipe) for recipe in reversed(options.recipes) for arch in options.arch]
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as pool:
        for done in as_completed([pool.submit(warm, *pair, Path(folder), options) for pair in pairs]):
            cells.append(done.result())
            results.write({"cells": cells})
    return int(any("error" in cell for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
