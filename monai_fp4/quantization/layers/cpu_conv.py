"""The products of a convolution on a CPU with BF16 instructions: those of `products`, without a copy to spare.

An image is quantized along its channels straight into a zero-padded, channels-last buffer. There every kernel tap reads
a shifted window, so a convolution is one batch-reduced product (`monai_fp4.quantization.kernels.cpu_gemm`) whose
segments are the taps: no im2col matrix, not even a row of it. The adjoint with a stride is one such product for each
residue of the pixel's position modulo the stride, over the taps that reach it.

One- and two-dimensional convolutions are treated as three-dimensional ones whose first axes have length 1. Groups are
left to plain torch. The gradient of the kernel is in `monai_fp4.quantization.layers.cpu_conv_gradient`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.kernels import cpu_gemm
from monai_fp4.quantization.layers.cpu_operands import quantized
from monai_fp4.quantization.layers.geometry import ConvGeometry
from monai_fp4.quantization.numerics import BLOCK_SIZE, ScaledValues, gemm_alpha
from monai_fp4.quantization.recipes import Encoding

__all__ = ["gather", "pair_kernel", "scatter"]

_AXES = 3

Tap = tuple[int, Sequence[int]]
"""A kernel tap: its number in the flattened kernel, and where in the padded image it reads for output pixel 0."""


def pair_kernel(weight: Tensor, how: Encoding, *, along_first: bool) -> ScaledValues:
    """Quantize a kernel ``[A, B, *k]`` along B, or along A (the axis K), to pairs ``[taps, K / 2, other, 2]``."""
    taps = weight.flatten(2).movedim(-1, 0)  # [taps, A, B]
    return quantized(taps.mT if along_first else taps, how, pairs=True)


def gather(image: Tensor, kernel: ScaledValues, geometry: ConvGeometry, how: Encoding, dtype: torch.dtype) -> Tensor:
    """Quantize ``[N, B, *spatial]`` along its channels and convolve it to ``[N, A, *out]``, channels last in memory.

    Args:
        image: high precision.
        kernel: what `pair_kernel` made, along B.
        geometry: of the convolution.
        how: the image's encoding.
        dtype: of the result.
    """
    grid = _in_three_axes(geometry)
    size = _three(image.shape[2:])
    out = grid.out_shape(size)
    high = [
        (o - 1) * s + (k - 1) * d + 1 - p - n
        for n, o, k, s, p, d in zip(size, out, grid.kernel, grid.stride, grid.padding, grid.dilation, strict=True)
    ]
    rows = _padded_rows(image, grid.padding, high, how, geometry.amax_used(image))
    positions = itertools.product(*([t * d for t in range(k)] for k, d in zip(grid.kernel, grid.dilation, strict=True)))
    result = _empty_channels_last(image, kernel, out[_AXES + 2 - image.ndim :], dtype)
    _multiply(rows, kernel, result, list(enumerate(positions)), out, in_step=grid.stride)
    return result.to(dtype)


def scatter(
    pixels: Tensor,
    kernel: ScaledValues,
    image_shape: Sequence[int],
    geometry: ConvGeometry,
    how: Encoding,
    dtype: torch.dtype,
) -> Tensor:
    """Quantize ``[N, A, *out]`` along its channels and apply the adjoint of `gather`, to ``image_shape``.

    Arguments as in `gather`; the kernel is paired along A.
    """
    grid = _in_three_axes(geometry)
    size, out = _three(image_shape[2:]), _three(pixels.shape[2:])
    phases = [_phases(*axis) for axis in zip(size, grid.kernel, grid.stride, grid.padding, grid.dilation, strict=True)]
    # Where the taps of all phases read: what lies outside the array is zero.
    firsts = [[at for phase in axis for _, at in phase.taps] for axis in phases]
    lasts = [[at + phase.count for phase in axis for _, at in phase.taps] for axis in phases]
    low = [max(0, -min(first, default=0)) for first in firsts]
    high = [max(last, default=0) - n for last, n in zip(lasts, out, strict=True)]
    rows = _padded_rows(pixels, low, high, how, None)
    result = _empty_channels_last(pixels, kernel, image_shape[2:], dtype)
    for combination in itertools.product(*phases):
        taps: list[Tap] = []
        for choice in itertools.product(*(phase.taps for phase in combination)):
            number = 0
            for (tap, _), length in zip(choice, grid.kernel, strict=True):
                number = number * length + tap
            taps.append((number, [at + extra for (_, at), extra in zip(choice, low, strict=True)]))
        counts, starts = [phase.count for phase in combination], [phase.start for phase in combination]
        _multiply(rows, kernel, result, taps, counts, out_step=grid.stride, out_start=starts)
    return result.to(dtype)


@dataclass(frozen=True)
class _Phase:
    """Positions ``start + stride * j`` of an axis, j below ``count``; taps: number, and the pixel read at j = 0."""

    start: int
    count: int
    taps: tuple[tuple[int, int], ...]


def _phases(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[_Phase]:
    """The residues of an axis of the image modulo the stride."""
    phases = []
    for start in range(min(stride, size)):
        offsets = ((tap, start + padding - tap * dilation) for tap in range(kernel))
        taps = tuple((tap, offset // stride) for tap, offset in offsets if offset % stride == 0)
        phases.append(_Phase(start, -(-(size - start) // stride), taps))
    return phases


def _padded_rows(
    x: Tensor, low: Sequence[int], high: Sequence[int], how: Encoding, amax: Tensor | None
) -> ScaledValues:
    """Quantize ``[N, C, *spatial]`` along C into ``[N, D, H, W, C]`` with zeros around; C becomes a multiple of 16."""
    size = _three(x.shape[2:])
    channels = x.shape[1]
    high = [max(0, extra) for extra in high]
    shape = [before + n + after for before, n, after in zip(low, size, high, strict=True)]
    padded = x.new_empty((len(x), *shape, channels + -channels % BLOCK_SIZE), dtype=torch.bfloat16)
    inside = padded
    for axis, (before, n, after) in enumerate(zip(low, size, high, strict=True), start=1):
        inside.narrow(axis, 0, before).zero_()
        inside.narrow(axis, before + n, after).zero_()
        inside = inside.narrow(axis, before, n)
    inside[..., channels:].zero_()
    pixels = x.reshape(*x.shape[:2], *size).movedim(1, -1)
    return replace(quantized(pixels, how, amax, out=inside[..., :channels]), values=padded)


def _multiply(
    rows: ScaledValues,
    kernel: ScaledValues,
    result: Tensor,
    taps: Sequence[Tap],
    counts: Sequence[int],
    *,
    in_step: Sequence[int] = (1,) * _AXES,
    out_step: Sequence[int] = (1,) * _AXES,
    out_start: Sequence[int] = (0,) * _AXES,
) -> None:
    """Sum over the taps, into the pixels of ``result`` ``[N, columns, *spatial]`` that start, step and counts name."""
    values = rows.values
    half, columns = values.shape[-1] // 2, result.shape[1]
    if kernel.values.shape[-3] != half:  # the product would read beyond the kernel
        raise ConfigError(
            f"a convolution expected an image of {2 * kernel.values.shape[-3]} channels, found {2 * half} (each a"
            " multiple of 16, by padding): check what precedes it"
        )
    image, *strides = (stride // 2 for stride in values.stride()[:-1])
    steps_out = _three(result.stride()[2:], 0)
    a_offsets = [sum(place * stride for place, stride in zip(at, strides, strict=True)) for _, at in taps]
    b_offsets = [number * half * columns for number, _ in taps]
    cpu_gemm.product(
        values,
        (image, *(step * stride for step, stride in zip(in_step, strides, strict=True)), 1),
        kernel.values,
        result,
        (len(values), *counts),
        (result.stride(0), *(step * stride for step, stride in zip(out_step, steps_out, strict=True))),
        gemm_alpha(rows.amax, kernel.amax),
        segments=(_positions(a_offsets), _positions(b_offsets)),
        pairs=half,
        out_start=sum(start * stride for start, stride in zip(out_start, steps_out, strict=True)),
    )


def _positions(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _in_three_axes(geometry: ConvGeometry) -> ConvGeometry:
    kernel, stride, padding = _three(geometry.kernel), _three(geometry.stride), _three(geometry.padding, 0)
    return ConvGeometry(kernel, stride, padding, _three(geometry.dilation), groups=1)


def _three(sizes: Sequence[int], fill: int = 1) -> tuple[int, ...]:
    return (fill,) * (_AXES - len(sizes)) + tuple(sizes)


def _empty_channels_last(like: Tensor, kernel: ScaledValues, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty ``[N, columns, *size]`` with its channels innermost in memory; no view, for autograd's sake."""
    shape = (len(like), kernel.values.shape[-2], *size)
    order = (0, *range(2, len(shape)), 1)
    return torch.empty_permuted(shape, order, dtype=cpu_gemm.stored(dtype), device=like.device)
