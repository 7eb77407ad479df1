"""One training step through `torch.compile`, beside the same step in eager mode and beside BF16, as ratios.

    python benchmarks/compiled_step.py --arch unet vit --scale 500k --image_size 64 64 --batch_size 8

The step is that of training_step.py: forward, loss, backward and AdamW under BF16 autocast. Compiled means the network
as one graph, by inductor: ``torch.compile(network, fullgraph=True)``. Eager and compiled networks, BF16 and recipes,
take turns, one step each, and a ratio is the median over the rounds of the ratio within the round. Compilation comes
first and is not counted. Inductor needs a C++ compiler, and the layers their compiled kernels.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results, default_device, in_turns, refuse_plain_torch
from training_step import BASELINE, training_step

from monai_fp4.networks import channels_last

COMPILED = ", compiled"


def measure(arch: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the steps of one architecture; one entry for each recipe, BF16 first."""
    torch.manual_seed(0)
    size = (options.batch_size, 1, *options.image_size)
    images = channels_last(torch.rand(options.batch_size, 3, *options.image_size, device=options.device))
    batch = (images, (torch.rand(size, device=options.device) > 0.97).float())
    compiler = functools.partial(torch.compile, fullgraph=True)
    steps = {}
    for recipe in dict.fromkeys([BASELINE, *options.recipes]):
        steps[recipe] = training_step(arch, options.scale, recipe, batch)
        steps[recipe + COMPILED] = training_step(arch, options.scale, recipe, batch, compiler=compiler)
    seconds = in_turns(steps, options.steps, options.device)

    def ratio(name: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True)), 4)

    return [
        {
            "network": f"{arch}_{options.scale}",
            "recipe": name,
            "eager_seconds": round(statistics.median(seconds[name]), 6),
            "compiled_seconds": round(statistics.median(seconds[name + COMPILED]), 6),
            "compiled_over_eager": ratio(name + COMPILED, name),
            "eager_over_bf16": ratio(name, BASELINE),
            "compiled_over_compiled_bf16": ratio(name + COMPILED, BASELINE + COMPILED),
        }
        for name in steps
        if not name.endswith(COMPILED)
    ]


def main() -> None:
    """Measure, print the ratios and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["unet", "vit"])
    parser.add_argument("--scale", default="500k")
    parser.add_argument("--image_size", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each contestant, after one not counted")
    parser.add_argument("--recipes", nargs="+", default=["full", "sr_rht_2d"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, default=RESULTS / "compiled_step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    protocol = {name: getattr(options, name) for name in ("scale", "image_size", "batch_size", "steps", "device")}
    results = Results(options.output, options.device, protocol)
    cells: list[dict[str, Any]] = []
    for arch in options.arch:
        for cell in measure(arch, options):
            cells.append(cell)
            print(
                f"{cell['network']}, {cell['recipe']:10} compiled: {cell['compiled_over_eager']:.2f} of eager,"
                f" {cell['compiled_over_compiled_bf16']:.2f} of compiled BF16 (eager: {cell['eager_over_bf16']:.2f})",
                flush=True,
            )
        results.write({"cells": cells})
        refuse_plain_torch()


if __name__ == "__main__":
    main()
