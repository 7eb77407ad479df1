"""Convolutions and transposed convolutions against the explicit im2col reference, and their behaviour as modules."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from im2col_reference import (
    Geometry,
    as_rows,
    gather,
    im2col,
    pad_last,
    quantize_channels,
    quantize_reference,
    quantize_weight,
    scatter,
    weight_product,
)
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.layers import (
    LAYER_TYPES,
    NVFP4Conv1d,
    NVFP4Conv2d,
    NVFP4Conv3d,
    NVFP4ConvTranspose1d,
    NVFP4ConvTranspose2d,
    NVFP4ConvTranspose3d,
    NVFP4Layer,
)
from monai_fp4.quantization.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("both_paths")

CONV = {1: NVFP4Conv1d, 2: NVFP4Conv2d, 3: NVFP4Conv3d}
TRANSPOSE = {1: NVFP4ConvTranspose1d, 2: NVFP4ConvTranspose2d, 3: NVFP4ConvTranspose3d}


@dataclass(frozen=True)
class Case:
    """One layer shape: channels in and out, kernel, input size and the arguments of the torch class."""

    name: str
    channels: tuple[int, int]
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def dims(self) -> int:
        return len(self.kernel)

    def per_axis(self, option: str, default: int) -> tuple[int, ...]:
        value = self.options.get(option, default)
        return value if isinstance(value, tuple) else (value,) * self.dims

    @property
    def geometry(self) -> Geometry:
        return Geometry(
            self.kernel,
            self.per_axis("stride", 1),
            self.per_axis("padding", 0),
            self.per_axis("dilation", 1),
            self.options.get("groups", 1),
        )


CONV_CASES = [
    Case("same", (16, 16), (3, 3), (3, 16), {"padding": 1}),
    Case("narrow", (16, 16), (3, 3), (5, 6), {"padding": 1}),
    Case("strided", (16, 16), (3, 3), (7, 8), {"padding": 1, "stride": 2}),
    Case("strided rows", (16, 16), (3, 3), (4, 32), {"padding": 1, "stride": 2}),
    Case("pointwise", (32, 16), (1, 1), (3, 16)),
    Case("pointwise strided", (32, 16), (1, 1), (5, 7), {"stride": 2}),
    Case("patches", (16, 16), (2, 2), (4, 6), {"stride": 2}),
    Case("patches that leave a rest", (16, 16), (2, 2), (5, 33), {"stride": 2}),
    Case("gaps between patches", (16, 16), (2, 2), (8, 11), {"stride": 3}),
    Case("dilated", (16, 16), (3, 3), (6, 16), {"padding": 2, "dilation": 2}),
    Case("odd channels", (20, 18), (3, 3), (4, 5), {"padding": 1}),
    Case("few channels", (3, 5), (3, 3), (4, 16), {"padding": 1}),
    Case("groups", (32, 40), (3, 3), (4, 5), {"padding": 1, "groups": 2}),
    Case("groups of rows", (40, 32), (3, 3), (2, 16), {"padding": 1, "groups": 2}),
    Case("uneven", (16, 16), (1, 3), (6, 16), {"padding": (1, 0), "stride": (2, 1), "dilation": (1, 2)}),
    Case("1d", (16, 32), (5,), (20,), {"padding": 2}),
    Case("1d rows", (16, 32), (3,), (32,), {"padding": 1}),
    Case("3d", (16, 16), (3, 3, 3), (2, 3, 4), {"padding": 1}),
    Case("3d rows", (16, 16), (3, 3, 3), (2, 2, 16), {"padding": 1}),
    Case("3d patches", (16, 16), (2, 2, 2), (2, 4, 4), {"stride": 2}),
]
TRANSPOSE_CASES = [
    Case("doubling", (16, 32), (2, 2), (3, 4), {"stride": 2}),
    Case("doubling rows", (16, 16), (2, 2), (2, 16), {"stride": 2}),
    Case("overlapping", (16, 16), (3, 3), (3, 4), {"stride": 2, "padding": 1, "output_padding": 1}),
    Case("overlapping rows", (16, 16), (3, 3), (2, 16), {"stride": 2, "padding": 1, "output_padding": 1}),
    Case("kernel 4", (16, 16), (4, 4), (3, 4), {"stride": 2, "padding": 1}),
    Case("untouched outputs", (16, 16), (1, 2), (3, 4), {"stride": 2, "output_padding": 1}),
    Case("stride 1", (16, 16), (3, 3), (4, 5), {"padding": 1, "dilation": 2}),
    Case("odd channels", (20, 18), (3, 3), (4, 3), {"stride": 2}),
    Case("groups", (32, 40), (2, 2), (3, 4), {"stride": 2, "groups": 2}),
    Case("1d", (16, 16), (3,), (9,), {"stride": 2, "padding": 1}),
    Case("3d", (16, 16), (2, 2, 2), (2, 2, 3), {"stride": 2}),
]
DETERMINISTIC = ["full", "rht", "2d", "rht_2d"]


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Magnitudes from a half to one: block scales differ, and yet FP32 sums of a few hundred products are exact."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = 0.5 + 0.5 * torch.rand(*shape, generator=generator)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (magnitude * sign).to(dtype)


def spread(x: Tensor, geometry: Geometry) -> Tensor:
    """Make the pixels that the geometry skips a hundred times larger: they must not count for the maximum."""
    skipped = torch.ones(x.shape[2:], dtype=torch.bool)
    for tap in geometry.taps:
        positions = geometry.positions(tuple(x.shape[2:]), tap)
        for place in itertools.product(*(axis.tolist() for axis in positions)):
            if all(0 <= p < n for p, n in zip(place, x.shape[2:], strict=True)):
                skipped[place] = False
    return torch.where(skipped, 100 * x, x)


def build(case: Case, recipe: str, *, transposed: bool, dtype: torch.dtype = torch.float32) -> NVFP4Layer:
    kinds = TRANSPOSE if transposed else CONV
    layer = kinds[case.dims](*case.channels, case.kernel, recipe=recipe, **case.options)
    with torch.no_grad():
        layer.weight.copy_(numbers(*layer.weight.shape, seed=1))
        layer.bias.copy_(numbers(*layer.bias.shape, seed=2))
    return layer.to(dtype)


def run(layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, dx, dweight, dbias."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    return y, *torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)


def inputs(case: Case, *, transposed: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return x and dy, with large values where they must not count."""
    x = numbers(2, case.channels[0], *case.size, seed=3, dtype=dtype)
    kinds = TRANSPOSE if transposed else CONV
    plain = kinds[case.dims].float_type(*case.channels, case.kernel, **case.options)
    dy = numbers(*plain(x.float()).shape, seed=4, dtype=dtype)
    if transposed:
        return x, spread(dy, case.geometry)
    return spread(x, case.geometry), dy


def expected(case: Case, x: Tensor, dy: Tensor, layer: Any, recipe: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, dx, dweight, dbias as the explicit im2col matrix gives them, in the dtype of dy."""
    weight, rules, g, dtype = layer.weight.detach(), RECIPES[recipe], case.geometry, dy.dtype
    bias = layer.bias.detach().to(dtype).view(-1, *(1,) * case.dims)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        y = scatter(x, weight, tuple(dy.shape), g, rules.two_d_weights, dtype)
        dx = gather(dy, weight, g, rules.two_d_weights, dtype)
        dw = weight_product(dy, x, g, rules.hadamard, dtype)
    else:
        y = gather(x, weight, g, rules.two_d_weights, dtype)
        dx = scatter(dy, weight, tuple(x.shape), g, rules.two_d_weights, dtype)
        dw = weight_product(x, dy, g, rules.hadamard, dtype)
    return y + bias, dx, dw, dy.sum([0, *range(2, dy.dim())])


def assert_same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """Ask for equality bit for bit (the bias gradient is torch's own sum, in its own order)."""
    for name, a, b in zip(("y", "dx", "dweight"), found, wanted, strict=False):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), f"{name}: {(a != b).sum()} of {a.numel()} differ, by {(a - b).abs().max()}"
    torch.testing.assert_close(found[3], wanted[3], rtol=1e-5 if found[3].dtype == torch.float32 else 1e-2, atol=1e-4)


@pytest.mark.parametrize("recipe", DETERMINISTIC)
@pytest.mark.parametrize("case", CONV_CASES, ids=lambda case: case.name)
def test_convolution_equals_im2col(case: Case, recipe: str) -> None:
    layer = build(case, recipe, transposed=False)
    x, dy = inputs(case, transposed=False)
    assert_same(run(layer, x, dy), expected(case, x, dy, layer, recipe))


@pytest.mark.parametrize("recipe", DETERMINISTIC)
@pytest.mark.parametrize("case", TRANSPOSE_CASES, ids=lambda case: case.name)
def test_transposed_convolution_equals_im2col(case: Case, recipe: str) -> None:
    layer = build(case, recipe, transposed=True)
    x, dy = inputs(case, transposed=True)
    assert_same(run(layer, x, dy), expected(case, x, dy, layer, recipe))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_half_precision_equals_im2col(dtype: torch.dtype, transposed: bool) -> None:
    case = TRANSPOSE_CASES[2] if transposed else CONV_CASES[0]
    layer = build(case, "rht_2d", transposed=transposed, dtype=dtype)
    x, dy = inputs(case, transposed=transposed, dtype=dtype)
    assert_same(run(layer, x, dy), expected(case, x, dy, layer, "rht_2d"))


def on_grid(*shape: int, seed: int) -> Tensor:
    """E2M1 numbers of which 16 neighbours in any direction hold a 6 (nearly always): no rounding happens."""
    grid = torch.tensor([0.5, 1, 1.5, 2, 3, 4, 6, 6, 6, 6, 6])
    index = torch.randint(0, len(grid), shape, generator=torch.Generator().manual_seed(seed))
    return grid[index] * numbers(*shape, seed=seed + 1).sign()


ON_GRID_CASES = [CONV_CASES[0], CONV_CASES[1], CONV_CASES[2], TRANSPOSE_CASES[1]]


@pytest.mark.parametrize("case", ON_GRID_CASES, ids=lambda case: case.name)
def test_stochastic_rounding_keeps_what_needs_no_rounding(case: Case) -> None:
    """On numbers of the grid SR changes nothing: the backward pass must equal the one that rounds to nearest."""
    transposed = case in TRANSPOSE_CASES
    layer = build(case, "sr_2d", transposed=transposed)
    x, dy = inputs(case, transposed=transposed)
    dy = on_grid(*dy.shape, seed=8)
    assert_same(run(layer, x, dy), expected(case, x, dy, layer, "2d"))


@pytest.mark.parametrize("case", ON_GRID_CASES, ids=lambda case: case.name)
def test_stochastic_rounding_is_on_the_gradient_only(case: Case) -> None:
    """The mean over draws is what an unrounded dy gives; x and the weight are rounded to nearest in every draw."""
    torch.manual_seed(0)
    transposed = case in TRANSPOSE_CASES
    layer = build(case, "sr", transposed=transposed)
    x, dy = inputs(case, transposed=transposed)
    dy = numbers(*dy.shape, seed=11)
    dy[torch.rand(dy.shape) < 0.3] = 1.0  # nearly every block holds the tensor's maximum, so none is clipped
    draws = [run(layer, x, dy) for _ in range(100)]
    assert all(torch.equal(draw[0], draws[0][0]) for draw in draws)
    w_hat = quantize_weight(layer.weight.detach(), 1, along_columns=not transposed, two_d=False).decoded(torch.float32)
    rounded = build(case, "bf16", transposed=transposed)
    with torch.no_grad():
        rounded.weight.copy_(w_hat[0].permute(1, 2, 0).reshape(layer.weight.shape))
    _, dx, _, _ = run(rounded, x, dy)
    u = im2col(dy if transposed else x, case.geometry)
    columns, rows = u.flatten(1), as_rows(x if transposed else dy)
    if transposed:
        rows = quantize_reference(pad_last(rows.T)).decoded(torch.float32)[:, : len(rows)].T
    else:
        columns = quantize_reference(pad_last(columns.T)).decoded(torch.float32)[:, : len(columns)].T
    dw = (rows.T @ columns).reshape(-1, *u.shape[1:]).transpose(1, 2).reshape(layer.weight.shape)
    nearest = run(build(case, "full", transposed=transposed), x, dy)
    for index, wanted in ((1, dx), (2, dw)):
        assert relative(draws[0][index], wanted) > 0.1
        assert relative(nearest[index], wanted) > 0.06
        assert relative(torch.stack([draw[index] for draw in draws]).mean(0), wanted) < 0.03


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(
    ("case", "transposed"),
    [(case, False) for case in CONV_CASES] + [(case, True) for case in TRANSPOSE_CASES],
    ids=lambda value: value.name if isinstance(value, Case) else ("transposed" if value else "conv"),
)
def test_high_precision_and_dequantized_backward(case: Case, transposed: bool) -> None:
    x, dy = inputs(case, transposed=transposed)
    layer = build(case, "forward_only", transposed=transposed)
    full = build(case, "full", transposed=transposed)
    y, dx, dw, db = run(layer, x, dy)
    assert torch.equal(y, full(x))
    layer.active = False
    plain = run(layer, x, dy)
    assert not torch.equal(y, plain[0])
    for found, wanted in zip((dx, dw, db), plain[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)

    rotated = run(build(case, "forward_rht", transposed=transposed), x, dy)
    assert torch.equal(rotated[0], y) and torch.equal(rotated[1], dx) and torch.equal(rotated[3], db)
    assert not torch.equal(rotated[2], dw) and relative(rotated[2], dw) < 0.02

    layer = build(case, "chain_rule", transposed=transposed)
    y, dx, dw, db = run(layer, x, dy)
    assert torch.equal(y, full(x))
    x_hat, w_hat = decoded_operands(case, x, layer.weight, transposed=transposed)
    layer.active = False
    with torch.no_grad():
        layer.weight.copy_(w_hat)
    plain = run(layer, x_hat, dy)
    for found, wanted in zip((dx, dw, db), plain[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)


def decoded_operands(case: Case, x: Tensor, weight: Tensor, *, transposed: bool) -> tuple[Tensor, Tensor]:
    """Return what the reference's forward pass saw, decoded, in the layer's own shapes."""
    groups, taps = case.geometry.groups, math.prod(case.kernel)
    if transposed:
        q_x = quantize_channels(x.movedim(1, -1), groups)
    else:  # the maximum is the im2col matrix's, which skips some pixels
        used = spread(torch.ones_like(x), case.geometry) == 1
        q_x = quantize_channels(torch.where(used, x, 0).movedim(1, -1), groups)
    x_hat = q_x.decoded(x.dtype).flatten(-2).movedim(-1, 1)
    q_w = quantize_weight(weight.detach(), groups, along_columns=transposed, two_d=False)
    w_hat = q_w.decoded(weight.dtype).permute(0, 2, 3, 1).reshape(*weight.shape[:2], taps).reshape(weight.shape)
    return x_hat, w_hat


AUTOCAST_CASES = [CONV_CASES[0], CONV_CASES[2], TRANSPOSE_CASES[0], TRANSPOSE_CASES[3]]


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("recipe", DETERMINISTIC)
@pytest.mark.parametrize("case", AUTOCAST_CASES, ids=lambda case: case.name)
def test_autocast_casts_results_and_input_but_no_weight(case: Case, recipe: str, input_dtype: torch.dtype) -> None:
    transposed = case in TRANSPOSE_CASES
    layer = build(case, recipe, transposed=transposed)
    x, dy = (tensor.bfloat16() for tensor in inputs(case, transposed=transposed))
    if input_dtype is torch.float32:
        x = inputs(case, transposed=transposed)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(layer, x, dy)
    want = expected(case, x.bfloat16(), dy, layer, recipe)
    assert found[0].dtype == torch.bfloat16
    assert_same(found, (want[0], want[1].to(input_dtype), want[2].float(), want[3].float()))
    rounded = run(copy.deepcopy(layer).bfloat16(), x.bfloat16(), dy)
    assert not torch.equal(found[0], rounded[0])  # what a cast of the weight would have given


@pytest.mark.parametrize("case", AUTOCAST_CASES, ids=lambda case: case.name)
def test_high_precision_and_dequantized_backward_under_autocast_multiply_in_bfloat16(case: Case) -> None:
    transposed = case in TRANSPOSE_CASES
    x, dy = inputs(case, transposed=transposed)
    x = x.bfloat16().float()  # the cast under autocast
    layer = build(case, "chain_rule", transposed=transposed)
    x_hat, w_hat = decoded_operands(case, x, layer.weight, transposed=transposed)
    for recipe, image, weight in (("forward_only", x, layer.weight.detach()), ("chain_rule", x_hat, w_hat)):
        plain = build(case, "bf16", transposed=transposed)
        plain.load_state_dict(layer.state_dict())
        with torch.no_grad():
            plain.weight.copy_(weight)
        want = run(plain.bfloat16(), image.bfloat16(), dy.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = run(build(case, recipe, transposed=transposed), x, dy.bfloat16())
        for a, b in zip(found[1:], want[1:], strict=True):
            assert a.dtype == torch.float32
            assert torch.equal(a, b.float())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("recipe", [*DETERMINISTIC, "chain_rule", "forward_only"])
def test_channels_last_gives_the_same(recipe: str, transposed: bool) -> None:
    case = TRANSPOSE_CASES[2] if transposed else CONV_CASES[0]
    layer = build(case, recipe, transposed=transposed)
    x, dy = inputs(case, transposed=transposed)
    want = run(layer, x, dy)
    layer = layer.to(memory_format=torch.channels_last)
    found = run(layer, x.to(memory_format=torch.channels_last), dy.to(memory_format=torch.channels_last))
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    if recipe in DETERMINISTIC:
        assert_same(found, want)


@pytest.mark.parametrize("case", [CONV_CASES[0], CONV_CASES[15], CONV_CASES[17]], ids=lambda case: case.name)
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_modes_pad_first(case: Case, mode: str) -> None:
    options = {**case.options, "padding": 1}
    layer = CONV[case.dims](*case.channels, case.kernel, recipe="rht", padding_mode=mode, **options)
    bare = CONV[case.dims](*case.channels, case.kernel, recipe="rht", **{**options, "padding": 0})
    bare.load_state_dict(layer.state_dict())
    x = numbers(2, case.channels[0], *case.size, seed=5)
    assert torch.equal(layer(x), bare(F.pad(x, (1, 1) * case.dims, mode=mode)))


def test_padding_by_name() -> None:
    x = numbers(2, 16, 6, 16, seed=5)
    same = NVFP4Conv2d(16, 16, (3, 4), padding="same", recipe="rht")
    bare = NVFP4Conv2d(16, 16, (3, 4), padding="valid", recipe="rht")
    bare.load_state_dict(same.state_dict())
    assert same(x).shape == x.shape
    assert torch.equal(same(x), bare(F.pad(x, (1, 2, 1, 1))))


def test_unbatched_and_empty_input() -> None:
    for layer in (NVFP4Conv2d(16, 24, 3, recipe="full"), NVFP4ConvTranspose2d(16, 24, 2, stride=2, recipe="full")):
        x = numbers(1, 16, 6, 6, seed=6)
        assert torch.equal(layer(x[0]), layer(x)[0])
        assert layer(x[:0]).shape == (0, *layer(x).shape[1:])


def test_output_size_of_a_transposed_convolution() -> None:
    layer = NVFP4ConvTranspose2d(16, 16, 3, stride=2, padding=1, recipe="full")
    x = numbers(1, 16, 4, 4, seed=7)
    assert layer(x).shape[2:] == (7, 7)
    assert layer(x, output_size=[8, 7]).shape[2:] == (8, 7)


@pytest.mark.parametrize("where", ["input", "gradient", "weight"])
@pytest.mark.parametrize("recipe", ["full", "sr_rht", "chain_rule"])
@pytest.mark.parametrize("case", [CONV_CASES[0], CONV_CASES[1], CONV_CASES[4]], ids=lambda case: case.name)
def test_nan_is_never_hidden(case: Case, recipe: str, where: str) -> None:
    layer = build(case, recipe, transposed=False)
    x, dy = inputs(case, transposed=False)
    if where == "input":
        x[0, 0, 1, 2] = torch.nan
    elif where == "gradient":
        dy[0, 0, 1, 2] = torch.nan
    else:
        layer.weight.data[0, 0, 0, 0] = torch.nan
    y, dx, dw, _ = run(layer, x, dy)
    assert y.isnan().any() == (where != "gradient")
    assert dx.isnan().any() == (where != "input")
    assert dw.isnan().any() == (where != "weight")


@pytest.mark.parametrize("float_type", [kind for kind in LAYER_TYPES if kind is not nn.Linear])
def test_a_float_layer_becomes_one_of_ours_and_back(float_type: type[nn.Module]) -> None:
    plain = float_type(16, 24, 3, stride=2, bias=True).eval()
    layer = LAYER_TYPES[float_type].from_float(plain, "sr_2d")
    assert isinstance(layer, float_type)
    assert layer.weight is plain.weight
    assert layer.training is False
    assert list(layer.state_dict()) == list(plain.state_dict())
    float_type(16, 24, 3, stride=2).load_state_dict(layer.state_dict(), strict=True)
    x = numbers(2, 16, *(5,) * (plain.weight.dim() - 2), seed=9)
    assert not torch.equal(layer(x), plain(x))
    layer.active = False
    assert torch.equal(layer(x), plain(x))
    copied = copy.deepcopy(layer)
    assert copied.weight is not layer.weight
    copied.active = layer.active = True
    assert torch.equal(copied(x), layer(x))
    assert copied.recipe == layer.recipe
    assert "recipe=sr_2d" in repr(layer)


def test_a_step_of_the_optimizer_is_seen() -> None:
    layer = NVFP4Conv2d(16, 16, 3, recipe="full")
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    x = numbers(1, 16, 5, 5, seed=10)
    before = layer(x)
    before.square().sum().backward()
    optimizer.step()
    fresh = NVFP4Conv2d(16, 16, 3, recipe="full")
    fresh.load_state_dict(layer.state_dict())
    assert not torch.equal(layer(x), before)
    assert torch.equal(layer(x), fresh(x))


@pytest.mark.parametrize("case", [*CONV_CASES[:4], CONV_CASES[12]], ids=lambda case: case.name)
def test_quantized_operands_are_the_decoded_forward_operands(case: Case) -> None:
    layer = build(case, "full", transposed=False)
    x, _ = inputs(case, transposed=False)
    operands = layer.quantized_operands(x)
    x_hat, w_hat = decoded_operands(case, x, layer.weight, transposed=False)
    assert torch.equal(operands["input"][0], x)
    assert torch.equal(operands["input"][1], x_hat)
    assert torch.equal(operands["weight"][0], layer.weight)
    assert torch.equal(operands["weight"][1], w_hat)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.quantized_operands(x)["weight"][1], w_hat)


def test_quantized_operands_of_a_transposed_convolution() -> None:
    case = TRANSPOSE_CASES[7]
    layer = build(case, "full", transposed=True)
    x, _ = inputs(case, transposed=True)
    operands = layer.quantized_operands(x)
    x_hat, w_hat = decoded_operands(case, x, layer.weight, transposed=True)
    assert torch.equal(operands["input"][1], x_hat)
    assert torch.equal(operands["weight"][1], w_hat)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 16 channels in a group, found 1"):
        NVFP4Conv2d.from_float(nn.Conv2d(32, 32, 3, groups=32), "full")
    with pytest.raises(ConfigError, match="at least 16 channels in a group, found 8"):
        NVFP4ConvTranspose2d(32, 16, 2, groups=2, recipe="full")
    with pytest.raises(ConfigError, match="output_padding below its stride"):
        NVFP4ConvTranspose2d(16, 16, 3, stride=1, dilation=2, output_padding=1, recipe="full")
    with pytest.raises(ConfigError, match="expected a Conv2d, found a Linear"):
        NVFP4Conv2d.from_float(nn.Linear(16, 16), "full")
    with pytest.raises(ConfigError, match="recipe 'ful' is not known"):
        NVFP4Conv2d(16, 16, 3, recipe="ful")
