"""``NVFP4Conv1d``, ``2d`` and ``3d``: convolutions as implicit FP4 GEMMs.

Refused, by `ConfigError`: groups of fewer than 16 input or output channels (in a depthwise convolution, with one
channel a group, a block of 16 would be one number and 15 zeros). Channels that are no multiple of 16 are padded with
zeros inside each group and tap. Under autocast the input is cast before it is quantized, and the weight is not (see
`monai_fp4.quantization.layers.operands`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.layers.base import NVFP4Layer, add_bias, check_image, leaves_to_torch, working_dtype
from monai_fp4.quantization.layers.conv3d_guard import SafeConv3d
from monai_fp4.quantization.layers.conv_products import quantized_operands
from monai_fp4.quantization.layers.geometry import ConvGeometry, kernel_of, per_axis
from monai_fp4.quantization.layers.operators import convolve
from monai_fp4.quantization.numerics import BLOCK_SIZE

__all__ = ["NVFP4Conv1d", "NVFP4Conv2d", "NVFP4Conv3d", "check_groups"]


def check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    """Raise ConfigError for groups that are smaller than one block."""
    smallest = min(in_channels, out_channels) // groups
    if groups > 1 and smallest < BLOCK_SIZE:
        raise ConfigError(
            f"an NVFP4 convolution expected at least {BLOCK_SIZE} channels in a group, found {smallest} "
            f"({in_channels} to {out_channels} channels in {groups} groups); leave this layer in high precision"
        )


class _ConvNd(NVFP4Layer, nn.modules.conv._ConvNd):
    """The forward pass of a convolution in any number of dimensions."""

    def check(self) -> None:
        check_groups(self.in_channels, self.out_channels, self.groups)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve; called by the ``forward`` of the float class."""
        if not self.quantizing or leaves_to_torch(input):
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        return self.in_fp4(input, weight, lambda x: self._convolve(x, weight, bias))

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dims = weight.dim() - 2
        check_image(input, weight.shape[1] * max(1, self.groups), dims)
        dtype = working_dtype(input)
        batched = input.dim() == 2 + dims
        x, geometry = self._padded((input if batched else input.unsqueeze(0)).to(dtype), weight)
        y = add_bias(convolve(x, weight, geometry, self.recipe, dtype, self.history), bias, dims)
        return y if batched else y.squeeze(0)

    def _padded(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ConvGeometry]:
        """Pad ``x`` here where the geometry cannot: other modes than zeros, and more on one side than on the other."""
        kernel = kernel_of(self, weight)
        dims = len(kernel)
        stride, dilation = per_axis(self.stride, dims), per_axis(self.dilation, dims)
        padding: tuple[int, ...] = (0,) * dims
        if self.padding_mode != "zeros":  # which torch pads by the widths that it noted at construction
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
        elif self.padding == "same":
            if any(step != 1 for step in stride):
                raise ConfigError(
                    f"a convolution with padding 'same' expected stride 1, found {stride}: set one of them"
                )
            spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            padding = tuple(span // 2 for span in spans)
            if any(span % 2 for span in spans):
                x, padding = F.pad(x, [w for s in reversed(spans) for w in (s // 2, s - s // 2)]), (0,) * dims
        elif self.padding != "valid":
            padding = per_axis(self.padding, dims)
        return x, ConvGeometry(kernel, stride, padding, dilation, self.groups)

    @torch.no_grad()
    def quantized_operands(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the operands of fprop: input ``[N, C, *spatial]`` (padded, where not with zeros) and weight."""
        weight = self.weight.detach()
        x, geometry = self._padded(x.to(working_dtype(x)), weight)
        return quantized_operands(x, weight, geometry, self.recipe, transposed=False)


class NVFP4Conv1d(_ConvNd, nn.Conv1d):
    """``nn.Conv1d`` with its three GEMMs in FP4."""

    float_type = nn.Conv1d


class NVFP4Conv2d(_ConvNd, nn.Conv2d):
    """``nn.Conv2d`` with its three GEMMs in FP4.

    >>> _ = torch.manual_seed(0)
    >>> layer = NVFP4Conv2d(16, 32, 3, stride=2, padding=1, recipe="sr_rht_2d")
    >>> layer(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 32, 4, 4])
    """

    float_type = nn.Conv2d


class NVFP4Conv3d(_ConvNd, SafeConv3d):
    """``nn.Conv3d`` with its three GEMMs in FP4."""

    float_type = nn.Conv3d
