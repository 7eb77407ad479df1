"""Quantize tensors on CUDA GPUs, from Ampere on, with the kernels of `triton_kernels`.

:func:`quantize` gives what ``numerics.scaled_values`` gives, bit for bit, and :func:`quantize_both` the row-wise and
the column-wise operand of one matrix from the same reads. A tensor is read twice: once for its maximum, which scales
everything, and once to be quantized. Where the maximum is known already, one read is left. In bytes per number, with
BF16 in and out and the scales not counted (1/4 of a byte for each operand):

=========================  ===============  ==========  =======  =====
operands                   read for maxima  to quantize  written  total
=========================  ===============  ==========  =======  =====
row-wise or column-wise    2                2            2        6
both, rotated or not       2                2            4        8
=========================  ===============  ==========  =======  =====

Everything stays on the device: no number is copied to the host, so nothing waits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.quantization.formats.blocks import BLOCK_SIZE, ScaledValues
from monai_fp4.quantization.formats.scheme import STANDARD, Scheme
from monai_fp4.quantization.kernels.triton_launch import (
    Options,
    as_matrix,
    as_partials,
    both_operands,
    column_operand,
    row_operand,
)
from monai_fp4.quantization.kernels.triton_support import available, may_fail

__all__ = ["quantize", "quantize_both", "takes"]


def takes(x: Tensor, scheme: Scheme) -> bool:
    """A tensor on a GPU that the kernels run on, in the standard format."""
    return x.is_cuda and scheme is STANDARD and x.numel() > 0 and available(x.device)[0]


@torch.no_grad()
@may_fail()
def quantize(
    x: Tensor,
    *,
    two_d: bool = False,
    rht: bool = False,
    key: int | None = None,
    amax: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    decoded: bool = False,
    with_scales: bool = True,
    scheme: Scheme = STANDARD,
) -> ScaledValues:
    """Quantize along the last axis, as all of :data:`monai_fp4.quantization.kernels.quantizers.QUANTIZERS` do.

    Args:
        x: FP32, BF16 or FP16, ``[..., K]`` with at least one number. It is read as it lies in memory if its axes merge
            into at most three of which the last, or the one before, is the quantized one; else it is copied first.
        two_d: 16x16 blocks over the last two axes.
        rht: rotate first.
        key: of the random bits (64 bits) for stochastic rounding; ``None`` rounds to nearest.
        amax: the maximum to scale by; by default that of ``x``.
        dtype: of the values.
        decoded: return ``code * (scale * amax / 2688)``, rounded to ``dtype``, instead of ``code * scale``.
        with_scales: whether block scales are wanted; without, they are an empty tensor.
        scheme: the standard one: what else there is, `takes` leaves to others.

    Returns:
        Values ``[..., K]`` (K padded to whole blocks with ``rht``) in the order of axes that ``x`` has in memory, the
        maximum and the scales.
    """
    x = x.detach()
    if two_d and key is None and x.stride(-1) != 1 and x.stride(-2) == 1:
        # The blocks of the transposed matrix, and so its codes, are the same.
        result = quantize(x.mT, two_d=True, amax=amax, dtype=dtype, decoded=decoded, with_scales=with_scales)
        scales = result.scales
        if with_scales:
            scales = scales[..., ::BLOCK_SIZE, :].mT.repeat_interleave(BLOCK_SIZE, -2)[..., : x.shape[-2], :]
        return ScaledValues(result.values.mT, result.amax, scales)
    data, along_rows = as_matrix(x, two_d)
    options = Options(rht, dtype, decoded, with_scales)
    if along_rows:
        return _shaped(row_operand(data, options, two_d, key, amax), x.shape[:-1])
    return _shaped(column_operand(data, options, key, amax), x.shape[:-1])


@torch.no_grad()
@may_fail()
def quantize_both(
    x: Tensor,
    *,
    rht: bool = False,
    row_key: int | None = None,
    column_key: int | None = None,
    amaxes: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    decoded: bool = False,
    with_scales: bool = True,
) -> tuple[ScaledValues, ScaledValues]:
    """Quantize along the last axis and along the one before it, from the same reads.

    Args:
        x: FP32, BF16 or FP16, ``[..., T, C]`` with at least one number; copied first if C is not contiguous.
        rht: rotate the column-wise copy first, never the row-wise one.
        row_key: of the row-wise copy's random bits; ``None`` rounds to nearest.
        column_key: of the column-wise copy's.
        amaxes: the maxima to scale both by, the second of the rotated columns with ``rht``; by default those of ``x``.
        dtype: of the values.
        decoded: as in :func:`quantize`.
        with_scales: as in :func:`quantize`.

    Returns:
        What :func:`quantize` returns for ``x``, and for ``x.mT`` with ``rht``. The values of the second are a
        transposed view, ``[..., C, T]``, of memory in which C is contiguous.
    """
    data = x.detach()
    if data.stride(-1) != 1 and data.shape[-1] > 1:
        data = data.contiguous()
    data, _ = as_matrix(data, True)
    partials = None if amaxes is None else torch.cat([as_partials(amax, x.device) for amax in amaxes])
    row, column = both_operands(data, Options(rht, dtype, decoded, with_scales), row_key, column_key, partials)
    leading = x.shape[:-2]
    return _shaped(row, (*leading, x.shape[-2])), _shaped(column, (*leading, x.shape[-1]))


def _shaped(result: ScaledValues, leading: tuple[int, ...]) -> ScaledValues:
    """Split the first two axes of a result into those of the tensor, which needs no copy."""
    values, scales = result.values, result.scales
    return ScaledValues(
        values.reshape(*leading, values.shape[-1]),
        result.amax,
        scales.reshape(*leading, scales.shape[-1]) if scales.numel() else scales,
    )
