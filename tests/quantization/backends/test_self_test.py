"""The self-test lets pass what is right (the emulation, TE's reference), and finds each fault."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from te_run import needs_oracle
from torch import Tensor, nn

from monai_fp4.quantization.backends import BACKENDS, EmulatedBackend, self_test
from monai_fp4.quantization.backends.self_test import TESTED, Comparison, compare_linear, verdict
from monai_fp4.quantization.recipes import RECIPES, Recipe

CPU = torch.device("cpu")
ORACLE = Path(__file__).parents[2] / "te_linear_oracle.py"
Build = Callable[[nn.Module, Recipe], nn.Module]


def failures(build: Build, *recipes: str) -> set[str]:
    found = compare_linear(build, CPU, [RECIPES[name] for name in recipes])
    return {each.tensor for each in found if not each.passed}


def without(**changes: object) -> Build:
    """A backend that leaves a technique out, or takes one too many."""
    return lambda layer, recipe: EmulatedBackend().build(layer, dataclasses.replace(recipe, **changes))


def answering(change: Callable[[Tensor], Tensor]) -> Build:
    """A backend whose gradients of the weight are changed."""

    def build(layer: nn.Module, recipe: Recipe) -> nn.Module:
        wrong = EmulatedBackend().build(layer, recipe)
        wrong.weight = nn.Parameter(wrong.weight.detach().clone())
        wrong.weight.register_hook(change)
        return wrong

    return build


def test_the_emulation_passes_under_every_recipe() -> None:
    found = list(compare_linear(EmulatedBackend().build, CPU))
    assert all(each.passed for each in found)
    assert {each.recipe for each in found} == {recipe.name for recipe in TESTED}
    assert {name for name, recipe in RECIPES.items() if recipe.quantizes} < {each.recipe for each in found}
    passed = verdict(found, "cuda:0")
    assert passed.passed
    assert f"under {len(TESTED)} recipes, within rounding" in passed.sentence


@pytest.mark.parametrize(
    ("build", "recipe", "wrong"),
    [
        (without(hadamard=False), "rht", {"dw"}),
        (without(hadamard=True), "full", {"dw"}),
        (without(two_d_weights=False), "2d", {"y", "dx"}),
        (without(backward="dequantized"), "forward_only", {"dx", "dw"}),
        (without(stochastic_rounding=False), "sr", {"mean dx", "mean dw", "noise dx", "noise dw"}),
        (without(hadamard=False), "sr_rht", {"mean dw"}),
        (answering(torch.zeros_like), "full", {"dw"}),
        (answering(torch.zeros_like), "sr", {"mean dw", "noise dw"}),
        (answering(lambda g: g * math.nan), "sr_rht_2d", {"mean dw", "noise dw"}),
        (answering(lambda g: g + 0.3 * g.std()), "sr", {"mean dw"}),
        (answering(lambda g: torch.cat([g[:-1], g[-1:] * 0])), "full", {"dw"}),
    ],
)
def test_every_fault_is_found(build: Build, recipe: str, wrong: set[str]) -> None:
    assert failures(build, recipe) == wrong


def test_a_kernel_that_does_not_start_fails_its_recipe_alone() -> None:
    def build(layer: nn.Module, recipe: Recipe) -> nn.Module:
        good = EmulatedBackend().build(layer, recipe)
        if recipe.hadamard:
            good.register_forward_hook(lambda *args: torch.linalg.inv(torch.zeros(2, 2)))
        return good

    found = list(compare_linear(build, CPU, [RECIPES["full"], RECIPES["rht"]]))
    (broken,) = [each for each in found if not each.passed]
    assert broken.recipe == "rht"
    assert broken.tensor.startswith("_LinAlgError: linalg.inv")
    said = verdict(found, "cuda:0")
    assert not said.passed
    assert "rht: _LinAlgError" in said.sentence
    assert "\n" not in said.sentence


@pytest.mark.filterwarnings("ignore:a layer of the Transformer Engine backend")
def test_a_layer_that_is_left_to_the_emulation_does_not_pass() -> None:
    assert failures(BACKENDS["transformer_engine"].build, "full", "sr") == {"is left to the emulation"}


def test_nothing_compared_is_no_pass() -> None:
    assert not verdict([], "cuda:0").passed
    assert not Comparison("full", "y", math.nan, 1.0).passed
    assert "and 2 more" in verdict([Comparison("full", "y", 1.0, 0.5)] * 6, "cuda:0").sentence


@needs_oracle
def test_transformer_engines_reference_passes_the_test() -> None:
    # In a process of its own, as the test itself is run; the oracle puts TE's reference in the place of its kernels.
    command = [sys.executable, str(ORACLE), "--run", str(self_test.__file__), "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [Comparison(**each) for each in json.loads(done.stdout.strip().rpartition("\n")[2])]
    assert [str(each) for each in found if not each.passed] == []
    assert {each.recipe for each in found} == {recipe.name for recipe in TESTED}


def test_a_process_that_breaks_off_is_a_verdict() -> None:
    said = self_test.self_test("cuda:0" if not torch.cuda.is_available() else "cuda:99")
    assert not said.passed
    assert said.sentence.startswith("the self-test on cuda:")
    assert "broke off (" in said.sentence
    assert self_test.self_test.cache_info().currsize >= 1  # once for each device
