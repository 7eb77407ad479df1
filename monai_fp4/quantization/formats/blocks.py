"""Blocks of numbers, their scales and their codes, in plain torch on any device: the definition of the format.

A block has 16 numbers, or 32 in MXFP4; :mod:`monai_fp4.quantization.formats.scheme` has the formats and
:mod:`monai_fp4.quantization.formats.block_scales` their scales. :mod:`monai_fp4.quantization.numerics` explains the
standard one and offers these steps as whole functions; :mod:`monai_fp4.quantization.kernels` does the same in one pass
over memory, and is compared with this module bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.block_scales import block_scales, share_over_rows
from monai_fp4.quantization.formats.philox import random_bytes
from monai_fp4.quantization.formats.rotation import BLOCK_SIZE, rotate
from monai_fp4.quantization.formats.rounding import check_dtype, round_e2m1_, round_e2m1_stochastic
from monai_fp4.quantization.formats.scheme import STANDARD, TENSOR_MAX, Scheme
from monai_fp4.quantization.formats.tiles import tiles

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


@dataclass(frozen=True, slots=True)
class ScaledValues:
    """A quantized tensor in the form that a matrix product consumes.

    Attributes:
        values: ``code * block_scale``, exact in whatever dtype was asked for; shape ``[..., K]``.
        amax: the tensor's largest magnitude, an FP32 scalar. A value is ``values * amax / scheme.bound``; in MXFP4,
            which has no scale for the whole tensor, amax and the bound are 1.
        scales: the block scales as FP32 numbers, shape ``[..., ceil(K / 16)]``. :func:`decode` needs them because FP32
            rounding makes ``(q * s) * amax`` differ from ``q * (s * amax)`` in the last bit.
        scheme: the format.
    """

    values: Tensor
    amax: Tensor
    scales: Tensor
    scheme: Scheme = STANDARD


@dataclass(frozen=True, slots=True)
class QuantizedBlocks:
    """Codes as numbers before they are scaled or packed; what the public functions share.

    Attributes:
        blocks: the tensor (rotated if asked), its last axis padded and split: ``[..., B, block_size]``.
        encode: what each block is multiplied with before rounding, ``[..., B, 1]``, FP32.
        scales: the block scales as FP32 numbers, ``[..., B, 1]``.
        amax: the largest magnitude, an FP32 scalar; 1 in MXFP4.
        length: K, the length of the last axis to crop the result to.
    """

    blocks: Tensor
    encode: Tensor
    scales: Tensor
    amax: Tensor
    length: int


def check_blocks(x: Tensor, *, two_d: bool, rht: bool, scheme: Scheme = STANDARD) -> None:
    """Refuse, with a ConfigError, a tensor or options that no blocks can be made of."""
    if torch.jit.is_tracing():
        raise ConfigError(
            "torch.jit.trace cannot record how a tensor is quantized: trace a network with FP4 layers, which are"
            " recorded whole, or quantize outside of the tracer"
        )
    check_dtype(x)
    if x.ndim < 1 + two_d:
        size = scheme.block_size
        raise ConfigError(
            f"expected a tensor with at least {1 + two_d} axes to cut {size if two_d else 1}x{size} blocks from,"
            f" found shape {tuple(x.shape)}: add an axis"
        )
    if two_d and rht:
        raise ConfigError(
            "two_d and rht are both set, but a rotated tensor has 1x16 blocks only: leave one of them out"
        )
    if rht and scheme is Scheme.FOUR_OVER_SIX:
        raise ConfigError(
            "rht is set for a tensor that is scaled four over six, which Transformer Engine does not define: leave one"
            " of them out"
        )


def prepare_blocks(
    x: Tensor, *, two_d: bool, rht: bool, amax: Tensor | None = None, scheme: Scheme = STANDARD
) -> QuantizedBlocks:
    """Pad, rotate and split a tensor, and compute the scales of its blocks; arguments as `numerics.scaled_values`."""
    check_blocks(x, two_d=two_d, rht=rht, scheme=scheme)
    size = scheme.block_size
    length = x.shape[-1]
    padded = pad_last(x.detach(), size)
    if rht:
        padded, length = rotate(padded), padded.shape[-1]
    blocks = padded.unflatten(-1, (padded.shape[-1] // size, size))
    maxima = _block_maxima(blocks)
    if scheme is Scheme.MXFP4:
        amax = maxima.new_ones(())
    elif amax is None:
        amax = maxima.amax() if maxima.numel() else maxima.new_zeros(())
    amax = amax.to(torch.float32).reshape(())
    if two_d:
        maxima = share_over_rows(maxima, size)
    scales, encode = block_scales(scheme, blocks, maxima, amax, two_d=two_d)
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
        key: of the random bits of stochastic rounding, see :func:`monai_fp4.quantization.formats.philox.random_bytes`;
            ``None`` rounds to nearest.
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


def decode_factors(scales: Tensor, amax: Tensor, bound: float = TENSOR_MAX) -> Tensor:
    """``(s * amax) * (1 / 2688)`` in FP32: what a code is multiplied with to decode it."""
    return (scales * amax) * (1.0 / bound)


def pad_last(x: Tensor, multiple: int) -> Tensor:
    """Pad the last axis with zeros to a multiple; the tensor itself if there is nothing to pad."""
    missing = -x.shape[-1] % multiple
    return functional.pad(x, (0, missing)) if missing else x


def block_bits(blocks: Tensor, key: int) -> Tensor:
    """The random bytes of each number of ``blocks``, ``[..., B, 16]`` or ``[..., B, 32]``: uint8, in its shape.

    Sixteen numbers, counted in the order of the logical axes and not of memory, have the bytes of one counter: block
    ``i`` of 16 those of counter ``i``, block ``i`` of 32 those of ``2 i`` and ``2 i + 1``.
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
