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

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.blocks import BLOCK_SIZE, ScaledValues
from monai_fp4.quantization.kernels.switch import is_plain
from monai_fp4.quantization.kernels.triton_launch import (
    Options,
    as_matrix,
    as_partials,
    both_operands,
    column_operand,
    row_operand,
)

__all__ = ["attempt", "available", "quantize", "quantize_both", "usable"]

_OLDEST = (8, 0)  # Ampere: BF16 tensor cores, and minima that keep a NaN

_failure: str | None = None  # why the kernels were given up in this process
_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")


def available(device: torch.device | str) -> tuple[bool, str]:
    """Whether the kernels can run on a device.

    Args:
        device: of the tensors.

    Returns:
        Yes or no; and what they run on, or why not.
    """
    device = torch.device(device)
    if _failure is not None:
        return False, _failure
    if device.type not in ("cuda", "cpu"):
        return False, f"the Triton kernels run on CUDA devices, not on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    if device.type == "cpu":
        from monai_fp4.quantization.kernels.triton_language import INTERPRETED

        if INTERPRETED:
            return True, "in Triton's interpreter, which is for tests"
        return False, "the Triton kernels run on CUDA devices, not on a CPU"
    if not torch.cuda.is_available():
        return False, "there is no CUDA device"
    if torch.version.hip is not None:
        return False, "the Triton kernels are for NVIDIA's GPUs, this torch is built for AMD's"
    return _capable(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _capable(index: int) -> tuple[bool, str]:
    capability = torch.cuda.get_device_capability(index)
    name = f"{torch.cuda.get_device_name(index)}, compute capability {capability[0]}.{capability[1]}"
    if capability < _OLDEST:
        return False, f"the Triton kernels need compute capability 8.0 or above, found {name}"
    return True, f"Triton on {name}"


def usable(x: Tensor) -> bool:
    """Whether this tensor is one for the kernels: on a GPU that they run on, with no compiler looking on."""
    fits = x.is_cuda and x.numel() > 0 and not is_plain() and not torch.compiler.is_compiling()
    return fits and available(x.device)[0]


def attempt(call: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result | None:
    """What a call of the kernels returns, or ``None`` if Triton fails: compute in plain torch.

    Triton compiles at the first call. A failure is warned about and ends the use of the kernels in this process, as
    :func:`usable`, which callers ask first, then says. Memory that runs out and arguments that are refused are no
    failures of Triton and are raised.
    """
    global _failure
    try:
        return call(*args, **kwargs)
    except (torch.OutOfMemoryError, ConfigError):
        raise
    except Exception as error:  # Triton, its compiler and the driver have no common class of errors
        first = (str(error).strip().splitlines() or [""])[0]
        _failure = f"a Triton kernel failed, {type(error).__name__}: {first}"
        warnings.warn(
            f"the Triton kernels cannot be used, plain torch computes the same numbers more slowly: {_failure}",
            RuntimeWarning,
            stacklevel=4,
        )
        return None


@torch.no_grad()
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
) -> ScaledValues:
    """Quantize along the last axis; the contract is that of ``numerics.scaled_values``, which checks the arguments.

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
