"""The three products of a convolution, on operands that are quantized already or about to be.

=================  ==========================================  ========================  =====================
product            computes                                    convolution               transposed convolution
=================  ==========================================  ========================  =====================
`gather`           pixels = image * kernel                     fprop                     dgrad
`scatter`          image = adjoint of that, pixels * kernel    dgrad                     fprop
`weight_product`   kernel = image * pixels, over all pixels    wgrad                     wgrad
=================  ==========================================  ========================  =====================

The first two reduce over (tap, channel). A pixel is quantized once along its channels and a plain torch convolution of
``q * s`` follows; that equals the GEMM on the explicit im2col matrix, in which the same quantized pixel would stand
once per tap. The order of FP32 summation is the convolution kernel's own, so results agree with an explicit GEMM to
within ``K * 2**-23 * sum |a * b|`` (K terms), and bit for bit where the sums are exact in FP32.

The third reduces over output pixels in the order (n, oh, ow). There each tap sees the image shifted, so its blocks of
16 hold other numbers, and the im2col matrix defines what is meant: each of its columns is quantized along the pixels,
with one maximum for the whole matrix. `weight_product` walks through it a part at a time.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from monai_fp4.quantization.layers.conv3d_guard import is_thin
from monai_fp4.quantization.layers.geometry import ConvGeometry
from monai_fp4.quantization.layers.operands import quantized, rotated_product
from monai_fp4.quantization.numerics import BLOCK_SIZE, Scheme, gemm_alpha, pad_last, rotate
from monai_fp4.quantization.recipes import Encoding

__all__ = ["correlate", "gather", "rotated_weight_product", "scatter", "weight_product"]

_backward = torch.ops.aten.convolution_backward


def gather(image: Tensor, kernel: Tensor, geometry: ConvGeometry) -> Tensor:
    """Convolve ``[N, B, *spatial]`` with ``[A, B / groups, *k]`` to ``[N, A, *out]``."""
    return torch.convolution(image, kernel, None, *geometry.arguments())


def scatter(pixels: Tensor, kernel: Tensor, image_shape: tuple[int, ...], geometry: ConvGeometry) -> Tensor:
    """Apply the adjoint of `gather` to ``[N, A, *out]``; ``image_shape`` is ``[N, B, *spatial]``."""
    image = pixels.new_empty(1).expand(image_shape)
    return _backward(pixels, image, kernel, None, *geometry.arguments(), [True, False, False])[0]


def correlate(image: Tensor, pixels: Tensor, kernel_shape: tuple[int, ...], geometry: ConvGeometry) -> Tensor:
    """Sum image times pixels over all pixels, for every tap: the gradient of the kernel, in high precision."""
    dtype = image.dtype
    if is_thin(image, kernel_shape[2], dtype):
        image, pixels = image.float(), pixels.float()
    kernel = pixels.new_empty(1).expand(kernel_shape)
    return _backward(pixels, image, kernel, None, *geometry.arguments(), [False, True, False])[1].to(dtype)


def weight_product(
    image: Tensor,
    pixels: Tensor,
    kernel_shape: tuple[int, ...],
    geometry: ConvGeometry,
    how: tuple[Encoding, Encoding],
) -> Tensor:
    """Quantize both operands along the pixels, as columns of the im2col matrix, and multiply to the kernel's gradient.

    Args:
        image: ``[N, B, *spatial]``, high precision.
        pixels: ``[N, A, *out]``, high precision.
        kernel_shape: ``[A, B / groups, *k]``, the shape of the result.
        geometry: how the image maps to the pixels.
        how: the encodings of image and pixels, of equal block sizes, both rotated or neither. Where the image is
            rounded stochastically, parts of the im2col matrix that are the same blocks share one draw.
    """
    by_rows = geometry.out_shape(tuple(image.shape[2:]))[-1] % how[0].scheme.block_size == 0
    product = _by_rows if by_rows else _by_taps
    kernel, image_amax, pixels_amax = product(image, pixels, kernel_shape, geometry, *how)
    return kernel.mul_(gemm_alpha(image_amax, pixels_amax, how[0].scheme.bound, how[1].scheme.bound))


def rotated_weight_product(
    image: Tensor, pixels: Tensor, kernel_shape: tuple[int, ...], geometry: ConvGeometry
) -> Tensor:
    """Multiply both operands of `weight_product` rotated and not quantized, in the dtype of the image."""
    out, groups = geometry.out_shape(tuple(image.shape[2:])), geometry.groups
    padded, kernel = geometry.pad(image), image.new_empty(kernel_shape)
    y = pixels.transpose(0, 1).flatten(1).unflatten(0, (groups, -1))
    for index, tap in enumerate(itertools.product(*(range(k) for k in geometry.kernel))):
        x = geometry.tap(padded, tap, out).transpose(0, 1).flatten(1).unflatten(0, (groups, -1))
        kernel.flatten(2)[..., index] = rotated_product(y, x, image.dtype).flatten(0, 1)
    return kernel


def _by_rows(
    image: Tensor,
    pixels: Tensor,
    kernel_shape: tuple[int, ...],
    geometry: ConvGeometry,
    image_how: Encoding,
    pixels_how: Encoding,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the fast way, for rows of output pixels that are whole blocks.

    No block crosses the end of a row, so taps that differ only in their row see the same blocks: the image is quantized
    once for each tap of the last axis (3 times for a 3x3 kernel, not 9). These copies stand beside each other as
    channels, and a convolution over the other axes does the rest.
    """
    taps, stride, dilation, groups = geometry.kernel[-1], geometry.stride[-1], geometry.dilation[-1], geometry.groups
    others = geometry.without_last_axis()
    padded = geometry.only_last_axis().pad(image).unflatten(1, (groups, -1))
    windows = padded.unfold(-1, (taps - 1) * dilation + 1, stride)[..., ::dilation]  # a view, its last axis the taps
    copies = windows.movedim(-1, 2)  # [N, groups, taps, B / groups, *rows, OW]
    if image_how.rht:
        copies = rotate(copies)
    elif padded.stride(-1) == 1:
        copies = copies.contiguous()  # else the taps would come out interleaved
    amax = others.amax_used(copies.flatten(1, 3)) if image_how.rht else geometry.amax_used(image)
    # Random bits are counted in one order of the axes on every backend: [taps, N, *rows, channels, OW].
    ordered = copies.movedim((2, 1, 3), (0, -3, -2))
    x = quantized(ordered, image_how._replace(rht=False), amax)
    y = quantized(pixels.movedim(1, -2), pixels_how)
    image_values = x.values.movedim((0, -3, -2), (2, 1, 3)).flatten(1, 3)
    outputs, inputs, *kernel = kernel_shape
    gradient = correlate(image_values, y.values.movedim(-2, 1), (outputs, taps * inputs, *kernel[:-1], 1), others)
    return gradient.squeeze(-1).unflatten(1, (taps, inputs)).movedim(1, -1).contiguous(), x.amax, y.amax


def _by_taps(
    image: Tensor,
    pixels: Tensor,
    kernel_shape: tuple[int, ...],
    geometry: ConvGeometry,
    image_how: Encoding,
    pixels_how: Encoding,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the general way: the im2col matrix one tap at a time, written out as ``[B, n * oh * ow]``."""
    out = geometry.out_shape(tuple(image.shape[2:]))
    groups = geometry.groups
    padded = geometry.pad(image)
    y = quantized(pixels.transpose(0, 1).flatten(1), pixels_how)
    y_values = y.values.unflatten(0, (groups, -1))
    taps = list(itertools.product(*(range(k) for k in geometry.kernel)))

    def columns(tap: tuple[int, ...]) -> Tensor:
        return geometry.tap(padded, tap, out).transpose(0, 1).flatten(1)

    amax = None
    if image_how.scheme is Scheme.MXFP4:
        pass  # blocks alone are scaled
    elif image_how.rht:  # the maximum is the rotated matrix's: one pass over it to find it, one to use it
        parts = (rotate(pad_last(columns(tap), BLOCK_SIZE)).abs().amax() for tap in taps)
        amax = functools.reduce(torch.maximum, parts)  # NaN wins
    else:
        amax = geometry.pixels_used(image).abs().amax()
    kernel = torch.empty(kernel_shape, dtype=torch.float32, device=image.device)
    for index, tap in enumerate(taps):
        x = quantized(columns(tap), image_how, amax)
        product = torch.bmm(y_values, x.values.unflatten(0, (groups, -1)).mT)
        kernel.flatten(2)[..., index] = product.flatten(0, 1)
    return kernel, x.amax, y.amax
