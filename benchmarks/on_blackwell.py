"""The first day on a Blackwell GPU: does Transformer Engine compute what the emulation computes, layer by layer?

    python benchmarks/on_blackwell.py --output on_blackwell.json
    python tests/te_linear_oracle.py --run benchmarks/on_blackwell.py --device cpu --quick  # the rehearsal

The path to ``te.Linear`` was written from its sources. This script runs what they leave open, and prints a verdict; the
exit status is 1 if anything is wrong, and 2 if the backend does not work here, with the reasons.

* **Layers x recipes**: output and both gradients of every kind of layer that the backend takes, as
  `monai_fp4.quantization.backends.self_test` compares them. Among them is what no test of Transformer Engine covers: an
  FP32 master weight, 2D blocks, and sizes that are multiples of 128, where its fused kernels take over (64 rows for the
  rotation). The sizes beside them (padded, multiples of 32) take the unfused kernels.
* **Habits** (`HABITS`): what its Python code promises and only its kernels can break.
* **Times**, on a GPU: a forward and backward pass by Transformer Engine, by the emulation and in BF16.

`BY_HAND` lists what one layer cannot show. The rehearsal puts TE's reference quantizer in the place of its kernels: it
shows that this script works, and nothing about a GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import default_device, machine, write_whole
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.checkpoint import checkpoint

from monai_fp4.quantization.backends import BACKENDS
from monai_fp4.quantization.backends.self_test import TESTED, Comparison, compare
from monai_fp4.quantization.recipes import RECIPES, Recipe

TE, EMULATED = BACKENDS["transformer_engine_im2col"], BACKENDS["emulated"]

BY_HAND = (
    "two GPUs under DistributedDataParallel: ranks must round differently, and gradients must average",
    "a whole training of sr_rht_2d beside the emulation's curve: benchmarks/gpu_trainings.py with either backend",
    "torch.compile and CUDA graphs: a captured cuBLAS workspace must outlive the capture",
    "peak memory of im2col for the networks' 3x3 and 3x3x3 convolutions",
    "a resumed run beside one that went through: bit for bit without stochastic rounding",
)
"""What must be tried by hand, because it takes more than a layer."""


@dataclass(frozen=True)
class Layer:
    """A layer to compare: how to make it, the shape of its input, the dtype of its weight."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    def data(self, device: str) -> tuple[nn.Module, Tensor, Tensor]:
        """Make the layer, an input with outliers, and a gradient of the output, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            plain, x = self.make(), torch.randn(self.shape)
            x.view(-1)[::37] *= 20
            dy = 1e-3 * torch.randn_like(plain(x))
        return plain.to(device, self.dtype), x.to(device), dy.to(device, torch.bfloat16)


LAYERS = {
    "linear, multiples of 128, FP32 weight": Layer(lambda: nn.Linear(256, 384, bias=False), (512, 256)),
    "linear, multiples of 128, BF16 weight": Layer(lambda: nn.Linear(256, 384), (512, 256), torch.bfloat16),
    "linear, 64 rows": Layer(lambda: nn.Linear(128, 128), (64, 128)),
    "linear, multiples of 32": Layer(lambda: nn.Linear(96, 160), (3, 32, 96)),
    "linear, padded": Layer(lambda: nn.Linear(40, 24), (2, 21, 40)),
    "convolution 1x1": Layer(lambda: nn.Conv2d(64, 128, 1), (2, 64, 16, 16)),
    "patch embedding 2D": Layer(lambda: nn.Conv2d(3, 96, 4, stride=4), (2, 3, 32, 32)),
    "patch embedding 3D": Layer(lambda: nn.Conv3d(4, 48, 2, stride=2), (1, 4, 8, 8, 8)),
    "transposed convolution": Layer(lambda: nn.ConvTranspose2d(64, 32, 2, stride=2), (2, 64, 8, 8)),
    "convolution 3x3, im2col": Layer(lambda: nn.Conv2d(32, 64, 3, padding=1), (2, 32, 12, 12)),
    "convolution 3x3x3, im2col": Layer(lambda: nn.Conv3d(16, 32, 3, padding=1), (1, 16, 6, 6, 6)),
}
QUICK = ("linear, multiples of 128, FP32 weight", "linear, padded", "convolution 3x3, im2col")


def gradient(layer: nn.Module, x: Tensor, dy: Tensor, run: Callable[..., Any] | None = None) -> Tensor:
    """The gradient of the input, of one pass under BF16 autocast."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = run(layer, x) if run is not None else layer(x)
    y.backward(dy)
    assert x.grad is not None
    return x.grad


def generators(device: str) -> list[Tensor]:
    """The states of the generators that a caller may use."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.startswith("cuda") else [])]


def draws_nothing(device: str) -> str:
    """Building and running a layer without stochastic rounding leaves the caller's generators alone."""
    plain, x, dy = LAYERS[QUICK[0]].data(device)
    before = generators(device)
    gradient(TE.build(plain, RECIPES["rht_2d"]), x, dy)
    same = all(torch.equal(a, b) for a, b in zip(before, generators(device), strict=True))
    return "" if same else "a generator has moved"


def repeats(device: str) -> str:
    """Under one seed stochastic rounding gives the same bits, and under the next seed others."""
    plain, x, dy = LAYERS[QUICK[0]].data(device)
    layer, found = TE.build(plain, RECIPES["sr"]), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(gradient(layer, x, dy))
    if not torch.equal(found[0], found[1]):
        return "one seed gave two gradients"
    return "two seeds gave one gradient" if torch.equal(found[0], found[2]) else ""


def copies(device: str) -> str:
    """A deep copy computes the same bits."""
    plain, x, dy = LAYERS[QUICK[0]].data(device)
    layer = TE.build(plain, RECIPES["rht_2d"])
    same = torch.equal(gradient(layer, x, dy), gradient(copy.deepcopy(layer), x, dy))
    return "" if same else "the copy has another gradient"


def recomputes(device: str) -> str:
    """Activation checkpointing gives the same bits."""
    plain, x, dy = LAYERS[QUICK[0]].data(device)
    layer = TE.build(plain, RECIPES["rht_2d"])
    again = gradient(layer, x, dy, lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    return "" if torch.equal(gradient(layer, x, dy), again) else "the checkpointed gradient differs"


def shares(device: str) -> str:
    """Threads that share a layer, as DataParallel's do, compute what one computes."""
    plain, x, dy = LAYERS[QUICK[0]].data(device)
    layer = TE.build(plain, RECIPES["rht_2d"])
    expected, found = gradient(layer, x, dy), []
    threads = [threading.Thread(target=lambda: found.append(gradient(layer, x, dy))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same = len(found) == len(threads) and all(torch.equal(each, expected) for each in found)
    return "" if same else f"{len(threads)} threads gave {len(found)} gradients, not all of them the right one"


def moves(device: str) -> str:
    """A layer on another GPU than the current one, and one moved there, compute the same bits."""
    if not device.startswith("cuda") or torch.cuda.device_count() < 2:
        return "not run: it needs two GPUs"
    plain, x, dy = LAYERS[QUICK[0]].data("cuda:0")
    layer = TE.build(plain, RECIPES["rht_2d"])
    expected = gradient(layer, x, dy)
    moved = gradient(layer.to("cuda:1"), x.to("cuda:1"), dy.to("cuda:1"))  # while cuda:0 is the current device
    return "" if torch.equal(expected, moved.to(expected.device)) else "the other GPU has another gradient"


HABITS = (draws_nothing, repeats, copies, recomputes, shares, moves)


def compare_layers(device: str, names: Sequence[str], recipes: Sequence[Recipe]) -> dict[str, list[Comparison]]:
    """Compare layers under recipes; every recipe's comparisons for each layer."""
    found: dict[str, list[Comparison]] = {}
    for name in names:
        plain, x, dy = LAYERS[name].data(device)
        found[name] = [
            each
            for recipe in recipes
            for each in compare(TE.build(plain, recipe), EMULATED.build(plain, recipe), recipe, x, dy)
        ]
    return found


def milliseconds(device: str, recipe: Recipe) -> dict[str, float]:
    """The time of a forward and backward pass of a large linear layer, in milliseconds, by each backend."""
    plain = nn.Linear(4096, 4096, bias=False, device=device)
    x, dy = (torch.randn(8192, 4096, device=device, dtype=torch.bfloat16) for _ in range(2))
    layers = {"transformer_engine": TE.build(plain, recipe), "emulated": EMULATED.build(plain, recipe), "bf16": plain}
    return {
        name: 1e3 * Timer("f(layer, x, dy)", globals={"f": gradient, "layer": layer, "x": x, "dy": dy}).timeit(20).mean
        for name, layer in layers.items()
    }


def print_table(console: Console, found: dict[str, list[Comparison]], recipes: Sequence[Recipe]) -> None:
    """One row for each layer, one column for each recipe: "ok", or the tensors that are wrong."""
    table = Table("", *(recipe.name for recipe in recipes), box=None)
    for name, comparisons in found.items():
        wrong = {
            recipe.name: ", ".join(
                each.tensor for each in comparisons if each.recipe == recipe.name and not each.passed
            )
            for recipe in recipes
        }
        table.add_row(name, *(wrong[recipe.name] or "ok" for recipe in recipes))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default=default_device(), help="where to compute; cpu only for the rehearsal")
    parser.add_argument("--output", type=Path, help="a JSON file for every figure")
    parser.add_argument("--quick", action="store_true", help="three layers, and four recipes")
    options = parser.parse_args(arguments)
    console = Console(width=max(160, Console().width))
    on_gpu = options.device.startswith("cuda")
    if on_gpu and (reasons := TE.check(torch.device(options.device)).reasons):
        console.print("verdict: Transformer Engine does not work here:", *reasons, sep="\n- ", markup=False)
        return 2
    recipes = [recipe for recipe in TESTED if not options.quick or recipe.name in ("full", "2d", "sr_rht_2d", "rht")]
    found = compare_layers(options.device, QUICK if options.quick else tuple(LAYERS), recipes)
    print_table(console, found, recipes)
    habits = {habit.__name__: habit(options.device) for habit in HABITS}
    for habit in HABITS:
        console.print(f"{habits[habit.__name__] or 'ok'}: {habit.__doc__}", markup=False)
    times = {name: milliseconds(options.device, RECIPES[name]) for name in ("full", "sr_rht_2d") if on_gpu}
    for name, each in times.items():
        console.print(f"{name}: " + ", ".join(f"{backend} {figure:.2f} ms" for backend, figure in each.items()))
    wrong = [f"{name}, {each}" for name, every in found.items() for each in every if not each.passed]
    wrong += [f"{name}: {said}" for name, said in habits.items() if said and not said.startswith("not run")]
    count = sum(map(len, found.values()))
    console.print("To try by hand:", *BY_HAND, sep="\n- ", markup=False)
    where = "" if on_gpu else " (a rehearsal, which says nothing about a GPU)"
    if wrong:
        console.print(f"verdict: {len(wrong)} of {count + len(HABITS)} checks are wrong{where}:", *wrong, sep="\n- ")
    else:
        console.print(f"verdict: Transformer Engine computes the emulation's numbers, {count} comparisons{where}")
    if options.output is not None:
        comparisons = {name: [asdict(each) for each in every] for name, every in found.items()}
        figures = {"machine": machine(options.device), "wrong": wrong, "habits": habits, "milliseconds": times}
        write_whole(options.output, json.dumps(figures | {"comparisons": comparisons}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
