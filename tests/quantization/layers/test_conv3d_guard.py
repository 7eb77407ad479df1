"""Kernel gradients of thin 3D convolutions in BF16, against FP64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_fp4.quantization.conversion import convert
from monai_fp4.quantization.layers.conv3d_guard import guard_conv3d

SIZES = [(2, 8, 8), (2, 2, 2), (1, 8, 8), (8, 2, 8), (4, 4, 4)]


def kernel_gradient(layer: nn.Module, x: Tensor, *, amp: bool) -> Tensor:
    layer.zero_grad()
    for size in (10**4, 10**5, 10**6):
        torch.full((size,), float("nan"))  # what the allocator hands out next is not zero
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        y = layer(x)
    assert y.dtype is (torch.bfloat16 if amp else x.dtype)
    y.backward(torch.ones_like(y).cumsum(-1))
    assert layer.weight.grad is not None
    return layer.weight.grad.double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    error = ((found - expected).norm() / expected.norm()).item()
    return error if error == error else float("inf")


@pytest.mark.parametrize("recipe", ["bf16", "forward_only", "chain_rule", "sr"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_kernels_gradient_is_right(size: tuple[int, ...], recipe: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(32, 32, 3, padding=1))
    x = torch.randn(2, 32, *size)
    expected = kernel_gradient(nn.Conv3d(32, 32, 3, padding=1, dtype=torch.float64), x.double(), amp=False)
    network, _ = convert(network, recipe, skip=())
    guard_conv3d(network)
    for _ in range(3):
        # FP4 rounds coarsely; what the fault gives is off by orders of magnitude.
        assert relative_error(kernel_gradient(network[0], x, amp=True), expected) < (0.35 if recipe == "sr" else 0.2)
