"""Quantize tensors on CUDA GPUs, from Ampere on, by Triton kernels.

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
from monai_fp4.quantization.formats.scheme import STANDARD
from monai_fp4.quantization.kernels.task import STANDARD_TASK, Task
from monai_fp4.quantization.kernels.triton_launch import (
    as_matrix,
    as_partials,
    both_operands,
    column_operand,
    row_operand,
)
from monai_fp4.quantization.kernels.triton_support import available, may_fail

__all__ = ["quantize", "quantize_both", "takes"]


def takes(x: Tensor, task: Task) -> bool:
    """A tensor on a GPU that the kernels run on, in the standard format."""
    return x.is_cuda and task.scheme is STANDARD and x.numel() > 0 and available(x.device)[0]


@torch.no_grad()
@may_fail()
def quantize(x: Tensor, task: Task = STANDARD_TASK) -> ScaledValues:
    """Quantize along the last axis, as all of :data:`monai_fp4.quantization.kernels.quantizers.QUANTIZERS` do.

    Args:
        x: FP32, BF16 or FP16, ``[..., K]`` with at least one number. It is read as it lies in memory if its axes merge
            into at most three of which the last, or the one before, is the quantized one; else it is copied first.
        task: what `takes` takes.

    Returns:
        Values ``[..., K]`` (K padded to whole blocks with ``rht``) in the order of axes that ``x`` has in memory, the
        maximum and the scales.
    """
    x = x.detach()
    if task.two_d and task.key is None and x.stride(-1) != 1 and x.stride(-2) == 1:
        # The blocks of the transposed matrix, and so its codes, are the same.
        result = quantize(x.mT, task)
        scales = result.scales
        if task.with_scales:
            scales = scales[..., ::BLOCK_SIZE, :].mT.repeat_interleave(BLOCK_SIZE, -2)[..., : x.shape[-2], :]
        return ScaledValues(result.values.mT, result.amax, scales)
    data, along_rows = as_matrix(x, task.two_d)
    return _shaped((row_operand if along_rows else column_operand)(data, task), x.shape[:-1])


@torch.no_grad()
@may_fail()
def quantize_both(
    x: Tensor,
    task: Task = STANDARD_TASK,
    *,
    column_key: int | None = None,
    amaxes: tuple[Tensor, Tensor] | None = None,
) -> tuple[ScaledValues, ScaledValues]:
    """Quantize along the last axis and along the one before it, from the same reads.

    Args:
        x: FP32, BF16 or FP16, ``[..., T, C]`` with at least one number; copied first if C is not contiguous.
        task: its ``rht`` rotates the column-wise copy, never the row-wise one, and its ``key`` is the row-wise copy's.
        column_key: of the column-wise copy's random bits; ``None`` rounds it to nearest.
        amaxes: the maxima to scale both by, the second of the rotated columns with ``rht``; by default those of ``x``.

    Returns:
        What :func:`quantize` returns for ``x``, and for ``x.mT`` with ``rht``. The values of the second are a
        transposed view, ``[..., C, T]``, of memory in which C is contiguous.
    """
    data = x.detach()
    if data.stride(-1) != 1 and data.shape[-1] > 1:
        data = data.contiguous()
    data, _ = as_matrix(data, True)
    partials = None if amaxes is None else torch.cat([as_partials(amax, x.device) for amax in amaxes])
    row, column = both_operands(data, task, column_key, partials)
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
