"""The cost of one training step under each recipe, as a ratio to BF16 on the same machine.

    python benchmarks/training_step.py --arch unet --scale 500k --image_size 128 128 --batch_size 16

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="unet")
    parser.add_argument("--scale", default="500k")
    parser.add_argument("--image_size", type=int, nargs=2, default=(128, 128))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps of each recipe, after one that is not counted"
    )
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="bf16 is always measured beside them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()

    torch.manual_seed(0)
    size = (options.batch_size, 1, *options.image_size)
    images = torch.rand(options.batch_size, 3, *options.image_size, device=options.device)
    batch = (
        images.contiguous(memory_format=torch.channels_last),
        (torch.rand(size, device=options.device) > 0.97).float(),
    )
    names = list(dict.fromkeys(["bf16", *options.recipes]))
    steps = {name: training_step(options.arch, options.scale, name, batch) for name in names}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.steps):
        for name, step in steps.items():
            seconds[name].append(step())

    median = {name: statistics.median(times) for name, times in seconds.items()}
    where = (
        torch.cuda.get_device_name()
        if options.device.startswith("cuda")
        else platform.processor() or platform.machine()
    )
    print(f"{options.arch}_{options.scale}, batch {tuple(images.shape)}, {where}, {torch.get_num_threads()} threads")
    print("| Recipe | Seconds a step | Ratio to BF16 |\n| --- | --- | --- |")
    for name in names:
        print(f"| `{name}` | {median[name]:.3f} | {median[name] / median['bf16']:.2f} |")
    if options.output:
        figures = {
            "options": vars(options) | {"output": None},
            "machine": where,
            "torch": torch.__version__,
            "seconds": seconds,
        }
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
