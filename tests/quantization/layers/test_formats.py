"""Layers under recipes in other formats, against products of explicit im2col matrices quantized whole.

The quantizer has its own oracle in test_formats_scheme.py; what is tested here is which tensor each product quantizes
to which format, along which axis, and with which alpha.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from im2col_reference import Geometry, as_image, as_rows, col2im, gemm, im2col
from tiny_runs import Dataset, metrics, train
from torch import Tensor, nn

from monai_fp4.bundle.trained import TrainedRun
from monai_fp4.errors import ConfigError
from monai_fp4.quantization.backends import BACKENDS
from monai_fp4.quantization.backends.te_recipe import te_flags
from monai_fp4.quantization.conversion import convert
from monai_fp4.quantization.formats.scheme import Scheme
from monai_fp4.quantization.layers import LAYER_TYPES, NVFP4Layer
from monai_fp4.quantization.layers.attention_product import fp4_product
from monai_fp4.quantization.monitor.health import operand_health, quantization_health
from monai_fp4.quantization.numerics import ScaledValues, decode, pad_last, plain_torch, scaled_values
from monai_fp4.quantization.recipes import Recipe

RECIPES = {
    "weights": {"base": "full", "four_over_six": "weights"},
    "activations": {"base": "full", "four_over_six": "activations"},
    "all": {"base": "full", "four_over_six": "all"},
    "all, 2d": {"base": "2d", "four_over_six": "all"},
    "weights, rht, 2d": {"base": "rht_2d", "four_over_six": "weights"},
    "mxfp4": {"base": "full", "format": "mxfp4"},
    "mxfp4, rht, 2d": {"base": "rht_2d", "format": "mxfp4"},
}
SCHEMES = {  # of the input, the weight and the gradient
    "weights": (Scheme.NVFP4, Scheme.FOUR_OVER_SIX, Scheme.NVFP4),
    "activations": (Scheme.FOUR_OVER_SIX, Scheme.NVFP4, Scheme.NVFP4),
    "all": (Scheme.FOUR_OVER_SIX, Scheme.FOUR_OVER_SIX, Scheme.NVFP4),
    "mxfp4": (Scheme.MXFP4,) * 3,
}


@dataclass(frozen=True)
class Case:
    """One layer shape; a linear layer is a convolution of one pixel with one tap."""

    name: str
    channels: tuple[int, int]
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    transposed: bool = False

    @property
    def geometry(self) -> Geometry:
        values = (self.options.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
        return Geometry(self.kernel, *((v,) * len(self.kernel) for v in values), self.options.get("groups", 1))

    def build(self, recipe: Recipe) -> Any:
        kind = getattr(nn, f"Conv{'Transpose' if self.transposed else ''}{len(self.kernel)}d")
        layer = LAYER_TYPES[kind].from_float(kind(*self.channels, self.kernel, bias=False, **self.options), recipe)
        with torch.no_grad():
            layer.weight.copy_(numbers(*layer.weight.shape, seed=1))
        return layer


CASES = [
    Case("rows of whole blocks", (32, 16), (3, 3), (3, 32), {"padding": 1}),
    Case("rows of half a block of 32", (16, 16), (3, 3), (3, 16), {"padding": 1}),
    Case("narrow", (20, 18), (3, 3), (5, 6), {"padding": 1}),
    Case("strided", (16, 16), (3, 3), (7, 8), {"padding": 1, "stride": 2}),
    Case("patches", (16, 48), (2, 2), (4, 6), {"stride": 2}),
    Case("pointwise", (48, 16), (1, 1), (3, 16)),
    Case("groups", (32, 40), (3, 3), (4, 5), {"padding": 1, "groups": 2}),
    Case("3d", (16, 16), (3, 3, 3), (2, 3, 4), {"padding": 1}),
    Case("doubling", (16, 32), (2, 2), (3, 4), {"stride": 2}, True),
    Case("doubling rows", (16, 16), (2, 2), (2, 32), {"stride": 2}, True),
    Case("overlapping", (16, 16), (3, 3), (3, 16), {"stride": 2, "padding": 1, "output_padding": 1}, True),
    Case("groups, transposed", (32, 40), (2, 2), (3, 4), {"stride": 2, "groups": 2}, True),
]


def numbers(*shape: int, seed: int) -> Tensor:
    """Magnitudes from a half to one: block scales differ, and yet FP32 sums of a few hundred products are exact."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (0.5 + 0.5 * torch.rand(*shape, generator=generator)) * sign


def alpha(a: ScaledValues, b: ScaledValues) -> Tensor:
    bounds = {Scheme.NVFP4: 6 * 448, Scheme.FOUR_OVER_SIX: 6 * 256, Scheme.MXFP4: 1}
    return a.amax * b.amax * torch.tensor(1 / (bounds[a.scheme] * bounds[b.scheme]), dtype=torch.float32)


def product(a: ScaledValues, b: ScaledValues) -> Tensor:
    """``a @ b.T`` of matrices."""
    return gemm(a.values, b.values.T).float() * alpha(a, b)


def taps_of(weight: Tensor, groups: int) -> Tensor:
    """``[D, C / groups, *k]`` to [groups, taps, D / groups, C / groups]."""
    return weight.detach().flatten(2).unflatten(0, (groups, -1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Formats:
    """The operands of a recipe."""

    input: Scheme
    weight: Scheme
    gradient: Scheme
    two_d: bool
    rht: bool

    @classmethod
    def of(cls, name: str) -> Formats:
        return cls(*SCHEMES[name.split(",")[0]], "2d" in name, "rht" in name)

    def kernel(self, weight: Tensor, groups: int, *, along_columns: bool, forward_columns: bool) -> ScaledValues:
        """[groups, taps, D / groups, C / groups]: square blocks are chosen once, in the order that fprop reads them."""
        taps = taps_of(weight, groups)
        columns = forward_columns if self.two_d else along_columns
        found = scaled_values(taps.mT.contiguous() if columns else taps, two_d=self.two_d, scheme=self.weight)
        return ScaledValues(found.values.mT if columns else found.values, found.amax, found.scales, found.scheme)


def gather(image: Tensor, scheme: Scheme, kernel: ScaledValues, geometry: Geometry) -> Tensor:
    u = im2col(image, geometry).unflatten(-1, (geometry.groups, -1))
    u = scaled_values(u, scheme=scheme)
    rows = [
        gemm(u.values[:, :, g].flatten(1), kernel.values[g].transpose(0, 1).flatten(1).T)
        for g in range(geometry.groups)
    ]
    rows = torch.cat(rows, 1).float() * alpha(u, kernel)
    return as_image(rows, image.shape[0], geometry.out_shape(tuple(image.shape[2:])))


def scatter(pixels: Tensor, scheme: Scheme, kernel: ScaledValues, shape: tuple[int, ...], geometry: Geometry) -> Tensor:
    y = scaled_values(as_rows(pixels).unflatten(-1, (geometry.groups, -1)), scheme=scheme)
    taps, inner = kernel.values.shape[1], kernel.values.shape[-1]
    columns = [
        gemm(y.values[:, g], kernel.values[g].transpose(0, 1).flatten(1)).unflatten(1, (taps, inner))
        for g in range(geometry.groups)
    ]
    return col2im(torch.cat(columns, -1), shape, geometry).float() * alpha(y, kernel)


def weight_product(
    image: Tensor, pixels: Tensor, geometry: Geometry, schemes: tuple[Scheme, Scheme], rht: bool
) -> Tensor:
    u = im2col(image, geometry)
    _, taps, channels = u.shape
    qu = scaled_values(u.flatten(1).T, rht=rht, scheme=schemes[0])
    qy = scaled_values(as_rows(pixels).T, rht=rht, scheme=schemes[1])
    u_values = qu.values.unflatten(0, (taps, geometry.groups, channels // geometry.groups))
    y_values = qy.values.unflatten(0, (geometry.groups, -1))
    parts = [
        gemm(y_values[g], u_values[:, g].flatten(0, 1).T).unflatten(1, (taps, -1)).transpose(1, 2)
        for g in range(geometry.groups)
    ]
    gradient = torch.cat(parts).float() * alpha(qu, qy)
    return gradient.reshape(*gradient.shape[:2], *geometry.kernel)


def step(layer: nn.Module, x: Tensor, dy: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, dx, dweight and dy."""
    x = x.clone().requires_grad_()
    y = layer(x)
    dy = numbers(*y.shape, seed=4) if dy is None else dy
    return y, *torch.autograd.grad(y, [x, layer.weight], dy), dy


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_convolutions_equal_products_of_the_explicit_matrix(case: Case, name: str) -> None:
    layer, formats, geometry = case.build(Recipe.from_config(RECIPES[name])), Formats.of(name), case.geometry
    x = numbers(2, case.channels[0], *case.size, seed=3)
    y, dx, dw, dy = step(layer, x)
    transposed = case.transposed

    def kernel(along_columns: bool) -> ScaledValues:
        groups = geometry.groups
        return formats.kernel(layer.weight, groups, along_columns=along_columns, forward_columns=transposed)

    if transposed:
        wanted = (
            scatter(x, formats.input, kernel(True), tuple(dy.shape), geometry),
            gather(dy, formats.gradient, kernel(False), geometry),
            weight_product(dy, x, geometry, (formats.gradient, formats.input), formats.rht),
        )
    else:
        wanted = (
            gather(x, formats.input, kernel(False), geometry),
            scatter(dy, formats.gradient, kernel(True), tuple(x.shape), geometry),
            weight_product(x, dy, geometry, (formats.input, formats.gradient), formats.rht),
        )
    for product_name, a, b in zip(("fprop", "dgrad", "wgrad"), (y, dx, dw), wanted, strict=True):
        assert torch.equal(a, b), f"{product_name}: {(a != b).sum()} of {a.numel()} differ, by {(a - b).abs().max()}"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("sizes", [(40, 48, 64), (33, 20, 70)])
def test_linear_layers_equal_their_products(sizes: tuple[int, int, int], name: str) -> None:
    tokens, inputs, outputs = sizes
    formats = Formats.of(name)
    layer = LAYER_TYPES[nn.Linear](inputs, outputs, bias=False, recipe=RECIPES[name])
    with torch.no_grad():
        layer.weight.copy_(numbers(outputs, inputs, seed=1))
    x = numbers(tokens, inputs, seed=3)
    y, dx, dw, dy = step(layer, x)
    weight = layer.weight.detach()
    rows = scaled_values(weight, two_d=formats.two_d, scheme=formats.weight)
    if formats.two_d:
        columns = ScaledValues(rows.values.T, rows.amax, rows.scales, rows.scheme)
    else:
        columns = scaled_values(weight.T, scheme=formats.weight)
    assert torch.equal(y, product(scaled_values(x, scheme=formats.input), rows))
    assert torch.equal(dx, product(scaled_values(dy, scheme=formats.gradient), columns))
    a = scaled_values(dy.T, rht=formats.rht, scheme=formats.gradient)
    assert torch.equal(dw, product(a, scaled_values(x.T, rht=formats.rht, scheme=formats.input)))


@pytest.mark.parametrize("name", RECIPES)
def test_attention_products_take_their_operands_for_activations(name: str) -> None:
    formats = Formats.of(name)
    a, b = numbers(2, 20, 40, seed=1).requires_grad_(), numbers(2, 30, 40, seed=2).requires_grad_()
    c = fp4_product(a, b, Recipe.from_config(RECIPES[name] | {"attention": "fp4"}))
    dc = numbers(2, 20, 30, seed=3)
    da, db = torch.autograd.grad(c, [a, b], dc)

    def wanted(p: ScaledValues, q: ScaledValues) -> Tensor:
        return torch.stack([gemm(m, n.T) for m, n in zip(p.values, q.values, strict=True)]).float() * alpha(p, q)

    x, y = a.detach(), b.detach()
    assert torch.equal(c, wanted(scaled_values(x, scheme=formats.input), scaled_values(y, scheme=formats.input)))
    rows = scaled_values(dc, scheme=formats.gradient)
    assert torch.equal(da, wanted(rows, scaled_values(y.mT, scheme=formats.input)))
    columns = scaled_values(dc.mT, rht=formats.rht, scheme=formats.gradient)
    assert torch.equal(db, wanted(columns, scaled_values(x.mT, rht=formats.rht, scheme=formats.input)))


@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
@pytest.mark.parametrize("change", [{"format": "mxfp4"}, {"four_over_six": "all"}], ids=str)
def test_gradients_are_rounded_stochastically_in_other_formats(change: dict[str, str], kind: str) -> None:
    recipe, x = Recipe.from_config({"base": "sr"} | change), numbers(2, 32, 4, 4, seed=3)
    layer: Any
    if kind == "linear":
        layer, x = LAYER_TYPES[nn.Linear](32, 32, bias=False, recipe=recipe), x.flatten(2).mT
    elif kind == "conv":
        layer = LAYER_TYPES[nn.Conv2d](32, 32, 3, padding=1, bias=False, recipe=recipe)
    else:
        layer = LAYER_TYPES[nn.ConvTranspose2d](32, 32, 2, stride=2, bias=False, recipe=recipe)
    nearest = type(layer).from_float(layer, Recipe.from_config({"base": "full"} | change))
    y, *_, dy = step(nearest, x)
    draws = [step(layer, x, dy) for _ in range(2)]
    assert all(torch.equal(draw[0], y) for draw in draws)
    assert not torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][2], draws[1][2])
    # What E2M1 holds exactly needs no draw, and the input and the weight, which it does not hold, see none.
    for found, wanted in zip(step(layer, x, 6 * dy.sign()), step(nearest, x, 6 * dy.sign()), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("name", ["weights", "activations", "mxfp4"])
def test_chain_rule_and_health_see_the_format(kind: str, name: str) -> None:
    torch.manual_seed(0)
    formats = Formats.of(name)
    recipe = Recipe.from_config(RECIPES[name] | {"base": "chain_rule"})
    layer: Any
    if kind == "linear":
        layer, x = LAYER_TYPES[nn.Linear](64, 32, bias=False, recipe=recipe), torch.randn(10, 64)
        x_hat = decode(scaled_values(x, scheme=formats.input))
        w_hat = decode(scaled_values(layer.weight, scheme=formats.weight))
    else:
        layer, x = LAYER_TYPES[nn.Conv2d](64, 32, 3, bias=False, recipe=recipe), torch.randn(2, 64, 5, 5)
        x_hat = decode(scaled_values(x.movedim(1, -1), scheme=formats.input)).movedim(-1, 1)
        w_hat = decode(scaled_values(layer.weight.movedim(1, -1), scheme=formats.weight)).movedim(-1, 1)
    *_, dw, dy = step(layer, x)
    exact = step(type(layer).from_float(layer, "bf16"), x_hat, dy)
    torch.testing.assert_close(dw, exact[2], rtol=1e-4, atol=1e-4)
    found = layer.quantized_operands(x)
    assert torch.equal(found["input"][1], x_hat)
    assert torch.equal(found["weight"][1], w_hat)
    watched = type(layer).from_float(layer, Recipe.from_config(RECIPES[name]))
    with quantization_health(watched) as health:
        watched(x.clone().requires_grad_()).backward(dy)
    pixels = (lambda t: t) if kind == "linear" else (lambda t: t.movedim(1, -1))
    assert health[""]["input"] == operand_health(pixels(x), scheme=formats.input)
    weight = operand_health(pixels(layer.weight), scheme=formats.weight)
    assert health[""]["weight"].snr_db == pytest.approx(weight.snr_db, rel=1e-9)
    assert health[""]["weight"].clipped == weight.clipped
    assert weight.clipped != operand_health(pixels(layer.weight)).clipped or name == "activations"
    assert health[""]["gradient"] == operand_health(pixels(dy), scheme=formats.gradient)
    assert (health[""]["input"] == operand_health(pixels(x))) is (name == "weights")


def test_a_scale_of_mxfp4_clips_nothing() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert operand_health(x).clipped > 0
    assert operand_health(x, scheme=Scheme.MXFP4).clipped == 0


@pytest.mark.parametrize("name", RECIPES)
def test_results_do_not_depend_on_what_is_compiled(name: str) -> None:
    layer = CASES[0].build(Recipe.from_config(RECIPES[name]))
    x = torch.randn(2, 32, 3, 32, generator=torch.Generator().manual_seed(0))
    compiled = step(layer, x)
    with plain_torch():
        for a, b in zip(compiled, step(layer, x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", RECIPES)
def test_nan_is_never_hidden(name: str) -> None:
    for where in ("x", "weight", "dy"):
        layer = CASES[0].build(Recipe.from_config(RECIPES[name]))
        x, dy = numbers(2, 32, 3, 32, seed=3), numbers(2, 16, 3, 32, seed=4)
        {"x": x, "weight": layer.weight.data, "dy": dy}[where][0, 0] = torch.nan
        y, dx, dw, _ = step(layer, x, dy)
        assert y.isnan().any() == (where != "dy")
        assert dx.isnan().any() == (where != "x")
        assert dw.isnan().any() == (where != "weight")


def test_the_report_counts_blocks_of_32() -> None:
    model = nn.Sequential(nn.Linear(48, 64), nn.Linear(64, 48), nn.Linear(48, 2))
    for change, reason in (({}, "whole blocks"), ({"format": "mxfp4"}, "input channels 48 -> 64")):
        _, report = convert(model, {"base": "sr", **change}, backend="emulated")
        assert report.layers[0].reason == reason


def test_transformer_engine_takes_four_over_six_and_leaves_mxfp4() -> None:
    backend, layer = BACKENDS["transformer_engine"], nn.Linear(32, 32)
    mxfp4 = Recipe.from_config(RECIPES["mxfp4"])
    assert backend.refuses(layer, mxfp4) == "emulated: Transformer Engine has no training in MXFP4"
    with pytest.raises(ConfigError, match="does not take this Linear"):
        backend.build(layer, mxfp4)
    with pytest.raises(ConfigError, match="'mxfp4' and Transformer Engine trains in 'nvfp4' alone"):
        te_flags(mxfp4)
    for scope in ("weights", "activations", "all"):
        recipe = Recipe.from_config({"base": "sr", "four_over_six": scope})
        assert backend.refuses(layer, recipe) is None
        flags = te_flags(recipe)
        assert flags["nvfp4_4over6"] == flags["nvfp4_4over6_e4m3_use_256"] == scope
        assert flags["nvfp4_4over6_err_mode"] == "MAE"


def test_lengths_are_padded_to_whole_blocks() -> None:
    x = torch.randn(5, 40)
    padded = pad_last(x, 32)
    for scheme in Scheme:
        assert torch.equal(scaled_values(x, scheme=scheme).values, scaled_values(padded, scheme=scheme).values[:, :40])


@pytest.mark.parametrize("change", [{"format": "mxfp4"}, {"four_over_six": "all"}], ids=str)
def test_a_bundle_trains_and_is_evaluated_in_another_format(
    change: dict[str, str], tiny: Dataset, tmp_path: Path
) -> None:
    losses = []
    for name, recipe in (("other", {"base": "sr", **change}), ("standard", {"base": "sr"})):
        run = train(tiny, tmp_path / name, "unet_500k_sr", recipe=recipe)
        losses.append([entry["train_loss"] for entry in metrics(run)["history"]])
        options = tiny.options | {"run_dir": str(run), "output_dir": str(tmp_path / "out"), "device": "cpu"}
        network = TrainedRun(**options, split="val").network
        layers = [module for module in network.modules() if isinstance(module, NVFP4Layer)]
        assert layers
        assert {layer.recipe for layer in layers} == {Recipe.from_config(recipe)}
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
