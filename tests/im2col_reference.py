"""The slow oracle of the convolution tests: the im2col matrix written out, quantized whole, multiplied in float64.

Nothing here calls ``monai_fp4``. The quantizer follows the numerical contract literally, a block at a time; the GEMMs
are exact, because `gemm` refuses operands whose FP32 sums could depend on the order of their terms. So a test may ask
for equality bit for bit.

A convolution is read as three products over one matrix ``U`` of shape ``[pixel, tap, channel]``, the im2col matrix:

====================  ===========================================  ==========================
`gather`              ``U @ W``: a convolution                      reduces over (tap, channel)
`scatter`             ``col2im(Y @ W)``: its adjoint                reduces over (tap, row of W)
`weight_product`      ``Y.T @ U``: the gradient of the weight       reduces over pixels
====================  ===========================================  ==========================

A transposed convolution swaps the first two and exchanges the roles of input and gradient in the third.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIGNS = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]
GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)


def hadamard() -> Tensor:
    """Build the 16 x 16 rotation of the contract, signs included, by the Sylvester recursion."""
    matrix = torch.ones(1, 1)
    for _ in range(4):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return torch.diag(torch.tensor(SIGNS, dtype=torch.float32)) @ matrix / 4


def nearest(values: np.ndarray) -> np.ndarray:
    """Round to E2M1 by looking for the nearest grid point; ties go to the even code."""
    size = np.minimum(np.abs(values), np.float32(6))
    distance = np.abs(size[..., None].astype(np.float64) - GRID)
    tied = distance == distance.min(-1, keepdims=True)
    rank = np.where(np.arange(8) % 2 == 0, 0, 1) + 2  # among tied codes the even one has the lower rank
    code = np.where(tied, rank, 99).argmin(-1)
    return np.copysign(GRID[code], values)


@dataclass
class Quantized:
    """Grid values, block scales (repeated to the shape of the values) and the tensor's maximum."""

    grid: Tensor
    scale: Tensor
    amax: Tensor

    @property
    def values(self) -> Tensor:
        return self.grid * self.scale

    def decoded(self, dtype: torch.dtype) -> Tensor:
        return (self.grid * ((self.scale * self.amax) * torch.tensor(1 / 2688, dtype=torch.float32))).to(dtype)


def quantize_reference(x: Tensor, *, two_d: bool = False, rht: bool = False) -> Quantized:
    """Quantize a matrix along its last axis (a multiple of 16; rows too when 2D), as the contract says."""
    x = x.detach().float()
    rows, length = x.shape
    assert length % 16 == 0 and (rows % 16 == 0 or not two_d)
    if rht:
        x = (x.reshape(rows, -1, 16) @ hadamard()).bfloat16().float().reshape(rows, length)
    amax = x.abs().max()
    scale_all = torch.ones(()) if amax == 0 else torch.full_like(amax, 2688.0) / amax
    scale_all = scale_all.clamp(max=torch.finfo(torch.float32).max)
    inverse = torch.ones(()) / scale_all
    blocks = x.reshape(rows, length // 16, 16).abs().amax(-1)
    if two_d:
        blocks = blocks.reshape(rows // 16, 16, -1).amax(1).repeat_interleave(16, 0)
    scale = (blocks * (scale_all * torch.tensor(1 / 6, dtype=torch.float32))).clamp(max=448)
    scale = scale.to(torch.float8_e4m3fn).float()
    encode = (torch.ones(()) / (scale * inverse)).clamp(max=torch.finfo(torch.float32).max)
    spread = encode.repeat_interleave(16, 1)
    grid = torch.from_numpy(nearest((x * spread).numpy()))
    return Quantized(grid, scale.repeat_interleave(16, 1), amax)


def alpha(a: Quantized, b: Quantized) -> Tensor:
    return (a.amax * b.amax) * torch.tensor(1 / (36 * 448 * 448), dtype=torch.float32)


def unit(values: Tensor) -> Tensor:
    """Return, for each row, the largest power of two that divides every value in it; infinity for a row of zeros."""
    values = values.double()
    finest = 2.0**-40  # far below any product of an E2M1 and an E4M3 number
    whole = (values / finest).to(torch.int64)
    assert torch.equal(whole.double() * finest, values)
    lowest_bit = (whole & -whole).double() * finest
    return torch.where(values == 0, torch.inf, lowest_bit).amin(-1)


def gemm(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` in float64, having checked that FP32 gives the same in any order of summation."""
    largest = a.double().abs() @ b.double().abs()
    assert (largest <= 2**24 * unit(a)[:, None] * unit(b.T)).all(), "choose test values whose FP32 sums are exact"
    return a.double() @ b.double()


@dataclass(frozen=True)
class Geometry:
    """A convolution of ``[N, C, *spatial]`` with a kernel ``[D, C / groups, *k]`` to pixels ``[N, D, *out]``."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def out_shape(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )

    def positions(self, spatial: tuple[int, ...], tap: tuple[int, ...]) -> list[np.ndarray]:
        """Return, per axis, the input coordinate that the tap reads for each output coordinate (may lie outside)."""
        out = self.out_shape(spatial)
        return [
            np.arange(o) * s - p + t * d
            for o, s, p, t, d in zip(out, self.stride, self.padding, tap, self.dilation, strict=True)
        ]

    @property
    def taps(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(k) for k in self.kernel)))


def im2col(image: Tensor, geometry: Geometry) -> Tensor:
    """Return ``U`` of shape [N * prod(out), taps, C], rows in the order (n, oh, ow)."""
    count, channels, *spatial = image.shape
    out = geometry.out_shape(tuple(spatial))
    columns = torch.zeros(count, *out, len(geometry.taps), channels, dtype=image.dtype)
    for index, tap in enumerate(geometry.taps):
        positions = geometry.positions(tuple(spatial), tap)
        for place in itertools.product(*(range(o) for o in out)):
            source = [int(axis[o]) for axis, o in zip(positions, place, strict=True)]
            if all(0 <= s < n for s, n in zip(source, spatial, strict=True)):
                columns[(slice(None), *place, index)] = image[(slice(None), slice(None), *source)]
    return columns.reshape(-1, len(geometry.taps), channels)


def col2im(columns: Tensor, shape: tuple[int, ...], geometry: Geometry) -> Tensor:
    """Add the rows of ``[N * prod(out), taps, C]`` back into an image of ``shape``: the adjoint of `im2col`."""
    count, channels, *spatial = shape
    out = geometry.out_shape(tuple(spatial))
    image = torch.zeros(shape, dtype=columns.dtype)
    columns = columns.reshape(count, *out, len(geometry.taps), channels)
    for index, tap in enumerate(geometry.taps):
        positions = geometry.positions(tuple(spatial), tap)
        for place in itertools.product(*(range(o) for o in out)):
            source = [int(axis[o]) for axis, o in zip(positions, place, strict=True)]
            if all(0 <= s < n for s, n in zip(source, spatial, strict=True)):
                image[(slice(None), slice(None), *source)] += columns[(slice(None), *place, index)]
    return image


def as_rows(pixels: Tensor) -> Tensor:
    """[N, C, *spatial] -> [N * prod(spatial), C]."""
    return pixels.movedim(1, -1).reshape(-1, pixels.shape[1])


def as_image(rows: Tensor, count: int, spatial: tuple[int, ...]) -> Tensor:
    return rows.reshape(count, *spatial, rows.shape[-1]).movedim(-1, 1)


def pad_last(x: Tensor, axis: int = -1) -> Tensor:
    """Append zeros until the axis is a multiple of 16 long."""
    x = x.movedim(axis, -1)
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % 16)).movedim(-1, axis)


def quantize_channels(rows: Tensor, groups: int) -> Quantized:
    """Quantize ``[..., C]`` along C, each group's channels padded to 16, to ``[..., groups, C / groups]``."""
    split = rows.reshape(-1, groups, rows.shape[-1] // groups)
    padded = pad_last(split)
    whole = quantize_reference(padded.reshape(-1, padded.shape[-1]))
    shape = (*rows.shape[:-1], groups, padded.shape[-1])
    crop = (..., slice(split.shape[-1]))
    return Quantized(whole.grid.reshape(shape)[crop], whole.scale.reshape(shape)[crop], whole.amax)


def quantize_weight(weight: Tensor, groups: int, *, along_columns: bool, two_d: bool) -> Quantized:
    """Quantize ``[D, C / groups, *k]`` to [groups, taps, D / groups, C / groups].

    Blocks lie along C, or along D when ``along_columns``; 16 x 16 over (D, C) within one tap and group when 2D.
    """
    taps = math.prod(weight.shape[2:])
    matrix = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], taps).permute(0, 3, 1, 2)
    if along_columns:
        matrix = matrix.transpose(-1, -2)
    rows, length = matrix.shape[-2:]
    padded = pad_last(matrix)
    if two_d:
        padded = pad_last(padded, -2)
    whole = quantize_reference(padded.reshape(-1, padded.shape[-1]), two_d=two_d)

    def restore(x: Tensor) -> Tensor:
        x = x.reshape(padded.shape)[..., :rows, :length]
        return x.transpose(-1, -2) if along_columns else x

    return Quantized(restore(whole.grid), restore(whole.scale), whole.amax)


def gather(image: Tensor, weight: Tensor, geometry: Geometry, two_d: bool, dtype: torch.dtype) -> Tensor:
    """Convolve: ``U`` row-wise times the weight with blocks along its input channels; ``dtype`` is the result's."""
    spatial = tuple(image.shape[2:])
    u = quantize_channels(im2col(image, geometry), geometry.groups)  # [P, taps, g, C/g]
    w = quantize_weight(weight, geometry.groups, along_columns=False, two_d=two_d)  # [g, taps, D/g, C/g]
    products = [
        gemm(u.values[:, :, g].flatten(1), w.values[g].transpose(0, 1).flatten(1).T) for g in range(geometry.groups)
    ]
    rows = (torch.cat(products, 1).float() * alpha(u, w)).to(dtype)
    return as_image(rows, image.shape[0], geometry.out_shape(spatial))


def scatter(
    pixels: Tensor, weight: Tensor, shape: tuple[int, ...], geometry: Geometry, two_d: bool, dtype: torch.dtype
) -> Tensor:
    """Apply the adjoint: pixels row-wise times the weight with blocks along its output channels, then col2im."""
    y = quantize_channels(as_rows(pixels), geometry.groups)  # [P, g, D/g]
    w = quantize_weight(weight, geometry.groups, along_columns=True, two_d=two_d)
    columns = []
    for g in range(geometry.groups):
        product = gemm(y.values[:, g], w.values[g].transpose(0, 1).flatten(1))
        columns.append(product.reshape(-1, w.values.shape[1], w.values.shape[-1]))
    image = col2im(torch.cat(columns, -1), shape, geometry)
    return (image.float() * alpha(y, w)).to(dtype)


def weight_product(image: Tensor, pixels: Tensor, geometry: Geometry, rht: bool, dtype: torch.dtype) -> Tensor:
    """Return the gradient ``[D, C / groups, *k]``: both operands quantized along the pixels (n, oh, ow)."""
    u = im2col(image, geometry)
    count, taps, channels = u.shape
    q_u = quantize_reference(pad_last(u.reshape(count, -1).T), rht=rht)
    q_y = quantize_reference(pad_last(as_rows(pixels).T), rht=rht)
    u_values = q_u.values.reshape(taps, geometry.groups, channels // geometry.groups, -1)
    y_values = q_y.values.reshape(geometry.groups, -1, q_y.values.shape[-1])
    products = []
    for g in range(geometry.groups):
        product = gemm(y_values[g], u_values[:, g].flatten(0, 1).T)  # [D/g, taps * C/g]
        products.append(product.reshape(product.shape[0], taps, -1).transpose(1, 2))
    gradient = (torch.cat(products).float() * alpha(q_u, q_y)).to(dtype)
    return gradient.reshape(*gradient.shape[:2], *geometry.kernel)
