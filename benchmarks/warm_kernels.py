"""Compile the Triton kernels of many training steps at once, so that no benchmark waits for them one by one.

    python benchmarks/warm_kernels.py --arch unet swin vit --scale 15m --recipes full sr_rht_2d --output warm.json

Triton compiles a kernel when it is first launched, for each shape of tile and each set of options, in one thread, and
keeps it in a folder that all processes of a user share. A training step of one recipe needs some dozens of them.
Here each architecture and recipe makes one step in a process of its own, as many at a time as there are cores.
What remains in the JSON is how long each took, and the error of each that failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import Results, default_device

from monai_fp4 import RECIPES

HERE = Path(__file__).resolve().parent


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
    parser.add_argument("--processes", type=int, default=min(12, os.cpu_count() or 1), help="at once")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    protocol = {name: getattr(options, name) for name in ("scale", "image_size", "batch_size", "device", "processes")}
    results = Results(options.output, options.device, protocol)
    pairs = [(arch, recipe) for recipe in reversed(options.recipes) for arch in options.arch]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as pool:
        cells = list(pool.map(lambda pair: warm(*pair, Path(folder), options), pairs))
    results.write({"cells": cells})
    return int(any("error" in cell for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
