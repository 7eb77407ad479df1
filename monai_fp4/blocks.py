"""Blocks of 16 numbers, their scales and their codes, in plain torch on any device: the definition of the format.

:mod:`monai_fp4.numerics` explains the format and offers these steps as whole functions; :mod:`monai_fp4.kernels` does
the same in one pass over memory. Every kernel is compared with this module bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from monai_fp4.errors import ConfigError
from monai_fp4.philox import random_bytes
from monai_fp4.rotation import BLOCK_SIZE, rotate
from monai_fp4.rounding import (
    E2M1_MAX,
    E4M3_MAX,
    check_dtype,
    round_e2m1_,
    round_e2m1_stochastic,
    round_e4m3_,
)
from monai_fp4.tiles import tiles

__all__ = [
    "BLOCK_SIZE",
    "TENSOR_MAX",
    "QuantizedBlocks",
    "ScaledValues",
    "block_bits",
    "check_blocks",
    "decode_factors",
    "pad_last",
    "prepare_blocks",
    "round_blocks",
]

TENSOR_MAX = E2M1_MAX * E4M3_MAX
"""2688: what amax becomes after the first level of scaling."""

_FLOAT_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class ScaledValues:
    """A quantized tensor in the form that a matrix product consumes.

    Attributes:
        values: ``code * block_scale``, exact in whatever dtype was asked for; shape ``[..., K]``.
        amax: the tensor's largest magnitude, an FP32 scalar. A value is ``values * amax / 2688``.
        scales: the block scales as FP32 numbers, shape ``[..., ceil(K / 16)]``. :func:`decode` needs them because FP32
            rounding makes ``(q * s) * amax`` differ from ``q * (s * amax)`` in the last bit.
    """

    values: Tensor
    amax: Tensor
    scales: Tensor


@dataclass(frozen=True, slots=True)
class QuantizedBlocks:
    """Codes as numbers before they are scaled or packed; what the public functions share.

    Attributes:
        blocks: the tensor (rotated if asked), its last axis padded and split: ``[..., B, 16]``.
        encode: what each block is multiplied with before rounding, ``[..., B, 1]``, FP32.
        scales: the E4M3 block scales as FP32 numbers, ``[..., B, 1]``.
        amax: the largest magnitude, an FP32 scalar.
        length: K, the length of the last axis to crop the result to.
    """

    blocks: Tensor
    encode: Tensor
    scales: Tensor
    amax: Tensor
    length: int


def check_blocks(x: Tensor, *, two_d: bool, rht: bool) -> None:
    """Refuse, with a ConfigError, a tensor or options that no blocks can be made of."""
    check_dtype(x)
    if x.ndim < 1 + two_d:
        raise ConfigError(
            f"expected a tensor with at least {1 + two_d} axes to cut {'16x16' if two_d else '1x16'} blocks from,"
            f" found shape {tuple(x.shape)}: add an axis"
        )
    if two_d and rht:
        raise ConfigError(
            "two_d and rht are both set, but a rotated tensor has 1x16 blocks only: leave one of them out"
        )


def prepare_blocks(x: Tensor, *, two_d: bool, rht: bool, amax: Tensor | None = None) -> QuantizedBlocks:
    """Pad, rotate and split a tensor into blocks, and compute their scales; arguments as in :func:`scaled_values`."""
    check_blocks(x, two_d=two_d, rht=rht)
    length = x.shape[-1]
    padded = pad_last(x.detach(), BLOCK_SIZE)
    if rht:
        padded, length = rotate(padded), padded.shape[-1]
    blocks = padded.unflatten(-1, (padded.shape[-1] // BLOCK_SIZE, BLOCK_SIZE))
    maxima = _block_maxima(blocks)
    if amax is None:
        amax = maxima.amax() if maxima.numel() else maxima.new_zeros(())
    amax = amax.to(torch.float32).reshape(())
    if two_d:
        maxima = _share_over_rows(maxima)
    scales, encode = _block_scales(maxima, amax)
    return QuantizedBlocks(blocks, encode, scales, amax, length)


def round_blocks(
    quantized: QuantizedBlocks,
    factors: Tensor,
    *,
    key: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """Encode and round every block, multiply it with its factor and join the blocks again.

    Args:
        quantized: the blocks and their scales.
        factors: FP32 numbers that broadcast over the blocks, ``[..., B, 1]``.
        key: of the random bits of stochastic rounding, see :func:`monai_fp4.philox.random_bytes`; ``None`` rounds to
            nearest.
        dtype: of the result.

    Returns:
        ``code * factor``, shape ``[..., K]``.
    """
    blocks = quantized.blocks
    result = torch.empty_like(blocks, dtype=dtype)
    bits = blocks if key is None else block_bits(blocks, key)
    for block, encode, factor, bit, out in tiles(blocks, quantized.encode, factors, bits, result):
        scaled = block * encode
        codes = round_e2m1_(scaled) if key is None else round_e2m1_stochastic(scaled, bit)
        torch.mul(codes, factor, out=out)
    return result.flatten(-2)[..., : quantized.length]


def decode_factors(scales: Tensor, amax: Tensor) -> Tensor:
    """``(s * amax) * (1 / 2688)`` in FP32: what a code is multiplied with to decode it."""
    return (scales * amax) * (1.0 / TENSOR_MAX)


def pad_last(x: Tensor, multiple: int) -> Tensor:
    """Pad the last axis with zeros to a multiple; the tensor itself if there is nothing to pad."""
    missing = -x.shape[-1] % multiple
    return functional.pad(x, (0, missing)) if missing else x


def block_bits(blocks: Tensor, key: int) -> Tensor:
    """The random bytes of each number of ``blocks``, ``[..., B, 16]``: uint8, in its shape.

    Block number ``i``, counted in the order of the logical axes and not of memory, has the bytes of counter ``i``.
    """
    return random_bytes(blocks.numel() // BLOCK_SIZE, key, blocks.device).view(blocks.shape)


def _block_maxima(blocks: Tensor) -> Tensor:
    """The largest magnitude of each block, FP32, ``[..., B, 1]``; NaN where there is one."""
    # Without their sign bits, floats are ordered as the integers of the same bits are, NaN above infinity; and torch
    # reduces short runs of integers five times as fast as floats.
    bits = torch.int32 if blocks.dtype is torch.float32 else torch.int16
    # The result lies in memory in the order that the blocks do, so that later passes walk both alike.
    maxima = torch.empty_like(blocks[..., :1], dtype=bits)
    for block, out in tiles(blocks, maxima):
        torch.amax(block.view(bits).bitwise_and(torch.iinfo(bits).max), -1, keepdim=True, out=out)
    return maxima.view(blocks.dtype).to(torch.float32)


def _share_over_rows(maxima: Tensor) -> Tensor:
    """Give 16 neighbouring rows the largest of their block maxima: ``[..., M, B, 1]`` in and out."""
    rows = maxima.shape[-3]
    padded = functional.pad(maxima, (0, 0, 0, 0, 0, -rows % BLOCK_SIZE))
    shared = padded.unflatten(-3, (padded.shape[-3] // BLOCK_SIZE, BLOCK_SIZE)).amax(-3)
    return shared.repeat_interleave(BLOCK_SIZE, dim=-3)[..., :rows, :, :]


def _block_scales(maxima: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
    """The E4M3 scales (as FP32 numbers) and the factors that encode, from the block maxima and the tensor's."""
    # A tensor over a tensor: torch computes `number / tensor` as a reciprocal and a product, which rounds twice.
    tensor_scale = (torch.full_like(amax, TENSOR_MAX) / amax).clamp_max(_FLOAT_MAX)
    tensor_scale = torch.where((amax == 0) | (tensor_scale == 0), 1.0, tensor_scale)
    sixth = torch.full_like(amax, E2M1_MAX).reciprocal()
    scales = (maxima * (tensor_scale * sixth)).clamp_max_(E4M3_MAX)
    scales = round_e4m3_(scales)
    encode = (scales * tensor_scale.reciprocal()).reciprocal_().clamp_max_(_FLOAT_MAX)
    return scales, encode
