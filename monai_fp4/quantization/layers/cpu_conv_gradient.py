"""The gradient of a convolution's kernel on a CPU with BF16 instructions; what it is, is told in `products`.

It sums over pixels, so both operands are quantized along pixels into *pairs* of neighbouring ones, which is what the
product reads: no packing. Where rows of output pixels are whole blocks, the image is quantized once for each tap of the
last axis, and every other tap is the same numbers some rows further down; the segments of the product are the rows.
Otherwise each tap's column of the im2col matrix is written out, one at a time.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from monai_fp4.quantization.kernels import cpu_gemm
from monai_fp4.quantization.layers.cpu_operands import quantized
from monai_fp4.quantization.layers.geometry import ConvGeometry
from monai_fp4.quantization.numerics import BLOCK_SIZE, ScaledValues, gemm_alpha, rotate
from monai_fp4.quantization.recipes import Encoding

__all__ = ["weight_product"]


def weight_product(
    image: Tensor,
    pixels: Tensor,
    kernel_shape: tuple[int, ...],
    geometry: ConvGeometry,
    how: tuple[Encoding, Encoding],
    dtype: torch.dtype,
) -> Tensor:
    """Quantize both operands along the pixels and multiply them to the kernel's gradient ``[A, B, *k]``.

    Arguments as in `monai_fp4.quantization.layers.products.weight_product`; the result has ``dtype``.
    """
    by_rows = geometry.out_shape(tuple(image.shape[2:]))[-1] % BLOCK_SIZE == 0
    product = _by_rows if by_rows else _by_taps
    outputs, inputs, *taps = kernel_shape
    kernel = image.new_empty((outputs, *taps, inputs), dtype=cpu_gemm.stored(dtype))
    product(image, pixels, kernel.flatten(1, -2), geometry, *how)
    return kernel.movedim(-1, 1).to(dtype)


def _by_rows(
    image: Tensor, pixels: Tensor, kernel: Tensor, geometry: ConvGeometry, image_how: Encoding, pixels_how: Encoding
) -> None:
    """Write ``kernel``, ``[A, taps, B]``, where rows of output pixels are whole blocks."""
    taps, stride, dilation = geometry.kernel[-1], geometry.stride[-1], geometry.dilation[-1]
    others = geometry.without_last_axis()
    padded = _channels_last(geometry.only_last_axis().pad(image))
    windows = padded.unfold(-1, (taps - 1) * dilation + 1, stride)[..., ::dilation]  # a view, its last axis the taps
    copies = windows.movedim(-1, 0).movedim(2, -2)  # [taps, N, *rows, B, OW]
    amax = None
    if not others.uses_all((*image.shape[2:-1], copies.shape[-1])):  # rows that no tap reads do not raise the maximum
        amax = others.amax_used((rotate(copies) if image_how.rht else copies).movedim(-2, 2).flatten(0, 1))
    x = quantized(copies, image_how, amax, pairs=True)
    y = quantized(pixels.movedim(1, -2), pixels_how, pairs=True)
    half = pixels.shape[-1] // 2
    outputs, _, inputs = kernel.shape
    one_tap = x.values[0].numel() // 2
    row_pairs = _row_pairs(len(image), tuple(image.shape[2:-1]), tuple(pixels.shape[2:-1]), others)
    for index, ((image_rows, pixel_rows), tap) in enumerate(itertools.product(row_pairs, range(taps))):
        segments = (pixel_rows * (half * outputs), image_rows * (half * inputs) + tap * one_tap)
        _multiply(y, x, kernel, index, segments, half)


def _by_taps(
    image: Tensor, pixels: Tensor, kernel: Tensor, geometry: ConvGeometry, image_how: Encoding, pixels_how: Encoding
) -> None:
    """Write ``kernel``, ``[A, taps, B]``, in the general way: the im2col matrix one tap at a time."""
    out = geometry.out_shape(tuple(image.shape[2:]))
    padded = _channels_last(geometry.pad(image))
    y = quantized(_columns(pixels), pixels_how, pairs=True)
    taps = list(itertools.product(*(range(k) for k in geometry.kernel)))

    def columns(tap: tuple[int, ...]) -> Tensor:
        return _columns(geometry.tap(padded, tap, out))

    if image_how.rht:  # the maximum is the rotated matrix's: one pass over it to find it, one to use it
        nearest = image_how._replace(stochastic=False)
        amax = functools.reduce(torch.maximum, (quantized(columns(tap), nearest).amax for tap in taps))  # NaN wins
    else:
        amax = geometry.pixels_used(image).abs().amax().float()
    for index, tap in enumerate(taps):
        x = quantized(columns(tap), image_how, amax, pairs=True)
        _multiply(y, x, kernel, index)


def _multiply(
    y: ScaledValues,
    x: ScaledValues,
    kernel: Tensor,
    tap: int,
    segments: tuple[Tensor, Tensor] | None = None,
    pairs: int | None = None,
) -> None:
    """Write ``kernel[:, tap]``."""
    outputs, _, inputs = kernel.shape
    cpu_gemm.product(
        y.values,
        (0, 0, 0, 1, outputs),
        x.values,
        kernel,
        (1, 1, 1, outputs),
        (0, 0, 0, kernel.stride(0)),
        gemm_alpha(x.amax, y.amax),
        segments=segments,
        pairs=pairs,
        out_start=tap * inputs,
    )


@functools.lru_cache(maxsize=1024)
def _row_pairs(
    images: int, rows_in: tuple[int, ...], rows_out: tuple[int, ...], others: ConvGeometry
) -> list[tuple[Tensor, Tensor]]:
    """For each tap of all axes but the last: numbers of the image's rows and of the rows of pixels that it joins.

    Rows are numbered through all images; rows of the padding, which are zeros, are left out.
    """
    found = []
    for tap in itertools.product(*(range(k) for k in others.kernel[:-1])):
        image_rows = pixel_rows = _numbers(images)
        inside = torch.ones(images, dtype=torch.bool, device="cpu")
        axes = zip(tap, rows_in, rows_out, others.stride, others.padding, others.dilation, strict=False)
        for t, n, out, stride, padding, dilation in axes:
            at = _numbers(out) * stride - padding + t * dilation
            image_rows = (image_rows[:, None] * n + at).flatten()
            pixel_rows = (pixel_rows[:, None] * out + _numbers(out)).flatten()
            inside = (inside[:, None] & (at >= 0) & (at < n)).flatten()
        found.append((image_rows[inside], pixel_rows[inside]))
    return found


def _numbers(count: int) -> Tensor:
    return torch.arange(count, device="cpu")


def _columns(pixels: Tensor) -> Tensor:
    """``[N, C, *spatial]`` as ``[C, pixels]``, a transposed view of rows of channels."""
    return pixels.movedim(1, -1).flatten(0, -2).mT


def _channels_last(image: Tensor) -> Tensor:
    """The same tensor with its channels innermost in memory."""
    return image.movedim(1, -1).contiguous().movedim(-1, 1)
