"""The arithmetic of NVFP4, as pure functions of tensors.

NVFP4 stores a number in four bits, and gets its range back with two levels of scale:

* a **code** in E2M1 (one sign, two exponent bits, one mantissa bit): 0, 0.5, 1, 1.5, 2, 3, 4 or 6, and the negatives;
* a **block scale** in E4M3 (8 bits, at most 448), shared by 16 neighbours along the axis that a product sums over;
* one **tensor maximum** (``amax``, FP32), which places the largest block scale at 448 and the largest code at 6.

A value is thus ``code * block_scale * amax / 2688``, with 2688 = 448 * 6. The product ``code * block_scale`` has at
most six significant bits and spans 22 binades, so FP32, BF16 and FP16 all hold it *exactly*. That is what
:func:`scaled_values` returns, and why ``(qA * sA) @ (qB * sB)``, summed in FP32 and multiplied once by
:func:`gemm_alpha`, is the FP4 product and no approximation of it.

The operations and their order are those of NVIDIA's Transformer Engine 2.20.2 (``reference_nvfp4.py``), bit for bit.

How numbers are rounded is in :mod:`monai_fp4.rounding`.

**NaN and infinity.** A NaN makes ``amax`` NaN, hence every block scale and every decoded value: it cannot get lost, and
training can stop at once. Where ``amax`` is given from outside, a NaN still turns its whole block into NaN. An infinity
makes ``amax`` infinite; by the formulas the tensor then decodes to infinities and NaN, never to finite numbers.

>>> import torch
>>> x = torch.tensor([[6.0] + [1.0] * 15])
>>> decode(scaled_values(x))[0, :3]
tensor([6., 1., 1.])
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from monai_fp4.errors import ConfigError
from monai_fp4.rounding import (
    E2M1_GRID,
    E2M1_MAX,
    E4M3_MAX,
    SUPPORTED_DTYPES,
    check_dtype,
    dtype_names,
    random_bits,
    round_e2m1,
    round_e2m1_,
    round_e2m1_stochastic,
    round_e4m3_,
)

__all__ = [
    "BLOCK_SIZE",
    "E2M1_GRID",
    "E2M1_MAX",
    "E4M3_MAX",
    "SUPPORTED_DTYPES",
    "ScaledValues",
    "decode",
    "gemm_alpha",
    "pad_last",
    "prepare_blocks",
    "random_bits",
    "rotate",
    "round_e2m1",
    "round_e2m1_stochastic",
    "scaled_values",
]

BLOCK_SIZE = 16
"""Numbers that share one E4M3 scale, along the axis that a matrix product sums over."""

_TENSOR_MAX = E2M1_MAX * E4M3_MAX  # 2688: what amax becomes after the first level of scaling
_FLOAT_MAX = torch.finfo(torch.float32).max
_ROTATION_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
_TILE = 1 << 16  # numbers worked on at once by each CPU thread: 256 KiB of FP32 stay in its cache over all passes


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


@torch.no_grad()
def rotate(x: Tensor) -> Tensor:
    """Apply the random Hadamard transform to each run of 16 numbers along the last axis.

    The transform is ``v @ (diag(signs) @ H16 / 4)`` with the Sylvester matrix ``H16`` and one fixed sign vector: it is
    orthogonal and the same on both operands of a product, where it cancels. It spreads an outlier over its block, which
    makes the block easier to quantize. Sums are formed in FP32 and the result is rounded to BF16, as the hardware does.

    Args:
        x: FP32, BF16 or FP16, shape ``[..., K]`` with K a multiple of 16.

    Returns:
        The rotated tensor, BF16, in the shape of ``x``.

    Raises:
        ConfigError: the dtype is none of the three, or K is not a multiple of 16.
    """
    check_dtype(x)
    if x.ndim == 0 or x.shape[-1] % BLOCK_SIZE:
        raise ConfigError(
            f"rotate expected a last axis that is a multiple of {BLOCK_SIZE}, found shape {tuple(x.shape)}:"
            " pad it with zeros"
        )
    matrix = _rotation_matrix(x.device)
    if x.dtype is torch.bfloat16:
        # The very product of Transformer Engine's reference: where large numbers of a block cancel, the order of the
        # FP32 sums shows, and it is another one in torch's FP32 product.
        return (x.reshape(-1, BLOCK_SIZE) @ matrix.to(torch.bfloat16)).view(x.shape)
    if x.stride(-1) <= 1 or x.numel() == 0:
        return (x.reshape(-1, BLOCK_SIZE).to(torch.float32) @ matrix).to(torch.bfloat16).view(x.shape)
    # The axis is not the innermost one, as in a transposed view: multiply from the left, in the order that memory has,
    # since a transposed copy would cost more than all the rest.
    blocks = x.unflatten(-1, (-1, BLOCK_SIZE))
    order = sorted(range(blocks.ndim), key=blocks.stride, reverse=True)
    place = order.index(blocks.ndim - 1)
    laid_out = blocks.permute(order)
    columns = laid_out.reshape(-1, BLOCK_SIZE, math.prod(laid_out.shape[place + 1 :])).to(torch.float32)
    rotated = (matrix.t() @ columns).to(torch.bfloat16).view(laid_out.shape)
    return rotated.permute([order.index(axis) for axis in range(blocks.ndim)]).flatten(-2)


@torch.no_grad()
def scaled_values(
    x: Tensor,
    *,
    two_d: bool = False,
    rht: bool = False,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
    amax: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> ScaledValues:
    """Quantize along the last axis, to the operand ``code * block_scale`` of a matrix product.

    Args:
        x: FP32, BF16 or FP16, shape ``[..., K]``, any strides. K is padded with zeros to a multiple of 16 inside.
        two_d: share one scale among 16 x 16 blocks of the last two axes (weights), so that the transposed tensor
            has the same codes. Otherwise blocks are 1 x 16.
        rht: rotate the tensor first, see :func:`rotate`.
        stochastic: round stochastically rather than to nearest.
        generator: source of the random bits; by default the one of the tensor's device.
        amax: the largest magnitude to scale by, where the tensor is a part of a larger one (of the rotated tensor with
            ``rht``); by default that of ``x``.
        dtype: of the returned values: FP32, BF16 or FP16, all exact.

    Returns:
        The operand, its amax and its block scales. The values have the shape of ``x``, except that ``rht`` keeps the
        padded length, since a rotation mixes the padding with the numbers before it.

    Raises:
        ConfigError: a dtype is none of the three, ``x`` has too few axes, or ``two_d`` and ``rht`` are both set.
    """
    if dtype not in SUPPORTED_DTYPES:
        raise ConfigError(
            f"scaled_values expected a dtype among {dtype_names(SUPPORTED_DTYPES)}, found {dtype}: use one of them"
        )
    quantized = prepare_blocks(x, two_d=two_d, rht=rht, amax=amax)
    values = round_blocks(quantized, quantized.scales, stochastic=stochastic, generator=generator, dtype=dtype)
    return ScaledValues(values, quantized.amax, quantized.scales.squeeze(-1))


@torch.no_grad()
def gemm_alpha(amax_a: Tensor, amax_b: Tensor) -> Tensor:
    """The FP32 factor of a product of two quantized tensors, ``amax_a * amax_b * (1 / (36 * 448 * 448))``.

    The reciprocal is rounded first, as the contract of the numbers says; Transformer Engine's Python reference divides
    instead, which differs in the last FP32 bit of about one factor in six and vanishes in a BF16 result nearly always.

    Args:
        amax_a: the ``amax`` of one operand, an FP32 scalar.
        amax_b: the ``amax`` of the other.

    Returns:
        An FP32 scalar to multiply the FP32 accumulator with.
    """
    return amax_a.float() * amax_b.float() * (1.0 / (_TENSOR_MAX * _TENSOR_MAX))


@torch.no_grad()
def decode(quantized: ScaledValues, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn the operand of a product back into the tensor that it stands for.

    The FP32 order is ``q * ((s * amax) * (1 / 2688))``, then a cast, so the codes are divided out of the values
    first, which is exact.

    Args:
        quantized: what :func:`scaled_values` returned.
        dtype: of the result.

    Returns:
        The decoded tensor, in the shape of ``quantized.values``.
    """
    length = quantized.values.shape[-1]
    scales = quantized.scales.unsqueeze(-1)
    codes = pad_last(quantized.values.float(), BLOCK_SIZE).unflatten(-1, (-1, BLOCK_SIZE))
    # A block whose scale underflowed to zero holds zeros; dividing them by one keeps them.
    decoded = codes / torch.where(scales == 0, 1.0, scales)
    decoded *= decode_factors(scales, quantized.amax)
    return decoded.flatten(-2)[..., :length].to(dtype)


def decode_factors(scales: Tensor, amax: Tensor) -> Tensor:
    """``(s * amax) * (1 / 2688)`` in FP32: what a code is multiplied with to decode it."""
    return (scales * amax) * (1.0 / _TENSOR_MAX)


def prepare_blocks(x: Tensor, *, two_d: bool, rht: bool, amax: Tensor | None = None) -> QuantizedBlocks:
    """Pad, rotate and split a tensor into blocks, and compute their scales; arguments as in :func:`scaled_values`."""
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
    stochastic: bool,
    generator: torch.Generator | None,
    dtype: torch.dtype,
) -> Tensor:
    """Encode and round every block, multiply it with its factor and join the blocks again.

    Args:
        quantized: the blocks and their scales.
        factors: FP32 numbers that broadcast over the blocks, ``[..., B, 1]``.
        stochastic: as in :func:`scaled_values`.
        generator: as in :func:`scaled_values`.
        dtype: of the result.

    Returns:
        ``code * factor``, shape ``[..., K]``.
    """
    blocks = quantized.blocks
    result = torch.empty_like(blocks, dtype=dtype)
    bits = random_bits(blocks, generator) if stochastic else blocks
    for block, encode, factor, bit, out in _tiles(blocks, quantized.encode, factors, bits, result):
        scaled = block * encode
        codes = round_e2m1_stochastic(scaled, bit) if stochastic else round_e2m1_(scaled)
        torch.mul(codes, factor, out=out)
    return result.flatten(-2)[..., : quantized.length]


def pad_last(x: Tensor, multiple: int) -> Tensor:
    """Pad the last axis with zeros to a multiple; the tensor itself if there is nothing to pad."""
    missing = -x.shape[-1] % multiple
    return functional.pad(x, (0, missing)) if missing else x


def _block_maxima(blocks: Tensor) -> Tensor:
    """The largest magnitude of each block, FP32, ``[..., B, 1]``; NaN where there is one."""
    # Without their sign bits, floats are ordered as the integers of the same bits are, NaN above infinity; and torch
    # reduces short runs of integers five times as fast as floats.
    bits = torch.int32 if blocks.dtype is torch.float32 else torch.int16
    # The result lies in memory in the order that the blocks do, so that later passes walk both alike.
    maxima = torch.empty_like(blocks[..., :1], dtype=bits)
    for block, out in _tiles(blocks, maxima):
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
    tensor_scale = (torch.full_like(amax, _TENSOR_MAX) / amax).clamp_max(_FLOAT_MAX)
    tensor_scale = torch.where((amax == 0) | (tensor_scale == 0), 1.0, tensor_scale)
    sixth = torch.full_like(amax, E2M1_MAX).reciprocal()
    scales = (maxima * (tensor_scale * sixth)).clamp_max_(E4M3_MAX)
    scales = round_e4m3_(scales)
    encode = (scales * tensor_scale.reciprocal()).reciprocal_().clamp_max_(_FLOAT_MAX)
    return scales, encode


@lru_cache(maxsize=16)
def _rotation_matrix(device: torch.device) -> Tensor:
    """``diag(signs) @ H16 / 4``, FP32."""
    hadamard = torch.ones(1, 1)
    while len(hadamard) < BLOCK_SIZE:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    return (torch.tensor(_ROTATION_SIGNS)[:, None] * hadamard / 4).to(device)


def _tiles(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of equal leading axes into pieces that stay in a CPU's cache, along the axis of largest stride."""
    first = tensors[0]
    limit = _TILE * torch.get_num_threads()
    axes = [axis for axis in range(first.ndim - 1) if first.shape[axis] > 1]
    if first.device.type != "cpu" or first.numel() <= limit or not axes:
        yield tensors
        return
    axis = max(axes, key=first.stride)
    count = min(first.shape[axis], -(-first.numel() // limit))
    for pieces in zip(*(tensor.chunk(count, axis) for tensor in tensors), strict=True):
        yield from _tiles(*pieces)
