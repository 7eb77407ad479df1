"""Layers read what torch's layers read, at each call, and answer in the memory format that those do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from stand_ins import image
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import convert, set_active
from monai_fp4.quantization.kernels.dispatch import plain_torch
from monai_fp4.quantization.layers import NVFP4Layer

EXACT = 0.35
"""How far an FP4 product of random numbers may be from the exact one, as a share of its norm."""


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() < EXACT * expected.norm())


CHANGES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "dilated, as deeplab does": (
        lambda: nn.Conv2d(32, 32, 3, padding=1), (1, 32, 16, 16), {"dilation": (2, 2), "padding": (2, 2)}
    ),
    "padding taken away": (lambda: nn.Conv2d(32, 32, 3, padding=1), (1, 32, 8, 8), {"padding": (0, 0)}),
    "one number": (lambda: nn.Conv2d(32, 32, 3), (1, 32, 9, 9), {"padding": 2, "stride": 2, "dilation": 1}),
    "a list": (lambda: nn.Conv2d(32, 32, 3), (1, 32, 9, 9), {"padding": [1, 2], "stride": [2, 1]}),
    "same": (lambda: nn.Conv2d(32, 32, 4), (1, 32, 9, 9), {"padding": "same"}),
    "same, dilated": (lambda: nn.Conv2d(32, 32, 3, padding="same"), (1, 32, 9, 9), {"dilation": (2, 3)}),
    "valid": (lambda: nn.Conv2d(32, 32, 3, padding=1), (1, 32, 9, 9), {"padding": "valid"}),
    "stride": (lambda: nn.Conv3d(32, 32, 3, padding=1), (1, 32, 5, 6, 7), {"stride": (1, 2, 2)}),
    "padding mode": (lambda: nn.Conv1d(32, 32, 3, padding=2), (1, 32, 9), {"padding_mode": "circular"}),
    "padding of a mode, which torch notes": (
        lambda: nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"), (1, 32, 9, 9), {"padding": (0, 0)}
    ),
    "groups": (lambda: nn.Conv2d(64, 64, 3, groups=2), (1, 64, 8, 8), {"groups": 2}),
    "transposed": (
        lambda: nn.ConvTranspose2d(32, 32, 3, stride=2), (1, 32, 5, 5),
        {"padding": (1, 1), "output_padding": 1, "dilation": 2, "stride": 3},
    ),
    "features said wrongly": (lambda: nn.Linear(32, 48), (4, 32), {"in_features": 7, "out_features": 5}),
    "channels said wrongly": (lambda: nn.Conv2d(32, 48, 3), (1, 32, 8, 8), {"in_channels": 7, "kernel_size": (1, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_after_construction_counts(name: str, when: str, fast: bool) -> None:
    build, shape, change = CHANGES[name]
    torch.manual_seed(0)
    layer, x = build(), image(*shape)
    if when == "before" and "said wrongly" not in name:
        vars(layer).update(change)
    convert(layer, "full")
    assert isinstance(layer, NVFP4Layer)
    vars(layer).update(change)
    leaf = x.clone().requires_grad_()
    with nullcontext() if fast else plain_torch():
        found = layer(leaf)
        found.sum().backward()
    set_active(layer, False)
    assert close(found, layer(x))
    assert leaf.grad.shape == x.shape


def prune(layer: nn.Module, axis: int, keep: int, outputs: int) -> None:
    """Shorten one axis of a weight by hand, and the bias where it is the axis of the outputs."""
    layer.weight = nn.Parameter(layer.weight.detach().narrow(axis, 0, keep))
    if axis == outputs:
        layer.bias = nn.Parameter(layer.bias.detach()[:keep])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["linear", "conv", "transposed"])
def test_pruned_weights_work_as_in_torch(name: str, axis: int) -> None:
    build, shape = {
        "linear": (lambda: nn.Linear(48, 48), (4, 48)),
        "conv": (lambda: nn.Conv2d(48, 48, 3), (1, 48, 6, 6)),
        "transposed": (lambda: nn.ConvTranspose2d(48, 48, 2, stride=2), (1, 48, 6, 6)),
    }[name]
    layer, _ = convert(build(), "full")
    outputs = 1 if name == "transposed" else 0
    prune(layer, axis, 40, outputs)
    x = image(*shape)[:, : 48 if axis == outputs else 40]
    found = layer(x)
    found.sum().backward()
    set_active(layer, False)
    assert close(found, layer(x))


def test_sizes_that_do_not_fit_are_blamed_on_the_right_thing() -> None:
    layer, _ = convert(nn.Linear(48, 48), "full")
    layer.weight = nn.Parameter(layer.weight.detach()[:40])
    with pytest.raises(ConfigError, match=r"weight has 40 outputs expected as many biases, found shape \(48,\)"):
        layer(image(4, 48))
    with pytest.raises(ConfigError, match="weight takes 48 input features found an input of 40"):
        layer(image(4, 40))
    conv, _ = convert(nn.Conv2d(32, 32, 3, padding=1), "full")
    for attribute, value in (
        ("stride", 0),
        ("dilation", (0, 1)),
        ("padding", -1),
        ("groups", 0),
        ("stride", (1, 1, 1)),
    ):
        before = getattr(conv, attribute)
        setattr(conv, attribute, value)
        with pytest.raises(ConfigError, match=r"expected"):
            conv(image(1, 32, 8, 8))
        setattr(conv, attribute, before)


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2d": (lambda: nn.Conv2d(16, 32, 3, padding=1), (2, 16, 6, 7)),
    "2d, 1x1": (lambda: nn.Conv2d(16, 32, 1), (2, 16, 6, 7)),
    "2d, one pixel": (lambda: nn.Conv2d(16, 32, 3), (2, 16, 3, 3)),
    "2d, groups": (lambda: nn.Conv2d(32, 32, 3, groups=2), (2, 32, 6, 7)),
    "2d, transposed": (lambda: nn.ConvTranspose2d(16, 32, 2, stride=2), (2, 16, 6, 7)),
    "1d": (lambda: nn.Conv1d(16, 32, 3), (2, 16, 7)),
    "3d": (lambda: nn.Conv3d(16, 32, 3, padding=1), (2, 16, 4, 5, 6)),
    "3d, transposed": (lambda: nn.ConvTranspose3d(16, 32, 2, stride=2), (2, 16, 3, 4, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_answer_lies_in_memory_as_torchs_does(name: str) -> None:
    build, shape = CONVOLUTIONS[name]
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
    for of_input, of_weight in itertools.product((torch.contiguous_format, last), repeat=2):
        layer = build()
        layer.weight.data = layer.weight.data.contiguous(memory_format=of_weight)
        x = image(*shape).contiguous(memory_format=of_input)
        expected = layer(x)
        convert(layer, "full")
        for path in (nullcontext, plain_torch):
            with path():
                found = layer(x)
            for memory_format in {torch.contiguous_format, last}:
                asked = {"memory_format": memory_format}
                assert found.is_contiguous(**asked) == expected.is_contiguous(**asked), (of_input, of_weight)
            assert found.is_contiguous() == expected.is_contiguous()
            if expected.is_contiguous():
                assert found.view(-1).shape == expected.view(-1).shape
