"""The scale of each block, for each `Scheme`, in plain torch: the definition of the formats above their codes.

Each function takes the block maxima and gives the block scales as FP32 numbers, and the factors that a block is
multiplied with before its numbers are rounded to E2M1. The operations and their order are those of Transformer Engine
2.20.2 (``reference_nvfp4.py``), bit for bit, with one exception that `power_of_two_scales` names.

**Four over six** scales a block so that its maximum becomes 6 and, once more, so that it becomes 4, and keeps whichever
has the smaller sum of absolute errors. E2M1 has nothing between 4 and 6, so a block with its second largest number at
five sixths of the largest loses less when 4 is the top. The method is that of Cook et al., `Four Over Six
<https://arxiv.org/abs/2512.02010>`_.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from monai_fp4.quantization.formats.rounding import E2M1_MAX, E4M3_MAX, round_e2m1_, round_e4m3_
from monai_fp4.quantization.formats.scheme import Scheme
from monai_fp4.quantization.formats.tiles import tiles

__all__ = ["block_scales", "share_over_rows"]

_FLOAT_MAX = torch.finfo(torch.float32).max


def block_scales(scheme: Scheme, blocks: Tensor, maxima: Tensor, amax: Tensor, *, two_d: bool) -> tuple[Tensor, Tensor]:
    """Compute the scale of each block.

    Args:
        scheme: the format.
        blocks: the numbers, ``[..., M, B, block_size]``.
        maxima: the largest magnitude of each block, FP32 ``[..., M, B, 1]``; with ``two_d`` shared over its rows.
        amax: the largest magnitude of the tensor, an FP32 scalar.
        two_d: whether a block spans as many rows as columns.

    Returns:
        The scales as FP32 numbers and the factors that encode, both in the shape of the maxima.
    """
    if scheme is Scheme.MXFP4:
        return power_of_two_scales(maxima)
    tensor_scale = _tensor_scale(amax, scheme.bound)
    if scheme is Scheme.FOUR_OVER_SIX:
        return _four_over_six(blocks, maxima, amax, tensor_scale, scheme.bound, two_d)
    sixth = torch.full_like(amax, E2M1_MAX).reciprocal()
    return _e4m3_scales(maxima * (tensor_scale * sixth), tensor_scale)


def share_over_rows(maxima: Tensor, rows: int) -> Tensor:
    """Give each ``rows`` neighbouring rows the largest of their block maxima: ``[..., M, B, 1]`` in and out."""
    return _spread(_by_rows(maxima, rows).amax(-3), rows, maxima.shape[-3])


def power_of_two_scales(maxima: Tensor) -> tuple[Tensor, Tensor]:
    """``2^ceil(log2(maximum / 6))``, with exponents from -127 to 127; NaN stays NaN.

    The exponent is read from the bits of the quotient, so it is exact. Transformer Engine takes an FP32 logarithm,
    which rounds a quotient that is barely above a power of two down to it.
    """
    quotient = maxima / torch.full_like(maxima, E2M1_MAX)
    bits = quotient.view(torch.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    # Below 2^-126 the exponent's bits are 0 and the mantissa counts 2^-149, of which 2^22 make 2^-127.
    exponent = exponent + torch.where(exponent == 0, mantissa > 1 << 22, mantissa > 0)
    exponent = exponent.clamp_max(254)
    scales = torch.where(exponent == 0, 1 << 22, exponent << 23).view(torch.float32)
    scales = torch.where(quotient.isnan(), quotient, scales)
    return scales, scales.reciprocal()


def _tensor_scale(amax: Tensor, bound: float) -> Tensor:
    """What the whole tensor is multiplied with, so that its maximum becomes the bound."""
    # A tensor over a tensor: torch computes `number / tensor` as a reciprocal and a product, which rounds twice.
    scale = (torch.full_like(amax, bound) / amax).clamp_max(_FLOAT_MAX)
    return torch.where((amax == 0) | (scale == 0), 1.0, scale)


def _e4m3_scales(exact: Tensor, tensor_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Round scales to E4M3, in place, and compute what encodes with them."""
    scales = round_e4m3_(exact.clamp_max_(E4M3_MAX))
    encode = (scales * tensor_scale.reciprocal()).reciprocal_().clamp_max_(_FLOAT_MAX)
    return scales, encode


def _four_over_six(
    blocks: Tensor, maxima: Tensor, amax: Tensor, tensor_scale: Tensor, bound: float, two_d: bool
) -> tuple[Tensor, Tensor]:
    to_six = maxima / torch.full_like(amax, E2M1_MAX) * tensor_scale
    six, four = _e4m3_scales(to_six.clone(), tensor_scale), _e4m3_scales(to_six * 1.5, tensor_scale)
    error_six, error_four = (_absolute_errors(blocks, *pair, amax, bound) for pair in (six, four))
    if two_d:
        rows = blocks.shape[-1]
        error_six, error_four = _sum_over_rows(error_six, rows), _sum_over_rows(error_four, rows)
    takes_four = error_four < error_six  # never where an error is NaN
    return torch.where(takes_four, four[0], six[0]), torch.where(takes_four, four[1], six[1])


def _absolute_errors(blocks: Tensor, scales: Tensor, encode: Tensor, amax: Tensor, bound: float) -> Tensor:
    """The sum of absolute errors of each block, ``[..., B, 1]``, added up from its first number to its last."""
    errors = torch.empty_like(scales)
    divisor = torch.full_like(amax, bound)
    for block, scale, factor, out in tiles(blocks, scales, encode, errors):
        numbers = block.to(torch.float32)
        difference = round_e2m1_(numbers * factor).mul_(scale).mul_(amax).div_(divisor).sub_(numbers).abs_()
        # Position k of all blocks as one long row, so that each step adds two rows.
        columns = difference.movedim(-1, 0).contiguous()
        total = columns[0]
        for column in columns[1:]:
            total += column
        out.copy_(total.unsqueeze(-1))
    return errors


def _sum_over_rows(errors: Tensor, rows: int) -> Tensor:
    """Add up 16 neighbouring rows of ``[..., M, B, 1]`` by halves, row i and row i + 8 first, and give all the sum."""
    sums, count = _by_rows(errors, rows), rows
    while rows > 1:
        rows //= 2
        sums = sums[..., :rows, :, :] + sums[..., rows:, :, :]
    return _spread(sums.squeeze(-3), count, errors.shape[-3])


def _by_rows(x: Tensor, rows: int) -> Tensor:
    """``[..., M, B, 1]`` to ``[..., ceil(M / rows), rows, B, 1]``, the last rows filled up with zeros."""
    padded = functional.pad(x, (0, 0, 0, 0, 0, -x.shape[-3] % rows))
    return padded.unflatten(-3, (padded.shape[-3] // rows, rows))


def _spread(x: Tensor, rows: int, length: int) -> Tensor:
    """Undo `_by_rows` for numbers that all rows share."""
    return x.repeat_interleave(rows, dim=-3)[..., :length, :, :]
