"""``NVFP4ConvTranspose1d``, ``2d`` and ``3d``: the adjoints of convolutions, as implicit FP4 GEMMs.

The input is quantized along its channels and the kernel along the same axis. With kernel = stride every output pixel is
one dot product and the layer is a plain GEMM; otherwise the GEMM's results of several taps are summed in FP32 first.

Refused, by `ConfigError`: groups of fewer than 16 channels, as in convolutions; and an ``output_padding`` as large as
the stride (torch allows it with dilation), which makes an output that no convolution of that stride maps back to the
input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.layers.base import NVFP4Layer, add_bias, check_image, leaves_to_torch, working_dtype
from monai_fp4.quantization.layers.conv import check_groups
from monai_fp4.quantization.layers.conv_products import quantized_operands
from monai_fp4.quantization.layers.geometry import ConvGeometry, kernel_of, per_axis
from monai_fp4.quantization.layers.operators import convolve

__all__ = ["NVFP4ConvTranspose1d", "NVFP4ConvTranspose2d", "NVFP4ConvTranspose3d"]


class _ConvTransposeNd(NVFP4Layer, nn.modules.conv._ConvTransposeNd):
    """The forward pass of a transposed convolution in any number of dimensions."""

    def check(self) -> None:
        check_groups(self.in_channels, self.out_channels, self.groups)
        dims = len(self.kernel_size)
        self._check_output_padding(per_axis(self.output_padding, dims))

    def _check_output_padding(self, output_padding: tuple[int, ...]) -> None:
        stride = per_axis(self.stride, len(output_padding))
        if any(extra >= step for extra, step in zip(output_padding, stride, strict=True)):
            raise ConfigError(
                f"an NVFP4 transposed convolution expected output_padding below its stride {stride}, "
                f"found {output_padding}; leave this layer in high precision"
            )

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the layer to ``[N, in_channels, *spatial]``."""
        if not self.quantizing or leaves_to_torch(input):
            return super().forward(input, output_size)  # type: ignore[misc]
        return self._transpose_forward(input, self.weight, output_size)

    def _transpose_forward(self, input: Tensor, weight: Tensor, output_size: list[int] | None) -> Tensor:
        """Apply the layer with a weight, in FP4."""
        return self.in_fp4(input, weight, lambda x: self._spread(x, weight, output_size))

    def _spread(self, input: Tensor, weight: Tensor, output_size: list[int] | None) -> Tensor:
        geometry = self._geometry(weight)
        dims = len(geometry.kernel)
        check_image(input, weight.shape[0], dims)
        dtype = working_dtype(input)
        extra = self._extra(input, output_size, geometry)
        batched = input.dim() == 2 + dims
        x = (input if batched else input.unsqueeze(0)).to(dtype)
        y = add_bias(convolve(x, weight, geometry, self.recipe, dtype, self.history, extra), self.bias, dims)
        return y if batched else y.squeeze(0)

    def _extra(self, input: Tensor, output_size: list[int] | None, geometry: ConvGeometry) -> tuple[int, ...]:
        """The output padding of this call, one number for each axis."""
        dims = len(geometry.kernel)
        sides = (geometry.stride, geometry.padding, geometry.kernel)
        found = self._output_padding(input, output_size, *sides, dims, geometry.dilation)  # type: ignore[arg-type]
        extra = per_axis(found[0] if len(found) == 1 else found, dims)
        self._check_output_padding(extra)
        return extra

    def _geometry(self, weight: Tensor) -> ConvGeometry:
        kernel = kernel_of(self, weight)
        stride, padding, dilation = (
            per_axis(value, len(kernel))
            for value in (self.stride, self.padding, self.dilation)  # type: ignore[arg-type]
        )
        return ConvGeometry(kernel, stride, padding, dilation, self.groups)

    @torch.no_grad()
    def quantized_operands(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the operands of fprop: input ``[N, C, *spatial]`` and weight, each as (original, decoded)."""
        x, weight = x.to(working_dtype(x)), self.weight.detach()
        return quantized_operands(x, weight, self._geometry(weight), self.recipe, transposed=True)


class NVFP4ConvTranspose1d(_ConvTransposeNd, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with its three GEMMs in FP4."""

    float_type = nn.ConvTranspose1d


class NVFP4ConvTranspose2d(_ConvTransposeNd, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with its three GEMMs in FP4.

    >>> _ = torch.manual_seed(0)
    >>> layer = NVFP4ConvTranspose2d(32, 16, 2, stride=2, recipe="full")
    >>> layer(torch.randn(1, 32, 4, 4)).shape
    torch.Size([1, 16, 8, 8])
    """

    float_type = nn.ConvTranspose2d


class NVFP4ConvTranspose3d(_ConvTransposeNd, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with its three GEMMs in FP4."""

    float_type = nn.ConvTranspose3d
