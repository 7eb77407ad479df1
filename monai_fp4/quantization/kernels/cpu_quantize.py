"""Quantization on a CPU in one pass over memory: the binding of ``quantize.cpp``.

:func:`quantize` computes what :mod:`monai_fp4.quantization.formats.blocks` does, bit for bit, and more than it in two
ways that spare copies: it writes **into a given view**, and writes **pairs** of neighbouring positions side by side,
the layout that the BF16 product reads.

The tensor may have any strides. Its batch axes are merged as far as its strides allow, and if one of them lies along
memory where the quantized axis does not, as in a transposed view, the kernel works on 16 columns at a time.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from monai_fp4 import compiler
from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.blocks import BLOCK_SIZE, ScaledValues
from monai_fp4.quantization.formats.rounding import check_dtype
from monai_fp4.quantization.formats.scheme import STANDARD
from monai_fp4.quantization.kernels import torch_quantize
from monai_fp4.quantization.kernels.task import STANDARD_TASK, Task

__all__ = ["SOURCE", "available", "quantize", "takes"]

SOURCE = Path(__file__).with_name("quantize.cpp")
"""The C++ file that is compiled."""

# As in quantize.cpp.
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_TWO_D, _ROTATE, _STOCHASTIC, _DECODED, _PAIRS, _GIVEN_AMAX, _COLUMNS = (1 << bit for bit in range(7))
_MAX_AXES = 6
_HEAD = struct.Struct("8qQ2q")
_TAIL = struct.Struct(f"{3 + 4 * _MAX_AXES}q")

_PER_THREAD = 1 << 14  # numbers that are worth a thread

Axis = tuple[int, int, int, int]
"""A batch axis: its size, and its strides in the input, in the output and in the count of blocks."""


def available() -> bool:
    """Whether the kernel can be used; the first call of a process builds or loads it."""
    return compiler.load(SOURCE, _fault) is not None


def takes(x: Tensor, task: Task) -> bool:
    """A tensor in a CPU's memory, in the standard format, where the kernel can be had."""
    return x.is_cpu and task.scheme is STANDARD and available()


def quantize(
    x: Tensor,
    task: Task = STANDARD_TASK,
    *,
    pairs: bool = False,
    out: Tensor | None = None,
    library: ctypes.CDLL | None = None,
) -> ScaledValues:
    """Quantize a CPU tensor along its last axis, where :func:`available` says that it can be.

    Args:
        x: FP32, BF16 or FP16, shape ``[..., K]``, any strides.
        task: what :func:`takes` takes.
        pairs: give the values as BF16 ``[..., Kp / 2, M, 2]`` for a tensor ``[..., M, K]``: two neighbouring positions
            side by side for each row. Kp is K padded to a multiple of 16, the padding is zero.
        out: where to write the values; a view of their shape and dtype with any strides.
        library: the compiled kernel; by default the one of this machine.

    Returns:
        The operand.

    Raises:
        ConfigError: shapes, dtypes, devices or options that do not fit.
    """
    library = library or compiler.load(SOURCE, _fault)
    assert library is not None, "`takes` was not asked first"
    x, dtype, two_d = _readable(x), task.dtype, task.two_d
    shape = x.shape
    blocks = -(-shape[-1] // BLOCK_SIZE)
    out_length = blocks * BLOCK_SIZE if task.rht or pairs else shape[-1]
    wanted = (*shape[:-2], out_length // 2, shape[-2], 2) if pairs else (*shape[:-1], out_length)
    if out is None:
        out = x.new_empty(wanted, dtype=dtype) if pairs else _empty_like(x, wanted, dtype)
    elif out.shape != wanted or out.dtype is not dtype:
        raise ConfigError(
            f"expected an output {tuple(wanted)} of {dtype}, found {tuple(out.shape)} of {out.dtype}: allocate it so"
        )
    # Made from x and not by torch.empty, whose device a user may set: the kernel writes to a CPU's memory.
    scales = x.new_empty((*shape[:-1], blocks) if task.with_scales else 0, dtype=torch.float32)
    if task.amax is None:
        largest = x.new_zeros((), dtype=torch.float32)
    else:
        largest = task.amax.detach().to("cpu", torch.float32).reshape(())
    if out.numel() == 0:
        return ScaledValues(out, largest, scales)
    target, plan = out, _plan(shape, x.stride(), out.stride(), blocks, two_d, pairs)
    if plan is None:  # more axes than the kernel walks, none of which can be merged
        x, out = x.contiguous(), x.new_empty(wanted, dtype=dtype)
        plan = _plan(shape, x.stride(), out.stride(), blocks, two_d, pairs)
        assert plan is not None, "the axes of contiguous memory merge"
    flags, tail = plan
    options = ((two_d, _TWO_D), (task.rht, _ROTATE), (task.key is not None, _STOCHASTIC), (task.decoded, _DECODED))
    flags |= sum(flag for chosen, flag in (*options, (task.amax is not None, _GIVEN_AMAX)) if chosen)
    threads = max(1, min(torch.get_num_threads(), out.numel() // _PER_THREAD))
    arguments = _HEAD.pack(
        *(x.data_ptr(), out.data_ptr(), largest.data_ptr(), scales.data_ptr() if task.with_scales else 0),
        *(flags, _DTYPES[x.dtype], _DTYPES[dtype], threads),
        *(0 if task.key is None else task.key & 0xFFFFFFFFFFFFFFFF, shape[-1], out_length),
    )
    if library.monai_fp4_quantize(arguments + tail):
        raise RuntimeError("quantize.cpp and its binding disagree")
    if out is not target:
        target.copy_(out)
    return ScaledValues(target, largest, scales)


def _readable(x: Tensor) -> Tensor:
    """The tensor, if the kernel may read its numbers from memory as they are; a copy or a refusal where it may not."""
    check_dtype(x)
    if not x.is_cpu or x.layout is not torch.strided:
        raise ConfigError(
            f"expected a dense tensor on the CPU, found one of layout {x.layout} on {x.device}: move it to the CPU"
            " (a layer and its input belong on one device) or call to_dense()"
        )
    if x.is_neg() or x._is_zerotensor():  # their memory holds other numbers, or there is none
        return x.resolve_neg().clone()
    return x


def _empty_like(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor whose axes lie in memory in the order of those of ``x``."""
    if x.is_contiguous():
        return x.new_empty(shape, dtype=dtype)
    strides = x.stride()
    # A repeated axis has stride 0 and belongs outside.
    order = sorted(range(x.ndim), key=lambda axis: -(strides[axis] or 1 << 62))
    return torch.empty_permuted(shape, order, dtype=dtype, device=x.device)


@lru_cache(maxsize=4096)
def _plan(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    blocks: int,
    two_d: bool,
    pairs: bool,
) -> tuple[int, bytes] | None:
    """In which order the kernel walks the batch axes: the flags that follow from it and the packed strides."""
    in_k, out_k = strides[-1], out_strides[-1]
    if pairs:  # the kernel counts pairs, of 32 bits
        out_k = out_strides[-3] // 2
        out_strides = (*(stride // 2 for stride in out_strides[:-3]), out_strides[-2] // 2, out_k)
    axes: list[Axis] = []
    count = blocks
    for index in range(len(shape) - 2, -1, -1):
        axes.append((shape[index], strides[index], out_strides[index], count))
        count *= shape[index]
    flags = _PAIRS if pairs else 0
    inner: Axis | None = None
    if two_d:
        inner = axes.pop(0)
        columns = in_k != 1 and inner[1] == 1
    else:
        axes = [axis for axis in axes if axis[0] > 1]
        along = [axis for axis in axes if axis[1] == 1]
        columns = in_k != 1 and bool(along)
        if columns:
            inner = max(along)
            axes.remove(inner)
    merged: list[Axis] = []
    for candidate in sorted((axis for axis in axes if axis[0] > 1), key=lambda axis: (-axis[1], -axis[2])):
        _append(merged, candidate)
    if inner is not None:
        if two_d:  # the kernel cuts it into groups of 16 from its start
            merged.append(inner)
        else:
            _append(merged, inner)
    merged = merged or [(1, 0, 0, 0)]
    if len(merged) > _MAX_AXES:
        return None
    filled = merged + [(1, 0, 0, 0)] * (_MAX_AXES - len(merged))
    tail = _TAIL.pack(in_k, out_k, len(merged), *(axis[field] for field in range(4) for axis in filled))
    return flags | (_COLUMNS if columns else 0), tail


def _append(axes: list[Axis], axis: Axis) -> None:
    """Put an axis inside of the others, as one with the innermost of them where their strides allow."""
    if axes and all(outer == own * axis[0] for outer, own in zip(axes[-1][1:], axis[1:], strict=True)):
        axis = (axes.pop()[0] * axis[0], *axis[1:])
    axes.append(axis)


def _fault(library: ctypes.CDLL) -> str | None:
    """Compare a fresh library with the plain path on magnitudes from subnormal to infinite; say where they differ."""
    library.monai_fp4_quantize.argtypes = [ctypes.c_char_p]
    library.monai_fp4_quantize.restype = ctypes.c_int
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):
        x = torch.randn(20, 40, generator=generator, dtype=torch.float32) * torch.logspace(-6, 6, 40).float()
        x[0], x[1, :20], x[2] = x[0] * 1e-40, 0.0, (torch.arange(40) - 20) / 4
    for dtype in _DTYPES:
        for view in (x.to(dtype), x.to(dtype).mT):
            for two_d, rht, key in ((False, False, None), (True, False, 3), (False, True, None), (False, True, -5)):
                task = Task(two_d=two_d, rht=rht, key=key, dtype=dtype)
                expected, ours = torch_quantize.quantize(view, task), quantize(view, task, library=library)
                if not (_same(ours.values, expected.values) and _same(ours.amax, expected.amax)):
                    layout = "columns" if view.stride(-1) > 1 else "rows"
                    return (
                        f"it differs from plain torch in the self-check ({dtype}, {layout}, {two_d=}, {rht=}, {key=})"
                    )
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal, with all NaN as one."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
