"""Whole linear layers against Transformer Engine's ``te.Linear``, forward and backward, bit for bit.

The oracle (te_linear_oracle.py) runs in a process of its own; all cases go through one start of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from typing import Any

import pytest
import torch
from te_run import needs_oracle, run_oracle
from torch import Tensor, nn

from monai_fp4.quantization.layers import NVFP4Linear
from monai_fp4.quantization.numerics import ScaledValues, gemm_alpha, plain_torch
from monai_fp4.quantization.recipes import RECIPES

pytestmark = needs_oracle

SIZES = ((64, 64, 32), (32, 256, 96), (160, 96, 160))  # tokens, in, out; te.Linear takes multiples of 32
DATA = ("gaussian", "outliers", "relu")


def make(kind: str, *shape: int, seed: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if kind == "outliers":
        x[::7, ::5] *= 300
    if kind == "relu":
        x = x.relu()
        x[: shape[0] // 2] = 0
    return x


def cases() -> dict[str, dict[str, Any]]:
    found = {}
    quantized_backward = ("full", "rht", "2d", "rht_2d")
    for (tokens, inputs, outputs), kind in [
        *itertools.product(SIZES[:1], DATA),
        *itertools.product(SIZES[1:], DATA[1:2]),
    ]:
        for recipe, dtype in [*((name, torch.bfloat16) for name in quantized_backward), ("full", torch.float32)]:
            data = {
                "x": make(kind, tokens, inputs, seed=1),
                "weight": make("gaussian", outputs, inputs, seed=2) * 0.05,
                "dy": make("outliers" if kind == "outliers" else "gaussian", tokens, outputs, seed=3) * 1e-4,
            }
            options = {"rht": RECIPES[recipe].hadamard, "two_d": RECIPES[recipe].two_d_weights}
            name = f"{recipe}-{str(dtype).removeprefix('torch.')}-{tokens}x{inputs}x{outputs}-{kind}"
            found[name] = {key: value.to(dtype) for key, value in data.items()} | options
    for recipe in ("full", "rht_2d"):  # sizes that te.Linear refuses, through our TELinear
        found[f"{recipe}-padded"] = {
            "x": make("gaussian", 2 * 21, 40, seed=4).reshape(2, 21, 40).bfloat16(),
            "weight": make("gaussian", 24, 40, seed=5).bfloat16(),
            "bias": make("gaussian", 24, 1, seed=6).flatten().bfloat16(),
            "dy": make("gaussian", 2 * 21, 24, seed=7).reshape(2, 21, 24).bfloat16(),
            "rht": RECIPES[recipe].hadamard,
            "two_d": RECIPES[recipe].two_d_weights,
            "recipe": recipe,
            "layer": ("Linear", {"in_features": 40, "out_features": 24}),
        }
    for (tokens, inputs, outputs), kind in ((SIZES[0], "gaussian"), (SIZES[2], "outliers")):  # FP32 master weights
        for recipe, dtype in itertools.product(quantized_backward, (torch.bfloat16, torch.float32)):
            found[f"{recipe}-autocast-{str(dtype).removeprefix('torch.')}-{tokens}x{inputs}x{outputs}-{kind}"] = {
                "x": make(kind, tokens, inputs, seed=1).to(dtype),
                "weight": make("gaussian", outputs, inputs, seed=2) * 0.05,
                "dy": (make(kind, tokens, outputs, seed=3) * 1e-4).bfloat16(),
                "rht": RECIPES[recipe].hadamard,
                "two_d": RECIPES[recipe].two_d_weights,
                "autocast": torch.bfloat16,
            }
            if dtype is torch.float32:  # our layer casts such an input first, which te.Linear would not
                name, layer = list(found)[-1], ("Linear", {"in_features": inputs, "out_features": outputs})
                found[name] |= {"recipe": recipe, "layer": layer}
    for recipe, dtype in itertools.product(quantized_backward, (torch.bfloat16, torch.float32)):
        case = {key: v.float() if torch.is_tensor(v) else v for key, v in found["full-padded"].items()}
        rules = {"rht": RECIPES[recipe].hadamard, "two_d": RECIPES[recipe].two_d_weights, "recipe": recipe}
        found[f"{recipe}-padded-autocast-{str(dtype).removeprefix('torch.')}"] = (
            case | rules | {"x": case["x"].to(dtype), "dy": case["dy"].bfloat16(), "autocast": torch.bfloat16}
        )
    for recipe, override in (("forward_only", "high_precision"), ("chain_rule", "dequantized")):
        for kind in ("bfloat16-64x64x32-outliers", "autocast-float32-64x64x32-gaussian"):
            found[f"{recipe}-{kind}"] = found[f"full-{kind}"] | {"backward_override": override}
            if "recipe" in found[f"full-{kind}"]:
                found[f"{recipe}-{kind}"]["recipe"] = recipe
    return found


CASES = cases()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    return run_oracle(CASES, tmp_path_factory.mktemp("te"))


def ours(name: str) -> dict[str, Tensor]:
    case = CASES[name]
    recipe = RECIPES[name.split("-")[0]]
    plain = nn.Linear(case["weight"].shape[1], case["weight"].shape[0], bias="bias" in case, dtype=case["weight"].dtype)
    plain.load_state_dict({key: case[key] for key in ("weight", "bias") if key in case})
    layer = NVFP4Linear.from_float(plain, recipe)
    x = case["x"].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="autocast" in case):
        y = layer(x)
    y.backward(case["dy"])
    assert x.grad is not None
    assert layer.weight.grad is not None
    found = {"y": y.detach(), "dx": x.grad, "dw": layer.weight.grad}
    return found if layer.bias is None else found | {"db": layer.bias.grad}


FP4_BACKWARD = [name for name in CASES if RECIPES[name.split("-")[0]].backward == "fp4" and "padded" not in name]


def multiply_as_the_reference(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """The product of two quantized operands, with two habits of TE's reference GEMM that the contract does not have.

    It adds up block by block (inside a block the sum is exact in any order), and it divides by 36 * 448 * 448 where
    TE's CUDA kernel, and so the contract, multiplies by the reciprocal: one alpha in six gets another last bit.
    """
    total = torch.zeros(a.values.shape[0], b.values.shape[0])
    for x, y in zip(a.values.split(16, dim=1), b.values.split(16, dim=1), strict=True):
        total += x @ y.mT
    return (torch.div(a.amax * b.amax, 36.0 * 448.0 * 448.0) * total).to(dtype)


def multiply_in_its_order(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """The same without the second habit, which the oracle takes from the reference where it runs our layers."""
    return (gemm_alpha(a.amax, b.amax) * multiply_as_the_reference(*map(without_amax, (a, b)), torch.float32)).to(dtype)


def without_amax(operand: ScaledValues) -> ScaledValues:
    return dataclasses.replace(operand, amax=torch.tensor(6.0 * 448.0))  # alpha is 1 then


@pytest.mark.parametrize("name", FP4_BACKWARD)
def test_equal_to_te_linear_bit_for_bit(
    name: str, oracle: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    product = multiply_in_its_order if "recipe" in CASES[name] else multiply_as_the_reference
    monkeypatch.setattr("monai_fp4.quantization.layers.linear_products.matrix_product", product)
    with plain_torch():  # else a compiled product is taken
        found, expected = ours(name), oracle[name]
    for key in ("y", "dx", "dw"):
        assert found[key].dtype == expected[key].dtype
        assert torch.equal(found[key], expected[key]), f"{key}: {(found[key] != expected[key]).sum()} differ"


@pytest.mark.parametrize("name", FP4_BACKWARD)
def test_equal_to_te_linear_with_the_layers_own_product(name: str, oracle: dict[str, dict[str, Tensor]]) -> None:
    # The order of summation and the rounding of alpha (see above) show in the last bits of FP32. A cast to BF16 hides
    # them, except where a result lies next to the middle of two BF16 numbers: one element of 15,360 in one case here.
    found, expected = ours(name), oracle[name]
    for key in ("y", "dx", "dw"):
        scale = expected[key].abs().max()
        if found[key].dtype is torch.float32:
            torch.testing.assert_close(found[key] / scale, expected[key] / scale, rtol=0, atol=1e-6)
            continue
        differing = found[key] != expected[key]
        assert differing.sum() <= (2 if "outliers" in name else 0)
        torch.testing.assert_close(found[key], expected[key], rtol=2**-7, atol=1e-6 * scale.item())


@pytest.mark.parametrize("name", [name for name in CASES if RECIPES[name.split("-")[0]].backward != "fp4"])
def test_high_precision_backward_multiplies_the_operands_that_te_multiplies(
    name: str, oracle: dict[str, dict[str, Tensor]]
) -> None:
    found, expected = ours(name), oracle[name]
    assert torch.equal(found["y"], expected["y"])
    for key in ("dx", "dw"):  # a plain BF16 product: its order of summation is the library's own
        scale = expected[key].abs().max()
        torch.testing.assert_close(found[key] / scale, expected[key] / scale, rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if "padded" in name])
def test_te_linear_padded_by_our_wrapper_equals_the_emulation(name: str, oracle: dict[str, dict[str, Tensor]]) -> None:
    found, expected = ours(name), oracle[name]
    assert sorted(found) == ["db", "dw", "dx", "y"]
    for key in ("y", "dx", "dw"):  # these sums are exact in FP32, in any order
        assert torch.equal(found[key], expected[key]), f"{key}: {(found[key] != expected[key]).sum()} differ"
    torch.testing.assert_close(found["db"], expected["db"], rtol=2**-7, atol=1e-3)
    assert torch.equal(expected["again"], expected["y"])  # a deep copy makes its own te.Linear


def test_the_oracle_sees_the_techniques(oracle: dict[str, dict[str, Tensor]]) -> None:
    # Were the factories all alike, the comparisons above would prove less than they say.
    full, rht, two_d = (oracle[f"{name}-bfloat16-64x64x32-gaussian"] for name in ("full", "rht", "2d"))
    assert torch.equal(full["y"], rht["y"])
    assert not torch.equal(full["dw"], rht["dw"])
    assert not torch.equal(full["y"], two_d["y"])


def test_a_backward_pass_in_high_precision_leaves_the_mixed_product_to_us(oracle: dict[str, dict[str, Tensor]]) -> None:
    # te.Linear would pass an FP32 weight on to cuBLAS beside a BF16 gradient, of which there is no product. So under
    # forward_only it is asked for dW alone, and under the other recipes for both gradients.
    for name, products in (("forward_only", 1), ("chain_rule", 2), ("full", 2), ("rht_2d", 2)):
        assert oracle[f"{name}-autocast-float32-64x64x32-gaussian"]["backward_products"] == products


def test_the_stand_ins_stay_in_their_own_process(oracle: dict[str, dict[str, Tensor]]) -> None:
    assert "transformer_engine_torch" not in sys.modules
    assert not torch.zeros(1).is_cuda
