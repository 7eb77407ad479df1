"""Convolutions that compute with ``te.Linear`` and look like torch's from outside.

No library has an NVFP4 convolution for training, but a convolution is a matrix product, and of three kinds:

* **A plain product** (`is_matrix_product`), where no pixel is in more than one patch: 1x1 convolutions, patch
  embeddings (kernel = stride, no padding), and transposed convolutions with kernel = stride. All three GEMMs are
  te.Linear's.
* **im2col**: any other convolution. Its patches overlap, so the input is copied once for each tap of the kernel (9
  times for 3x3) into the matrix that te.Linear multiplies. fprop and wgrad are te.Linear's. dgrad is not: te.Linear
  would round the gradient of the matrix to BF16 before the taps of a pixel are added up, and the FP4 product that
  `monai_fp4.quantization.layers.products` defines adds them up in FP32. The emulation computes it, from the same FP4
  values, without a matrix.
* A transposed convolution whose taps overlap has the same trouble in its fprop. It is not taken, nor are groups.

K is ordered (kernel tap, channel), and channels are padded to 16 inside a tap, so that no block of 16 holds numbers of
two taps. The matrix goes to te.Linear whole: it takes the maximum of what it is given, and so parts of the matrix would
be quantized with other maxima than the whole.

**Not run on hardware yet**; tested around the real ``te.Linear`` with TE's reference quantizer
(tests/quantization/backends/test_te_conv.py).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_fp4.quantization.backends.te_product import MULTIPLE, TEProduct, WithInputGradient, pad_axis
from monai_fp4.quantization.layers import (
    NVFP4Conv1d,
    NVFP4Conv2d,
    NVFP4Conv3d,
    NVFP4ConvTranspose1d,
    NVFP4ConvTranspose2d,
    NVFP4ConvTranspose3d,
)
from monai_fp4.quantization.layers.base import check_image
from monai_fp4.quantization.layers.conv import _ConvNd
from monai_fp4.quantization.layers.conv_products import ConvSpec
from monai_fp4.quantization.layers.gemm import input_gradient
from monai_fp4.quantization.layers.geometry import ConvGeometry, kernel_of, per_axis
from monai_fp4.quantization.layers.operands import as_kernel, kernel_values
from monai_fp4.quantization.layers.transpose import _ConvTransposeNd
from monai_fp4.quantization.numerics import BLOCK_SIZE, decode
from monai_fp4.quantization.recipes import Backward, Recipe

__all__ = [
    "TE_CONV_TYPES",
    "TEConv1d",
    "TEConv2d",
    "TEConv3d",
    "TEConvTranspose1d",
    "TEConvTranspose2d",
    "TEConvTranspose3d",
    "is_matrix_product",
]


def is_matrix_product(layer: nn.modules.conv._ConvNd, weight: Tensor) -> bool:
    """Whether a convolution or transposed convolution (a float layer or ours) with a weight is a plain matrix product.

    Padding in another mode than zeros is done before the product and does not count.
    """
    kernel = kernel_of(layer, weight)
    stride, dilation = per_axis(layer.stride, len(kernel)), per_axis(layer.dilation, len(kernel))
    axes = list(zip(kernel, stride, dilation, strict=True))
    if layer.groups != 1:
        return False
    if layer.padding in ("same", "valid"):
        padded = layer.padding == "same" and any(k > 1 for k in kernel)
    else:
        padded = any(per_axis(layer.padding, len(kernel)))
    if layer.transposed:
        return not padded and all(k == s and (d == 1 or k == 1) for k, s, d in axes)
    return not (padded and layer.padding_mode == "zeros") and all(k == 1 or (k <= s and d == 1) for k, s, d in axes)


class _TEConvNd(TEProduct, _ConvNd):
    """The forward pass of a convolution in any number of dimensions."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve; called by the ``forward`` of the float class."""
        if not self.on_te(input, weight):
            return super()._conv_forward(input, weight, bias)
        return self.in_fp4(input, weight, lambda x: self._convolve_by_te(x, weight, bias), operators=False)

    def _convolve_by_te(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dims, direct = weight.dim() - 2, is_matrix_product(self, weight)
        check_image(input, weight.shape[1] * self.groups, dims)
        batched = input.dim() == 2 + dims
        x, geometry = self._padded((input if batched else input.unsqueeze(0)).to(torch.bfloat16), weight)
        out = geometry.out_shape(tuple(x.shape[2:]))
        matrix = pad_axis(weight.movedim(1, -1), -1, BLOCK_SIZE).flatten(1)  # [A, (tap, B padded to 16)]
        rows = _patches(x, geometry, out) if direct else _im2col(x.detach(), geometry, out)
        y = self.product(rows, matrix)[: x.shape[0] * math.prod(out)]
        y = y.unflatten(0, (x.shape[0], *out)).movedim(-1, 1)
        if not direct:
            recipe, shape = self.recipe, tuple(x.shape)
            y = WithInputGradient.apply(y, x, weight, lambda dy, w: _input_gradient(dy, w, geometry, recipe, shape))
        if bias is not None:
            y = y + bias.to(y.dtype).view(-1, *(1,) * dims)
        return y if batched else y.squeeze(0)


class TEConv1d(_TEConvNd, NVFP4Conv1d):
    """``nn.Conv1d`` by Transformer Engine where it can, by the emulation where it cannot."""


class TEConv2d(_TEConvNd, NVFP4Conv2d):
    """``nn.Conv2d`` by Transformer Engine where it can, by the emulation where it cannot."""


class TEConv3d(_TEConvNd, NVFP4Conv3d):
    """``nn.Conv3d`` by Transformer Engine where it can, by the emulation where it cannot."""


class _TEConvTransposeNd(TEProduct, _ConvTransposeNd):
    """The forward pass of a transposed convolution with kernel = stride in any number of dimensions."""

    def _transpose_forward(self, input: Tensor, weight: Tensor, output_size: list[int] | None) -> Tensor:
        """Apply the layer with a weight; called by ``forward``."""
        if not is_matrix_product(self, weight) or not self.on_te(input, weight):
            return super()._transpose_forward(input, weight, output_size)
        return self.in_fp4(input, weight, lambda x: self._spread_by_te(x, weight, output_size), operators=False)

    def _spread_by_te(self, input: Tensor, weight: Tensor, output_size: list[int] | None) -> Tensor:
        geometry = self._geometry(weight)
        kernel, dims = geometry.kernel, len(geometry.kernel)
        check_image(input, weight.shape[0], dims)
        extra = self._extra(input, output_size, geometry)
        batched = input.dim() == 2 + dims
        x = (input if batched else input.unsqueeze(0)).to(torch.bfloat16).movedim(1, -1)
        taps = pad_axis(weight.movedim((0, 1), (-1, -2)), -2, BLOCK_SIZE)  # [*k, A padded to 16, B]
        y = self.product(x.flatten(0, -2), taps.flatten(0, -2))
        y = y.unflatten(1, (*kernel, -1))[..., : weight.shape[1]].unflatten(0, x.shape[:-1])  # [N, *in, *k, A]
        y = y.permute(0, 1 + 2 * dims, *(axis for i in range(dims) for axis in (1 + i, 1 + dims + i)))
        for axis in range(2, 2 + dims):
            y = y.flatten(axis, axis + 1)
        if any(extra):  # pixels that no tap reaches: zero, before the bias
            y = F.pad(y, [width for e in reversed(extra) for width in (0, e)])
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).view(-1, *(1,) * dims)
        return y if batched else y.squeeze(0)


class TEConvTranspose1d(_TEConvTransposeNd, NVFP4ConvTranspose1d):
    """``nn.ConvTranspose1d`` by Transformer Engine where it can, by the emulation where it cannot."""


class TEConvTranspose2d(_TEConvTransposeNd, NVFP4ConvTranspose2d):
    """``nn.ConvTranspose2d`` by Transformer Engine where it can, by the emulation where it cannot."""


class TEConvTranspose3d(_TEConvTransposeNd, NVFP4ConvTranspose3d):
    """``nn.ConvTranspose3d`` by Transformer Engine where it can, by the emulation where it cannot."""


TE_CONV_TYPES: dict[type[nn.Module], type[_TEConvNd | _TEConvTransposeNd]] = {
    layer.float_type: layer
    for layer in (TEConv1d, TEConv2d, TEConv3d, TEConvTranspose1d, TEConvTranspose2d, TEConvTranspose3d)
}
"""The layer for each class of torch's."""


def _patches(x: Tensor, geometry: ConvGeometry, out: tuple[int, ...]) -> Tensor:
    """The matrix ``[pixel, (tap, B padded to 16)]`` of patches that do not overlap: the image, rearranged."""
    dims = len(out)
    spatial = x.shape[2:]
    widths = [w for n, o, s in reversed(list(zip(spatial, out, geometry.stride, strict=True))) for w in (0, o * s - n)]
    if any(widths):  # what lies behind the last patch is cut off, and what a stride skips behind it is filled up
        x = F.pad(x, widths)
    for i, (o, s, k) in enumerate(zip(out, geometry.stride, geometry.kernel, strict=True)):
        x = x.unflatten(2 + 2 * i, (o, s)).narrow(3 + 2 * i, 0, k)
    x = x.permute(0, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2), 1)  # [N, *out, *k, B]
    return pad_axis(x, -1, BLOCK_SIZE).flatten(1 + dims).flatten(0, dims)


def _im2col(x: Tensor, geometry: ConvGeometry, out: tuple[int, ...]) -> Tensor:
    """The matrix ``[pixel, (tap, B padded to 16)]`` of any ungrouped convolution, padded for te.Linear."""
    channels = x.shape[1]
    width = channels + -channels % BLOCK_SIZE
    pixels, columns = x.shape[0] * math.prod(out), math.prod(geometry.kernel) * width
    whole = channels == width and pixels % MULTIPLE == columns % MULTIPLE == 0
    sizes = (pixels + -pixels % MULTIPLE, columns + -columns % MULTIPLE)
    matrix = x.new_empty(sizes) if whole else x.new_zeros(sizes)
    taps = matrix[:pixels, :columns].unflatten(1, (-1, width)).unflatten(0, (x.shape[0], *out))
    padded = geometry.pad(x)
    for i, tap in enumerate(itertools.product(*(range(k) for k in geometry.kernel))):
        taps[..., i, :channels] = geometry.tap(padded, tap, out).movedim(1, -1)
    return matrix


def _input_gradient(
    dy: Tensor, weight: Tensor, geometry: ConvGeometry, recipe: Recipe, image_shape: tuple[int, ...]
) -> Tensor:
    """The dgrad of the emulated convolution: the taps of a pixel are added up in FP32, and rounded to BF16 once."""
    if recipe.backward is Backward.DEQUANTIZED:
        b = kernel_values(weight, geometry.groups, recipe.encodings.weight, along_first=False)
        weight = as_kernel(decode(b, dy.dtype), along_first=False)
    return input_gradient(dy, weight, ConvSpec(geometry, recipe, dy.dtype, False, image_shape))
