"""Does a backend compute on this device what the emulation computes? Asked of the device itself, by one linear layer.

Transformer Engine's own check says yes from compute capability 10.0 on, and which of its kernels start on consumer
Blackwell (12.x), and are right there, changes from version to version. A table of versions would be wrong the day
after. So a layer is computed by both, forward and backward, under every technique:

* **without stochastic rounding** both have the same FP4 operands, and results differ by the order of sums and one
  rounding to BF16, 2^-9 of a result; a technique that is left out or done otherwise moves them by a tenth;
* **with it** no two gradients are alike, but their means are, up to what noise explains, and so is the noise's size.

:func:`self_test` does this in a process of its own, once for each device: a kernel that fails may leave CUDA unusable
in the process that started it. ``python -m monai_fp4.quantization.backends.self_test cuda:0`` prints every comparison
as JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_fp4.quantization.backends.emulated import EmulatedBackend
from monai_fp4.quantization.backends.te_linear import TELinear
from monai_fp4.quantization.backends.te_product import TEProduct
from monai_fp4.quantization.recipes import RECIPES, FourOverSix, Recipe

__all__ = ["TESTED", "Comparison", "Verdict", "compare", "compare_linear", "self_test", "verdict"]

TESTED = (
    *(recipe for recipe in RECIPES.values() if recipe.quantizes),
    Recipe(name="four_over_six", four_over_six=FourOverSix.ALL),
)
"""The recipes that the test runs: every technique alone and with the others."""

ROUNDING = 2**-7
"""Distance that orders of summation and roundings to BF16 may make, as a share of the result's norm."""
EXCESS = 1.5
"""How often the noise that is expected of them the means of stochastic results may be apart, squared."""
NOISE = 0.3
"""How far apart the sizes of both noises may be, in powers of two."""
REPEATS = 16

_TIMEOUT = 600.0  # seconds; a first start of CUDA compiles kernels


@dataclass(frozen=True)
class Comparison:
    """One figure of one tensor, and what it may be.

    Attributes:
        recipe: name of the recipe.
        tensor: "y", "dx" or "dw", "mean dx", "noise dx" and so on, or what went wrong.
        distance: from the emulation; NaN where there is none.
        allowed: what it may be at most.
    """

    recipe: str
    tensor: str
    distance: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is allowed; NaN is not."""
        return self.distance <= self.allowed

    def __str__(self) -> str:
        return f"{self.recipe}: {self.tensor} {self.distance:.2g} (at most {self.allowed:.2g})"


@dataclass(frozen=True)
class Verdict:
    """What the test says: whether the backend may be used, and a sentence."""

    passed: bool
    sentence: str


def compare(layer: nn.Module, emulated: nn.Module, recipe: Recipe, x: Tensor, dy: Tensor) -> Iterator[Comparison]:
    """Compare a layer with its emulation: output, gradient of the input, gradient of the weight.

    Args:
        layer: an FP4 layer of a backend.
        emulated: the emulated layer with the same parameters.
        recipe: that of both.
        x: the input.
        dy: the gradient of the output.

    Yields:
        Each comparison. An exception of the layer is one that fails.
    """
    repeats = REPEATS if recipe.stochastic_rounding else 1
    if isinstance(layer, TEProduct):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            if not layer.on_te(x, layer.weight):  # else the emulation would be compared with itself
                yield Comparison(recipe.name, "is left to the emulation", math.nan, 0.0)
                return
    try:
        found = [_results(layer, x, dy) for _ in range(repeats)]
    except Exception as error:  # whatever a library raises; the caller wants to know what else works
        reason = str(error).strip().partition("\n")[0]
        yield Comparison(recipe.name, f"{type(error).__name__}: {reason}", math.nan, 0.0)
        return
    expected = [_results(emulated, x, dy) for _ in range(repeats)]
    for key in ("y", "dx", "dw"):
        ours, theirs = (torch.stack([result[key].double().flatten() for result in all]) for all in (found, expected))
        if key == "y" or repeats == 1:
            distance = (ours - theirs).norm() / theirs.norm()
            yield Comparison(recipe.name, key, distance.item(), ROUNDING)
            continue
        noise = [results.var(dim=0).sum() for results in (ours, theirs)]
        apart = (ours.mean(dim=0) - theirs.mean(dim=0)).square().sum()
        yield Comparison(recipe.name, f"mean {key}", (apart * repeats / sum(noise)).item(), EXCESS)
        yield Comparison(recipe.name, f"noise {key}", 0.5 * (noise[0] / noise[1]).log2().abs().item(), NOISE)


def compare_linear(
    build: Callable[[nn.Module, Recipe], nn.Module], device: torch.device, recipes: Iterable[Recipe] = TESTED
) -> Iterator[Comparison]:
    """Compare one linear layer with an FP32 weight, under BF16 autocast, in sizes that every kernel takes.

    Args:
        build: a backend's `Backend.build`.
        device: where to compute.
        recipes: what to compare.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight, dy = (torch.randn(size, generator=generator) for size in ((256, 256), (128, 256), (256, 128)))
    x[::7, ::5] *= 20  # outliers, for the rotation to spread
    dy[::5, ::3] *= 20
    plain = nn.Linear(256, 128, bias=False)
    with torch.no_grad():
        plain.weight.copy_(0.05 * weight)
    plain, x, dy = plain.to(device), x.to(device), (1e-3 * dy).to(device, torch.bfloat16)
    for recipe in recipes:
        yield from compare(build(plain, recipe), EmulatedBackend().build(plain, recipe), recipe, x, dy)


def verdict(comparisons: Iterable[Comparison], device: str) -> Verdict:
    """Say in a sentence what comparisons found.

    >>> verdict([Comparison("rht", "dw", 0.13, 0.0078)], "cuda:0").sentence
    'the self-test on cuda:0 found other numbers than the emulation computes, rht: dw 0.13 (at most 0.0078)'
    """
    every = list(comparisons)
    wrong = [str(each) for each in every if not each.passed]
    if wrong or not every:
        what = "; ".join(wrong[:4] + ([f"and {len(wrong) - 4} more"] if len(wrong) > 4 else [])) or "nothing at all"
        return Verdict(False, f"the self-test on {device} found other numbers than the emulation computes, {what}")
    worst = max(each.distance for each in every if each.allowed == ROUNDING)
    recipes = len({each.recipe for each in every})
    return Verdict(
        True,
        f"the self-test on {device} found the emulation's numbers under {recipes} recipes, within rounding"
        f" (at most {worst:.2g} of a result, {ROUNDING:.2g} are allowed)",
    )


@cache
def self_test(device: str) -> Verdict:
    """Test Transformer Engine on a device, in a process of its own; the answer is kept while this process lives."""
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "monai_fp4.quantization.backends.self_test", device]
    environment = os.environ | {"PYTHONPATH": paths}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Verdict(False, f"the self-test on {device} broke off ({error})")
    try:
        return verdict([Comparison(**each) for each in json.loads(done.stdout.strip().rpartition("\n")[2])], device)
    except (ValueError, TypeError):  # it did not come to its last line
        why = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
        return Verdict(False, f"the self-test on {device} broke off ({why})")


def _results(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = layer(x)
    y.backward(dy)
    assert x.grad is not None
    weight_gradient = layer.weight.grad
    assert isinstance(weight_gradient, Tensor)
    return {"y": y.detach(), "dx": x.grad, "dw": weight_gradient.clone()}


if __name__ == "__main__":
    found = compare_linear(TELinear.from_float, torch.device(sys.argv[1]))
    print(json.dumps([asdict(each) for each in found]))
