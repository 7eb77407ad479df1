"""A way around a fault of PyTorch: gradients of thin 3D convolutions in BF16 on a CPU.

With torch 2.13 (oneDNN on AVX512_BF16), the gradient of a 3D kernel reads memory that nobody wrote when the volume has
fewer slices than the kernel, as at the deepest level of a UNet on 32 slices: the result is noise, NaN or 1e36, and
differs from one call to the next. A run would stop at NaN, but be spoilt by the noise without a word. Such
convolutions are computed in FP32 here; they are the smallest of a network. Two dimensions are not affected.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SafeConv3d", "guard_conv3d", "is_thin"]


def is_thin(x: Tensor, depth: int, dtype: torch.dtype) -> bool:
    """Whether ``x``, ``[N, C, D, H, W]``, would give a kernel of that depth a wrong gradient in ``dtype``."""
    return x.is_cpu and dtype is torch.bfloat16 and x.ndim == 5 and x.shape[2] < depth


class SafeConv3d(nn.Conv3d):
    """``nn.Conv3d``, in FP32 where BF16 would give wrong gradients; same parameters, same dtype of the result."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
        if not is_thin(input, self.kernel_size[0], dtype):
            return super()._conv_forward(input, weight, bias)
        with torch.autocast("cpu", enabled=False):
            wide = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return wide.to(dtype)


def guard_conv3d(network: nn.Module) -> nn.Module:
    """Turn every plain ``nn.Conv3d`` of a network into a :class:`SafeConv3d`, in place.

    >>> type(guard_conv3d(nn.Sequential(nn.Conv3d(1, 1, 3)))[0]).__name__
    'SafeConv3d'
    """
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = SafeConv3d
    return network
