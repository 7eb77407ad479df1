"""Layers on the compiled CPU products against the same layers in plain torch, which have their own oracles."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from compiled_kernels import needs_bf16
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.kernels.dispatch import plain_torch
from monai_fp4.quantization.layers import LAYER_TYPES, seed_rounding
from monai_fp4.quantization.layers.cpu_operands import quantized, swap_pairs
from monai_fp4.quantization.recipes import Encoding

pytestmark = needs_bf16

RECIPES = ["full", "sr_rht_2d", "sr", "rht", "2d", "chain_rule", "forward_only"]

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(48, 40), (5, 7, 48)),
    "linear, odd sizes": (lambda: nn.Linear(37, 50, bias=False), (33, 37)),
    "3x3": (lambda: nn.Conv2d(32, 48, 3, padding=1), (2, 32, 16, 16)),
    "3x3, stride 2": (lambda: nn.Conv2d(32, 48, 3, padding=1, stride=2), (2, 32, 32, 32)),
    "3x3, odd sizes": (lambda: nn.Conv2d(20, 24, 3, padding=1), (2, 20, 7, 9)),
    "1x1, stride 2": (lambda: nn.Conv2d(32, 16, 1, stride=2), (1, 32, 32, 32)),
    "3x5, dilated": (
        lambda: nn.Conv2d(16, 16, (3, 5), padding=(2, 1), dilation=(2, 1), stride=(1, 2)),
        (2, 16, 11, 34),
    ),
    "kernel = stride": (lambda: nn.Conv2d(16, 32, 2, stride=2), (2, 16, 16, 32)),
    "kernel < stride": (lambda: nn.Conv2d(16, 32, 2, stride=3), (2, 16, 17, 50)),
    "transposed 3x3": (
        lambda: nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1),
        (2, 32, 16, 16),
    ),
    "transposed, kernel = stride": (lambda: nn.ConvTranspose2d(32, 16, 2, stride=2), (2, 32, 5, 6)),
    "transposed, kernel < stride": (lambda: nn.ConvTranspose2d(32, 16, 2, stride=3, output_padding=1), (2, 32, 5, 6)),
    "1d": (lambda: nn.Conv1d(16, 32, 3, padding=1), (2, 16, 32)),
    "1d, transposed": (lambda: nn.ConvTranspose1d(16, 32, 4, stride=2, padding=1), (2, 16, 16)),
    "3d": (lambda: nn.Conv3d(16, 32, 3, padding=1), (1, 16, 6, 7, 16)),
    "3d, transposed": (
        lambda: nn.ConvTranspose3d(16, 32, 3, stride=2, padding=1, output_padding=1),
        (1, 16, 4, 3, 8),
    ),
    "groups stay in plain torch": (lambda: nn.Conv2d(64, 32, 3, padding=1, groups=2), (2, 64, 16, 16)),
}


def step(layer: nn.Module, x: Tensor, *, amp: bool, in_plain: bool) -> dict[str, Tensor]:
    """Output and gradients, with the same random bits every time."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    seed_rounding(layer, 3)
    with plain_torch() if in_plain else nullcontext():
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            y = layer(x)
        generator = torch.Generator().manual_seed(4)
        y.backward(torch.randint(-8, 9, y.shape, generator=generator).to(y.dtype))
    gradients = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    return {"output": y.detach(), "input": x.grad, **gradients}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_plain_torch(name: str, recipe: str) -> None:
    build, shape = CASES[name]
    torch.manual_seed(0)
    module = build()
    layer = LAYER_TYPES[type(module)].from_float(module, recipe)
    x = torch.randn(shape)
    layouts = [x, x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else [x]
    for image in layouts:
        for amp in (False, True):
            ours = step(layer, image, amp=amp, in_plain=False)
            plains = step(layer, image, amp=amp, in_plain=True)
            for what, expected in plains.items():
                found = ours[what]
                assert found.dtype is expected.dtype and found.shape == expected.shape, what
                # FP32 sums in another order: a few parts in 2^24; in BF16 that may turn a rounding, one part in 2^8.
                error = (found - expected).norm() / expected.norm()
                assert error < (2e-4 if amp else 1e-6), what


@pytest.mark.parametrize("recipe", ["full", "sr_rht_2d"])
def test_sums_that_fp32_holds_are_equal_bit_for_bit(recipe: str) -> None:
    """With few distinct magnitudes every partial sum is exact, in whatever order it is formed."""
    torch.manual_seed(0)
    module = nn.Conv2d(32, 32, 3, padding=1, bias=False)
    nn.init.constant_(module.weight, 0.5)
    module.weight.data[::2].neg_()
    layer = LAYER_TYPES[nn.Conv2d].from_float(module, recipe)
    x = torch.randint(0, 2, (2, 32, 16, 16)) * 6.0
    ours, plains = (step(layer, x, amp=False, in_plain=in_plain) for in_plain in (False, True))
    assert torch.equal(ours["output"], plains["output"])
    assert torch.equal(ours["input"], plains["input"])


def test_nan_reaches_every_result() -> None:
    layer = LAYER_TYPES[nn.Conv2d].from_float(nn.Conv2d(16, 16, 3, padding=1), "sr_rht_2d")
    x = torch.randn(1, 16, 16, 16)
    x[0, 3, 4, 5] = torch.nan
    results = step(layer, x, amp=True, in_plain=False)
    assert results["output"].isnan().all() and results["weight"].isnan().any()


def test_the_output_is_no_view_and_may_be_changed_in_place() -> None:
    layer = LAYER_TYPES[nn.Conv2d].from_float(nn.Conv2d(16, 16, 3, padding=1, bias=False), "full")
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = layer(torch.randn(1, 16, 8, 8).contiguous(memory_format=memory_format))
        assert y._base is None and y.is_contiguous(memory_format=memory_format)
        y.relu_().sum().backward()


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 70), length=st.integers(1, 70), taps=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_swapped_pairs_are_those_of_the_transposed_matrix(rows: int, length: int, taps: int, seed: int) -> None:
    weight = torch.randn(taps, rows, length, generator=torch.Generator().manual_seed(seed))
    swapped = swap_pairs(quantized(weight, Encoding(two_d=True), pairs=True), length)
    expected = quantized(weight.mT, Encoding(two_d=True), pairs=True)
    assert torch.equal(swapped.values, expected.values) and torch.equal(swapped.amax, expected.amax)


def test_backward_of_a_forward_in_plain_torch() -> None:
    """As under ``torch.compile``, which may trace the forward pass alone."""
    layer = LAYER_TYPES[nn.Linear].from_float(nn.Linear(48, 40), "sr_rht_2d")
    x = torch.randn(32, 48)
    gradients = []
    for forward, backward in ((plain_torch, nullcontext), (nullcontext, nullcontext), (nullcontext, plain_torch)):
        leaf = x.clone().requires_grad_()
        seed_rounding(layer, 3)
        with forward():
            y = layer(leaf)
        with backward():
            y.square().sum().backward()
        gradients.append(leaf.grad)
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other)


def test_inputs_that_do_not_fit_are_refused() -> None:
    """The products read memory by the sizes that they are given: a wrong one must not reach them."""
    linear = LAYER_TYPES[nn.Linear].from_float(nn.Linear(32, 16), "sr_rht_2d")
    for features in (30, 48, 640):
        with pytest.raises(ConfigError, match=f"32 input features found an input of {features}"):
            linear(torch.ones(4, features))
    conv = LAYER_TYPES[nn.Conv2d].from_float(nn.Conv2d(32, 16, 3), "sr_rht_2d")
    for channels in (48, 31, 30, 20):
        with pytest.raises(ConfigError, match=f"takes 32 channels found an image of {channels}"):
            conv(torch.ones(1, channels, 8, 8))
    up = LAYER_TYPES[nn.ConvTranspose2d].from_float(nn.ConvTranspose2d(16, 16, 2, stride=2), "sr")
    with pytest.raises(ConfigError, match="takes 16 channels found an image of 15"):
        up(torch.ones(1, 15, 8, 8))
    with pytest.raises(ConfigError, match="expected 4 axes"):
        conv(torch.ones(32, 8))
    with pytest.raises(ConfigError, match="found an input of 0"):
        linear(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="that the kernel fits in"):
        conv(torch.ones(1, 32, 2, 2))


def test_a_weight_elsewhere_is_refused() -> None:
    layer = LAYER_TYPES[nn.Linear].from_float(nn.Linear(32, 16, device="meta"), "sr_rht_2d")
    with pytest.raises(ConfigError, match="belong on one device"):
        layer(torch.ones(4, 32))


def test_shapes_can_be_computed_without_data() -> None:
    layer = LAYER_TYPES[nn.Linear].from_float(nn.Linear(32, 16, device="meta"), "sr_rht_2d")
    assert layer(torch.empty(4, 32, device="meta")).shape == (4, 16)
