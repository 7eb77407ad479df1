"""The cost of one training step under each recipe, as a ratio to BF16 on the same machine.

    python benchmarks/training_step.py --arch unet swin vit --scale 15m --image_size 256 256

A step is forward, loss, backward and AdamW, under BF16 autocast, on random images, in the layout that the bundles use.
Recipes take turns, one step each, so that whatever else the machine does falls on all of them, and the ratio is the
median over the rounds of the ratio to BF16 within the round. On a CPU with one thread a step's time is the processor
time of this process, otherwise the clock's.

On a CPU the recipe named by ``--plain`` is also measured without the compiled kernels: what a machine without a C++
compiler does, and what the kernels gain. On a GPU a Triton kernel that fails leaves its work to plain torch: that ends
the script with an error.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results, default_device, in_turns, machine, refuse_plain_torch
from torch import nn

from monai_fp4 import RECIPES, build_network, convert
from monai_fp4.engines import fuse_adam
from monai_fp4.losses import TverskyBCELoss
from monai_fp4.networks import channels_last, to_channels_last
from monai_fp4.quantization.kernels.dispatch import plain_torch

PLAIN = ", plain torch"
BASELINE = "bf16"


def training_step(
    arch: str,
    scale: str,
    recipe: str,
    batch: tuple[torch.Tensor, torch.Tensor],
    kernels: bool = True,
    compiler: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> Callable[[], None]:
    """Build a network under a recipe; the result runs one step on ``batch``, of what the compiler makes of it."""
    images, labels = batch
    torch.manual_seed(0)
    network = build_network(arch, scale, in_channels=images.shape[1], image_size=tuple(images.shape[2:]))
    network, _ = convert(network.to(images.device), recipe)
    network = compiler(to_channels_last(network, images.shape[2:]).train())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    fuse_adam(optimizer)  # as a bundle's step does; BF16 would look slower without it
    loss_function = TverskyBCELoss()

    def step() -> None:
        with nullcontext() if kernels else plain_torch():
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(images.device.type, dtype=torch.bfloat16):
                logits = network(images)
            loss_function(logits.float(), labels).backward()
            optimizer.step()

    return step


def cell(arch: str, scale: str, name: str, times: list[float], baseline: list[float]) -> dict[str, Any]:
    """The figures of one contestant beside BF16."""
    return {
        "arch": arch,
        "bundle": f"{arch}_{scale}_{name.removesuffix(PLAIN)}",
        "recipe": name,
        "seconds": [round(value, 6) for value in times],
        "median": round(statistics.median(times), 6),
        "ratio": round(statistics.median(a / b for a, b in zip(times, baseline, strict=True)), 4),
        "ratio_of_fastest": round(min(times) / min(baseline), 4),
    }


def measure(arch: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time a step of every recipe for one architecture; one entry a recipe, BF16 first."""
    torch.manual_seed(0)
    size = (options.batch_size, 1, *options.image_size)
    images = torch.rand(options.batch_size, 3, *options.image_size, device=options.device)
    batch = (channels_last(images), (torch.rand(size, device=options.device) > 0.97).float())
    names = list(dict.fromkeys([BASELINE, *options.recipes]))
    steps = {name: training_step(arch, options.scale, name, batch) for name in names}
    if options.plain and images.is_cpu:
        steps[options.plain + PLAIN] = training_step(arch, options.scale, options.plain, batch, kernels=False)
    seconds = in_turns(steps, options.steps, options.device)
    return [cell(arch, options.scale, name, times, seconds[BASELINE]) for name, times in seconds.items()]


def main() -> None:
    """Measure, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["unet", "swin", "vit"])
    parser.add_argument("--scale", default="15m")
    parser.add_argument("--image_size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each recipe, after one not counted")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="bf16 is always measured beside them")
    parser.add_argument(
        "--plain", default="sr_rht_2d", help="recipe to measure in plain torch too, on a CPU; empty for none"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, default=RESULTS / "training_step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    protocol = {name: getattr(options, name) for name in ("scale", "image_size", "batch_size", "steps", "device")}
    results = Results(options.output, options.device, protocol)
    size = " x ".join(map(str, options.image_size))
    name = machine(options.device)["name"]
    print(f"{options.scale}, batch {options.batch_size}, {size}, {name}, threads: {options.threads}")
    cells: list[dict[str, Any]] = []
    for arch in options.arch:
        for new in measure(arch, options):
            cells.append(new)
            name = f"{arch}_{options.scale}_{new['recipe']}"
            print(f"{name:34} {new['median']:.3f} s a step, {new['ratio']:.2f} of BF16", flush=True)
        results.write({"cells": cells})
        refuse_plain_torch()


if __name__ == "__main__":
    main()
