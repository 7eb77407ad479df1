"""Convolutions of the Transformer Engine backend, around the real te.Linear, against the emulated ones, bit for bit.

The oracle (te_linear_oracle.py) runs te.Linear with TE's reference quantizer on a CPU, in a process of its own. Sizes
are small and the data is without outliers, so that the FP32 sums of both sides are exact: their order does not matter.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

import im2col_reference as reference
import pytest
import torch
import torch.nn.functional as F
from te_run import needs_oracle, run_oracle
from torch import Tensor, nn

from monai_fp4.quantization.backends.te_conv import TE_CONV_TYPES, _im2col, _input_gradient, _patches, is_matrix_product
from monai_fp4.quantization.formats.philox import keys_from
from monai_fp4.quantization.layers import LAYER_TYPES, seed_rounding
from monai_fp4.quantization.layers.geometry import ConvGeometry
from monai_fp4.quantization.recipes import RECIPES, Backward

pytestmark = needs_oracle


@dataclass(frozen=True)
class Case:
    """A layer of torch.nn, the size of its images, and whether it is a plain product."""

    kind: str
    channels: tuple[int, int]
    kernel: int | tuple[int, ...]
    size: tuple[int, ...]
    plain: bool
    options: dict[str, Any] = field(default_factory=dict)
    batch: tuple[int, ...] = (2,)

    @property
    def arguments(self) -> dict[str, Any]:
        sizes = {"in_channels": self.channels[0], "out_channels": self.channels[1], "kernel_size": self.kernel}
        return sizes | self.options

    def layer(self, *, bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
        made: nn.Module = getattr(nn, self.kind)(**self.arguments, bias=bias, dtype=dtype)
        return made


CASES = {
    "pointwise": Case("Conv2d", (32, 16), 1, (4, 8), True),
    "pointwise strided": Case("Conv2d", (24, 40), 1, (5, 7), True, {"stride": 2}),
    "patches": Case("Conv2d", (16, 32), 2, (8, 8), True, {"stride": 2}),
    "patches of few channels, cropped": Case("Conv2d", (3, 24), 4, (17, 14), True, {"stride": 4}),
    "patches with gaps": Case("Conv2d", (16, 16), 2, (8, 9), True, {"stride": 3}),
    "patches, padded with the image": Case(
        "Conv2d", (16, 16), 2, (6, 6), True, {"stride": 2, "padding": 1, "padding_mode": "reflect"}
    ),
    "patches 1d": Case("Conv1d", (20, 16), 4, (33,), True, {"stride": 4}),
    "patches 3d": Case("Conv3d", (16, 16), 2, (4, 4, 6), True, {"stride": 2}),
    "same": Case("Conv2d", (16, 24), 3, (6, 6), False, {"padding": 1}),
    "same, whole blocks": Case("Conv2d", (32, 32), 3, (4, 16), False, {"padding": 1}),
    "strided": Case("Conv2d", (16, 16), 3, (7, 8), False, {"padding": 1, "stride": 2}),
    "pixels unused": Case("Conv2d", (16, 16), 3, (8, 8), False, {"stride": 4, "dilation": 2}),
    "more on one side": Case("Conv2d", (16, 16), (2, 3), (5, 6), False, {"padding": "same"}),
    "replicated": Case("Conv2d", (16, 16), 3, (5, 5), False, {"padding": 1, "padding_mode": "replicate"}),
    "pointwise in zeros": Case("Conv2d", (16, 16), 1, (4, 6), False, {"padding": 1}),
    "1d": Case("Conv1d", (24, 16), 3, (40,), False, {"padding": 1}),
    "one image": Case("Conv2d", (16, 16), 3, (5, 6), False, {"padding": 1}, batch=()),
    "3d": Case("Conv3d", (16, 16), (1, 3, 3), (2, 4, 6), False, {"padding": (0, 1, 1)}),
    "up": Case("ConvTranspose2d", (32, 16), 2, (4, 8), True, {"stride": 2}),
    "up, odd channels": Case("ConvTranspose2d", (24, 40), 2, (3, 5), True, {"stride": 2, "output_padding": 1}),
    "up, one image": Case("ConvTranspose2d", (16, 16), 2, (4, 5), True, {"stride": 2}, batch=()),
    "up 1d": Case("ConvTranspose1d", (16, 20), 4, (9,), True, {"stride": 4}),
    "up 3d": Case("ConvTranspose3d", (16, 16), 2, (2, 3, 4), True, {"stride": 2}),
}
FP4 = ("full", "rht", "2d", "rht_2d")
OVERRIDES = {Backward.FP4: None, Backward.HIGH_PRECISION: "high_precision", Backward.DEQUANTIZED: "dequantized"}


def oracle_case(case: Case, recipe: str, *, autocast: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(len(case.size) + sum(case.channels))
    dtype = torch.float32 if autocast else torch.bfloat16
    layer = case.layer()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (*case.batch, case.channels[0], *case.size)
    out = layer(torch.zeros(shape, dtype=torch.bfloat16)).shape
    rules = RECIPES[recipe]
    made = {
        "x": normal(*shape).to(dtype),
        "weight": (normal(*layer.weight.shape) * 0.1).to(dtype),
        "bias": normal(case.channels[1]).to(dtype),
        "dy": (normal(*out) * 1e-3).bfloat16(),
        "rht": rules.hadamard,
        "two_d": rules.two_d_weights,
        "backward_override": OVERRIDES[rules.backward],
        "recipe": recipe,
        "layer": (case.kind, case.arguments),
    }
    return made | ({"autocast": torch.bfloat16} if autocast else {})


ORACLE_CASES = {
    f"{name}-{recipe}": oracle_case(case, recipe)
    for (name, case), recipe in itertools.product(CASES.items(), (*FP4, "forward_only", "chain_rule"))
} | {
    f"{name}-{recipe}-autocast": oracle_case(CASES[name], recipe, autocast=True)
    for name, recipe in itertools.product(("pointwise", "same", "up"), (*FP4, "forward_only", "chain_rule"))
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    return run_oracle(ORACLE_CASES, tmp_path_factory.mktemp("te"))


def emulated(name: str) -> dict[str, Tensor]:
    case = ORACLE_CASES[name]
    kind, arguments = case["layer"]
    plain = getattr(nn, kind)(**arguments, dtype=case["weight"].dtype)
    plain.load_state_dict({"weight": case["weight"], "bias": case["bias"]})
    layer = LAYER_TYPES[type(plain)].from_float(plain, case["recipe"])
    x = case["x"].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="autocast" in case):
        y = layer(x)
    y.backward(case["dy"])
    return {"y": y.detach(), "dx": x.grad, "dw": layer.weight.grad, "db": layer.bias.grad}


def backward_of(name: str) -> Backward:
    return RECIPES[ORACLE_CASES[name]["recipe"]].backward


@pytest.mark.parametrize("name", ORACLE_CASES)
def test_equal_to_the_emulated_convolution(name: str, oracle: dict[str, dict[str, Tensor]]) -> None:
    found, expected = oracle[name], emulated(name)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        if key == "y" or (key in ("dx", "dw") and backward_of(name) is Backward.FP4):
            assert torch.equal(found[key], value), f"{key}: {(found[key] != value).sum()} of {value.numel()} differ"
        else:  # a product or a sum in high precision: its order of summation is the library's own
            assert (found[key] - value).norm() <= 2**-10 * value.norm(), key
    assert torch.equal(found["again"], found["y"])  # a deep copy makes its own te.Linear


@pytest.mark.parametrize("name", CASES)
def test_which_gradients_te_linear_computes(name: str, oracle: dict[str, dict[str, Tensor]]) -> None:
    both = 2 if CASES[name].plain else 1
    assert oracle[f"{name}-full"]["backward_products"] == both
    assert oracle[f"{name}-chain_rule"]["backward_products"] == both
    assert oracle[f"{name}-forward_only"]["backward_products"] == 1


def test_the_oracle_sees_the_techniques(oracle: dict[str, dict[str, Tensor]]) -> None:
    for name, case in CASES.items():
        full, rht, two_d = (oracle[f"{name}-{recipe}"] for recipe in ("full", "rht", "2d"))
        assert torch.equal(full["y"], rht["y"])
        assert not torch.equal(full["dw"], rht["dw"])
        assert not torch.equal(full["y"], two_d["y"]), case


def test_what_is_plain_is_what_the_cases_say() -> None:
    for case in CASES.values():
        layer = case.layer()
        assert is_matrix_product(layer, layer.weight) is case.plain  # type: ignore[arg-type]
    for layer in (
        nn.Conv2d(32, 32, 1, groups=2),
        nn.ConvTranspose2d(16, 16, 3, stride=2, padding=1),
        nn.ConvTranspose2d(16, 16, 2, stride=2, padding=1),
        nn.ConvTranspose2d(16, 16, 2, stride=2, dilation=2),
    ):
        assert not is_matrix_product(layer, layer.weight)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.kind.startswith("ConvTranspose")])
def test_the_matrix_is_the_im2col_matrix(name: str) -> None:
    case = CASES[name]
    layer = TE_CONV_TYPES[getattr(nn, case.kind)].from_float(case.layer(dtype=torch.float32), "full")
    x, geometry = layer._padded(torch.randn(2, case.channels[0], *case.size), layer.weight)  # type: ignore[operator]
    out = geometry.out_shape(tuple(x.shape[2:]))
    expected = reference.im2col(x, reference.Geometry(*dataclasses.astuple(geometry)))  # [pixel, tap, channel]
    pixels, _, channels = expected.shape
    expected = F.pad(expected, (0, -channels % 16)).flatten(1)
    if case.plain:
        assert torch.equal(_patches(x, geometry, out), expected)
    found = _im2col(x, geometry, out)
    assert found.shape[0] % 32 == found.shape[1] % 32 == 0
    assert torch.equal(found[:pixels, : expected.shape[1]], expected)
    assert found.abs().double().sum() == expected.abs().double().sum()  # the rest is zero


def test_dgrad_of_im2col_rounds_stochastically_as_the_emulation_does() -> None:
    torch.manual_seed(0)
    weight, dy = torch.randn(16, 16, 3, 3), torch.randn(2, 16, 6, 6)
    layer = LAYER_TYPES[nn.Conv2d](16, 16, 3, padding=1, bias=False, recipe="sr_rht_2d")
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    with torch.no_grad():
        layer.weight.copy_(weight)
    seed_rounding(layer, 1)
    layer(x).backward(dy)
    seed_rounding(layer, 1)
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    with keys_from(layer.history.next_key):
        found = _input_gradient(dy, weight, geometry, RECIPES["sr_rht_2d"], tuple(x.shape))
    assert torch.equal(found, x.grad)
    assert not torch.equal(found, _input_gradient(dy, weight, geometry, RECIPES["sr_rht_2d"], tuple(x.shape)))
