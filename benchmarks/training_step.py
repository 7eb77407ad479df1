"""The cost of one training step under each recipe, as a ratio to BF16 on the same machine.

    python benchmarks/training_step.py --arch unet swin vit --scale 500k --image_size 128 128

Recipes take turns, one step each, so that whatever else the machine does falls on all of them; the ratio is that of the
medians. A step is forward, loss, backward and AdamW, under BF16 autocast, on random images.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from monai_fp4 import RECIPES, build_network, convert
from monai_fp4.losses import TverskyBCELoss

RESULTS = Path(__file__).parent / "results" / "training_step.json"


def training_step(arch: str, scale: str, recipe: str, batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], float]:
    """Build a network under a recipe; the result runs one step on `batch` and returns its duration in seconds."""
    images, labels = batch
    torch.manual_seed(0)
    network = build_network(arch, scale, in_channels=images.shape[1], image_size=tuple(images.shape[2:]))
    network, _ = convert(network.to(images.device), recipe)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    loss_function = TverskyBCELoss()

    def step() -> float:
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            logits = network(images)
        loss_function(logits.float(), labels).backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return step


def measure(arch: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Time a step of every recipe for one architecture; one entry a recipe, BF16 first."""
    torch.manual_seed(0)
    size = (options.batch_size, 1, *options.image_size)
    images = torch.rand(options.batch_size, 3, *options.image_size, device=options.device)
    batch = (
        images.contiguous(memory_format=torch.channels_last),
        (torch.rand(size, device=options.device) > 0.97).float(),
    )
    names = list(dict.fromkeys(["bf16", *options.recipes]))
    steps = {name: training_step(arch, options.scale, name, batch) for name in names}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.steps):
        for name, step in steps.items():
            seconds[name].append(step())
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "bundle": f"{arch}_{options.scale}_{name}",
            "recipe": name,
            "seconds": seconds[name],
            "median": median[name],
            "ratio": median[name] / median["bf16"],
        }
        for name in names
    ]


def main() -> None:
    """Measure, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["unet", "swin", "vit"])
    parser.add_argument("--scale", default="500k")
    parser.add_argument("--image_size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps of each recipe, after one that is not counted"
    )
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="bf16 is always measured beside them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the figures go, as JSON")
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu_name()
    threads = torch.get_num_threads()
    print(f"{options.scale}, batch {options.batch_size}, {options.image_size}, {where}, {threads} threads")
    cells = []
    for arch in options.arch:
        for cell in measure(arch, options):
            cells.append(cell)
            print(f"{cell['bundle']:26} {cell['median']:.3f} s a step, {cell['ratio']:.2f} of BF16", flush=True)
    figures = {
        "protocol": {name: getattr(options, name) for name in ("scale", "image_size", "batch_size", "steps", "device")},
        "machine": {"name": where, "threads": threads, "torch": torch.__version__},
        "cells": cells,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def cpu_name() -> str:
    """The processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
