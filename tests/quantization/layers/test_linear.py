"""The linear layer against GEMMs of the reference quantizer, and its behaviour as a module.

`te.Linear` itself is the oracle of another test; this one covers what Transformer Engine refuses: any number of tokens
and features, every floating dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from im2col_reference import Quantized, alpha, gemm, pad_last, quantize_reference
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.layers import (
    LAYER_TYPES,
    NVFP4Conv2d,
    NVFP4ConvTranspose2d,
    NVFP4Layer,
    NVFP4Linear,
    seed_rounding,
)
from monai_fp4.quantization.numerics import rotate
from monai_fp4.quantization.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("both_paths")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Magnitudes from a half to one: block scales differ, and yet FP32 sums of a few hundred products are exact."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return ((0.5 + 0.5 * torch.rand(*shape, generator=generator)) * sign).to(dtype)


def product(a: Quantized, b: Quantized, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
    return (gemm(a.values, b.values.T).float() * alpha(a, b)).to(dtype)[:rows, :columns]


def weight_operand(weight: Tensor, two_d: bool) -> Quantized:
    """Quantize along the last axis, padded; rows too when 2D."""
    padded = pad_last(weight)
    return quantize_reference(pad_last(padded, 0) if two_d else padded, two_d=two_d)


def expected(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, recipe: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, dx and dweight of ``x`` [T, K], ``weight`` [N, K], ``dy`` [T, N], in the dtype of dy."""
    rules, dtype = RECIPES[recipe], dy.dtype
    (tokens, inputs), outputs = x.shape, len(weight)
    y = product(quantize_reference(pad_last(x)), weight_operand(weight, rules.two_d_weights), dtype, tokens, outputs)
    dx = product(quantize_reference(pad_last(dy)), weight_operand(weight.T, rules.two_d_weights), dtype, tokens, inputs)
    dw = product(
        quantize_reference(pad_last(dy.T), rht=rules.hadamard),
        quantize_reference(pad_last(x.T), rht=rules.hadamard),
        dtype,
        outputs,
        inputs,
    )
    return y + bias.to(dtype), dx, dw


def build(inputs: int, outputs: int, recipe: str, dtype: torch.dtype = torch.float32) -> NVFP4Linear:
    layer = NVFP4Linear(inputs, outputs, recipe=recipe)
    with torch.no_grad():
        layer.weight.copy_(numbers(outputs, inputs, seed=1))
        layer.bias.copy_(numbers(outputs, seed=2))
    return layer.to(dtype)


def run(layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    """Return y, dx, dweight, dbias."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recipe", ["full", "rht", "2d", "rht_2d"])
@settings(deadline=None, max_examples=15)
@given(tokens=st.integers(1, 70), inputs=st.integers(1, 70), outputs=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_equals_the_reference_gemms(
    tokens: int, inputs: int, outputs: int, seed: int, recipe: str, dtype: torch.dtype
) -> None:
    layer = build(inputs, outputs, recipe, dtype)
    x, dy = numbers(tokens, inputs, seed=seed, dtype=dtype), numbers(tokens, outputs, seed=seed + 1, dtype=dtype)
    found = run(layer, x, dy)
    want = expected(x, layer.weight.detach(), layer.bias.detach(), dy, recipe)
    for name, a, b in zip(("y", "dx", "dweight"), found, want, strict=False):
        assert a.dtype == dtype, name
        assert torch.equal(a, b), f"{name}: {(a != b).sum()} of {a.numel()} differ"
    torch.testing.assert_close(found[3], dy.sum(0))


@pytest.mark.parametrize("recipe", ["full", "rht_2d"])
def test_large_sums_differ_by_the_order_of_summation_only(recipe: str) -> None:
    """Gaussian numbers over 1000 features: FP32 sums are not exact, and their error is bounded by K eps sum |a b|."""
    torch.manual_seed(0)
    layer = NVFP4Linear(1000, 24, recipe=recipe, bias=False)
    x = torch.randn(40, 1000)
    a = quantize_reference(pad_last(x))
    b = weight_operand(layer.weight.detach(), RECIPES[recipe].two_d_weights)
    exact = a.values.double() @ b.values.double().T
    bound = 1000 * torch.finfo(torch.float32).eps * (a.values.double().abs() @ b.values.double().abs().T)
    scale = alpha(a, b).double()
    assert ((layer(x).double() - (exact * scale)[:, :24]).abs() <= (bound * scale)[:, :24]).all()


@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 3, 48), (2, 3, 4, 48)])
def test_leading_axes_are_tokens(shape: tuple[int, ...]) -> None:
    layer = build(48, 20, "rht")
    x, dy = numbers(*shape, seed=3), numbers(*shape[:-1], 20, seed=4)
    found = run(layer, x, dy)
    flat = run(layer, x.reshape(-1, 48), dy.reshape(-1, 20))
    assert found[0].shape == dy.shape
    for a, b in zip(found, flat, strict=True):
        assert torch.equal(a.flatten(), b.flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weight_gradient_in_high_precision_may_be_rotated(dtype: torch.dtype) -> None:
    x, dy = numbers(40, 48, seed=3, dtype=dtype), numbers(40, 20, seed=4, dtype=dtype)
    plain = run(build(48, 20, "forward_only").to(dtype), x, dy)
    found = run(build(48, 20, "forward_rht").to(dtype), x, dy)
    for a, b in zip((*found[:2], found[3]), (*plain[:2], plain[3]), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(found[2], plain[2])
    assert found[2].dtype == dtype and relative(found[2].float(), plain[2].float()) < 0.02
    a, b = (rotate(pad_last(operand.mT)).double() for operand in (dy, x))
    torch.testing.assert_close(
        found[2], (a @ b.mT).to(dtype), rtol=2**-7 if dtype is torch.bfloat16 else 1e-3, atol=1e-2
    )
    two_d = run(build(48, 20, "forward_rht_2d").to(dtype), x, dy)
    assert torch.equal(two_d[0], build(48, 20, {"base": "forward_only", "two_d_weights": True}).to(dtype)(x))
    assert torch.equal(two_d[2], found[2])


def test_high_precision_and_dequantized_backward() -> None:
    x, dy = numbers(40, 48, seed=3), numbers(40, 20, seed=4)
    y = build(48, 20, "full")(x)
    layer = build(48, 20, "forward_only")
    found = run(layer, x, dy)
    layer.active = False
    plain = run(layer, x, dy)
    assert torch.equal(found[0], y)
    for a, b in zip(found[1:], plain[1:], strict=True):
        torch.testing.assert_close(a, b)

    layer = build(48, 20, "chain_rule")
    found = run(layer, x, dy)
    assert torch.equal(found[0], y)
    x_hat = quantize_reference(x).decoded(torch.float32)
    w_hat = quantize_reference(layer.weight).decoded(torch.float32)
    torch.testing.assert_close(found[1], dy @ w_hat)
    torch.testing.assert_close(found[2], dy.T @ x_hat)


def test_stochastic_rounding_draws_twice_and_for_the_gradient_only() -> None:
    """With identities for weight and input, dx and dW are the two copies of dy themselves, decoded.

    In dy every block of either direction has the same maximum, so both copies have one and the same scale: only the
    draws can make them differ, and either copy must average to dy.
    """
    torch.manual_seed(0)
    eye = torch.eye(64)
    dy = 0.9 * numbers(64, 64, seed=5)
    dy[torch.arange(64)[:, None] % 16 == torch.arange(64) % 16] = 1.0
    layer = NVFP4Linear(64, 64, recipe="sr", bias=False)
    with torch.no_grad():
        layer.weight.copy_(eye)
    rows, columns = [], []
    for _ in range(200):
        x = eye.clone().requires_grad_()
        y = layer(x)
        assert torch.equal(y, eye)
        dx, dw = torch.autograd.grad(y, [x, layer.weight], dy)
        rows.append(dx)
        columns.append(dw.T)
    assert relative(rows[0], dy) > 0.05
    assert relative(torch.stack(rows).mean(0), dy) < 0.015
    assert relative(torch.stack(columns).mean(0), dy) < 0.015
    errors = torch.stack([rows[0] - dy, columns[0] - dy]).flatten(1)
    assert abs(torch.corrcoef(errors)[0, 1].item()) < 0.1


def test_stochastic_rounding_is_on_the_gradient_only() -> None:
    """SR does not change a gradient that E2M1 holds exactly; x and the weight, which it does not hold, see no draw."""
    layer = build(48, 32, "sr")
    x, dy = numbers(64, 48, seed=3), 6 * numbers(64, 32, seed=4).sign()
    found = run(layer, x, dy)
    want = expected(x, layer.weight.detach(), layer.bias.detach(), dy, "full")
    for a, b in zip(found, want, strict=False):
        assert torch.equal(a, b)


def test_stochastic_rounding_follows_the_seed() -> None:
    layer = build(48, 20, "sr_rht")
    x, dy = numbers(40, 48, seed=3), numbers(40, 20, seed=4)
    seed_rounding(layer, 3)
    first = run(layer, x, dy)
    other = run(layer, x, dy)
    seed_rounding(layer, 3)
    again = run(layer, x, dy)
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[2], again[2])
    assert not torch.equal(first[1], other[1])
    assert not torch.equal(first[2], other[2])


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recipe", ["full", "rht", "2d", "rht_2d"])
def test_autocast_casts_results_and_input_but_no_weight(recipe: str, input_dtype: torch.dtype) -> None:
    layer = build(48, 20, recipe)
    x, dy = numbers(40, 48, seed=3, dtype=input_dtype), numbers(40, 20, seed=4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(layer, x, dy)
    want = expected(x.bfloat16(), layer.weight.detach(), layer.bias.detach(), dy, recipe)
    for a, b, dtype in zip(found, want, (torch.bfloat16, input_dtype, torch.float32), strict=False):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))
    rounded = run(copy.deepcopy(layer).bfloat16(), x.bfloat16(), dy)
    assert not torch.equal(found[0], rounded[0])  # what a cast of the weight would have given


@pytest.mark.parametrize("recipe", ["forward_only", "chain_rule"])
def test_high_precision_and_dequantized_backward_under_autocast_multiply_in_bfloat16(recipe: str) -> None:
    layer = build(48, 20, recipe)
    x, dy = numbers(40, 48, seed=3), numbers(40, 20, seed=4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, dx, dw, _ = run(layer, x, dy)
    weight = layer.weight.detach()
    if recipe == "chain_rule":
        x, weight = (quantize_reference(operand).decoded(torch.float32) for operand in (x.bfloat16(), weight))
    for a, b in ((dx, dy @ weight.bfloat16()), (dw, dy.T @ x.bfloat16())):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


@pytest.mark.parametrize("where", ["input", "gradient", "weight"])
@pytest.mark.parametrize("recipe", ["full", "sr_rht_2d", "chain_rule"])
def test_nan_is_never_hidden(recipe: str, where: str) -> None:
    layer = build(48, 20, recipe)
    x, dy = numbers(40, 48, seed=3), numbers(40, 20, seed=4)
    {"input": x, "gradient": dy, "weight": layer.weight.data}[where][0, 0] = torch.nan
    y, dx, dw, _ = run(layer, x, dy)
    assert y.isnan().any() == (where != "gradient")
    assert dx.isnan().any() == (where != "input")
    assert dw.isnan().any() == (where != "weight")


def test_a_float_layer_becomes_one_of_ours_and_back() -> None:
    plain = nn.Linear(48, 20).eval()
    seen = []
    plain.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    layer = LAYER_TYPES[nn.Linear].from_float(plain, "sr_2d")
    assert isinstance(layer, nn.Linear)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert layer.training is False
    nn.Linear(48, 20).load_state_dict(layer.state_dict(), strict=True)
    x = numbers(3, 48, seed=6)
    assert not torch.equal(layer(x), plain(x))
    assert seen == ["NVFP4Linear", "Linear"]
    layer.active = False
    assert torch.equal(layer(x), plain(x))
    assert "inactive" in repr(layer)
    copied = copy.deepcopy(layer)
    copied.active = layer.active = True
    assert copied.weight is not layer.weight
    assert torch.equal(copied(x), layer(x))
    layer.weight = nn.Parameter(torch.zeros(20, 48))
    assert plain.weight is not layer.weight, "the two modules share Parameters, not their registry"


def test_frozen_parts_get_no_gradient() -> None:
    layer = build(48, 20, "full")
    layer.weight.requires_grad_(False)
    x = numbers(3, 48, seed=6).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


def test_no_token_gives_no_token() -> None:
    assert build(48, 20, "full")(torch.zeros(0, 7, 48)).shape == (0, 7, 20)


def test_the_bf16_recipe_is_the_float_layer() -> None:
    layer = build(48, 20, "bf16")
    x = numbers(3, 48, seed=6)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_quantized_operands_are_the_decoded_forward_operands() -> None:
    layer = build(48, 32, "2d")
    x = numbers(3, 5, 48, seed=6)
    operands = layer.quantized_operands(x)
    assert torch.equal(operands["input"][0], x)
    assert torch.equal(operands["input"][1].flatten(0, 1), quantize_reference(x.flatten(0, 1)).decoded(x.dtype))
    assert torch.equal(operands["weight"][0], layer.weight)
    assert torch.equal(operands["weight"][1], quantize_reference(layer.weight, two_d=True).decoded(x.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layer.quantized_operands(x)
    assert all(torch.equal(a, b) for a, b in zip(under_autocast["weight"], operands["weight"], strict=True))
    cast = layer.quantized_operands(x.bfloat16())["input"]
    assert all(torch.equal(a, b) for a, b in zip(under_autocast["input"], cast, strict=True))


def _gradient(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.func.grad(lambda example: layer(example).sum())(x[0])


@pytest.mark.parametrize("transformed", [lambda layer, x: torch.func.vmap(layer)(x), _gradient], ids=["vmap", "grad"])
def test_transforms_of_functions_are_refused_with_a_reason(transformed: Callable[[nn.Module, Tensor], Tensor]) -> None:
    layers: list[NVFP4Layer] = [NVFP4Linear(16, 16, recipe="sr"), NVFP4Conv2d(16, 16, 1, recipe="sr")]
    layers.append(NVFP4ConvTranspose2d(16, 16, 2, recipe="sr"))
    for layer, shape in zip(layers, [(3, 2, 16), (3, 2, 16, 4, 4), (3, 2, 16, 4, 4)], strict=True):
        x = torch.randn(shape)
        with pytest.raises(ConfigError, match=r"torch\.func"):
            transformed(layer, x)
        layer.active = False
        assert torch.isfinite(transformed(layer, x)).all()


def test_only_a_linear_layer_becomes_one() -> None:
    with pytest.raises(ConfigError, match="expected a Linear, found a Conv2d"):
        NVFP4Linear.from_float(nn.Conv2d(16, 16, 3), "full")
