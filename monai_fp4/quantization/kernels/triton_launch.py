"""Cut a tensor into tiles for the kernels of `triton_row_kernels` and `triton_column_kernels`, and launch them.

The kernels read matrices ``[N, R, C]`` with neighbouring C. Most tensors that layers quantize are such matrices without
a copy: tokens ``[T, C]`` and their transpose, images in channels-first memory (``[N, C, H * W]``, blocks along the
middle axis) and in channels-last memory (``[N * H * W, C]``, blocks along the last).

Triton is imported by the first launch: importing it takes a second, and many processes never launch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_fp4.quantization.formats.blocks import BLOCK_SIZE, ScaledValues
from monai_fp4.quantization.kernels.task import Task

__all__ = ["as_matrix", "as_partials", "both_operands", "column_operand", "merge_axes", "row_operand"]

_PROGRAMS = 512  # of a maxima kernel at most: each program of a quantizer reads so many partial maxima
_ROW_TILE = 4096  # numbers in a tile of the row kernels
_WIDEST_ROW = 1024
_COLUMN_TILE = 512  # numbers in each of the sixteen tensors that make a tile of the column kernels
_COMPILE: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}


def merge_axes(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Merge axes that follow each other in memory: the (size, stride) of those that remain.

    >>> merge_axes((2, 3, 4), (24, 4, 1)), merge_axes((2, 4, 3), (12, 1, 4))
    ([(2, 24), (12, 1)], [(2, 12), (4, 1), (3, 4)])
    """
    merged: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


def as_matrix(x: Tensor, two_d: bool) -> tuple[Tensor, bool]:
    """See ``[..., K]`` as ``[N, R, C]``, copied only if it must be.

    Args:
        x: a tensor with at least one number.
        two_d: keep the axis before the last apart from those before it.

    Returns:
        The matrix, and whether K is C (and the other axes N and R, in their order); otherwise K is R, and the other
        axes are N and C.
    """
    sizes, strides = x.shape[:-1], x.stride()[:-1]
    if x.stride(-1) == 1 or x.shape[-1] == 1:
        if two_d:
            groups, rows = merge_axes(sizes[:-1], strides[:-1]), [(sizes[-1], strides[-1])]
        else:
            groups, rows = merge_axes(sizes, strides), []
        groups = [(1, 0)] * (2 - len(groups) - len(rows)) + groups + rows
        if len(groups) == 2:
            (items, item_stride), (count, row_stride) = groups
            return x.as_strided((items, count, x.shape[-1]), (item_stride, row_stride, 1)), True
    elif not two_d:
        for cut in range(len(sizes)):
            groups, inner = merge_axes(sizes[:cut], strides[:cut]), merge_axes(sizes[cut:], strides[cut:])
            if len(groups) <= 1 and len(inner) == 1 and inner[0][1] == 1:
                items, item_stride = groups[0] if groups else (1, 0)
                return x.as_strided((items, x.shape[-1], inner[0][0]), (item_stride, x.stride(-1), 1)), False
    return as_matrix(x.contiguous(), two_d)


def as_partials(amax: Tensor, device: torch.device) -> Tensor:
    """A maximum that is known, in the form of the partial maxima of one program."""
    return amax.detach().to(device, torch.float32).reshape(1).view(torch.int32)


def row_operand(x: Tensor, task: Task) -> ScaledValues:
    """Quantize ``[N, R, C]`` along C: values ``[N, R, C]`` and scales ``[N, R, B]``."""
    from monai_fp4.quantization.kernels import triton_row_kernels as kernels

    shape, two_d = x.shape, task.two_d
    if not two_d:
        x = _long_rows(x)
    items, rows, columns = x.shape
    width = _padded(columns) if task.rht else columns
    widest = _ROW_TILE // BLOCK_SIZE if two_d else _WIDEST_ROW
    # Two blocks at least where they are rotated: results are rounded to BF16 in pairs.
    tile_columns = min(widest, _power_of_two(columns, 2 * BLOCK_SIZE if task.rht else BLOCK_SIZE))
    tile_rows = min(_ROW_TILE // tile_columns, _power_of_two(rows, BLOCK_SIZE if two_d else 1))
    tiles = items * -(-rows // tile_rows) * -(-columns // tile_columns)
    tile = {"ROWS": tile_rows, "COLUMNS": tile_columns}
    rotation = {"ROTATE": task.rht, "PAIRED": x.dtype is torch.bfloat16}
    strides = (x.stride(0), x.stride(1))
    blocks = -(-columns // BLOCK_SIZE)
    values = x.new_empty((items, rows, width), dtype=task.dtype)
    scales = x.new_empty((items, rows, blocks) if task.with_scales else (0,), dtype=torch.float32)
    found = x.new_empty(1, dtype=torch.float32)
    with torch.cuda.device_of(x):
        if task.amax is not None:
            partials = as_partials(task.amax, x.device)
        else:
            partials = x.new_empty(min(tiles, _PROGRAMS), dtype=torch.int32)
            kernels.row_maxima[(len(partials),)](
                x, partials, rows, columns, *strides, tiles, **rotation, **tile, **_COMPILE
            )
        kernels.quantize_rows[(tiles,)](
            *(x, partials, len(partials), values, scales, found, _unsigned(task.key)),
            *(rows, columns, width, *strides),
            **rotation,
            **{"STOCHASTIC": task.key is not None, "TWO_D": two_d},
            **_compiled(task, len(partials)),
            **tile,
        )
    if task.with_scales:
        scales = scales.view(*shape[:2], -1)
    return ScaledValues(values.view(*shape[:2], -1), found[0], scales)


def column_operand(x: Tensor, task: Task) -> ScaledValues:
    """Quantize ``[N, R, C]`` along R: values ``[N, C, R]`` and scales ``[N, C, B]``, both transposed views."""
    partials = None if task.amax is None else as_partials(task.amax, x.device)
    return _columns(x, task, False, task.key, partials)[1]


def both_operands(
    x: Tensor, task: Task, column_key: int | None, partials: Tensor | None
) -> tuple[ScaledValues, ScaledValues]:
    """Both of ``[N, R, C]``, the column-wise one rotated; ``partials`` are two maxima if these are known."""
    return _columns(x, task, True, column_key, partials)


def _columns(
    x: Tensor, task: Task, both: bool, column_key: int | None, partials: Tensor | None
) -> tuple[ScaledValues, ScaledValues]:
    from monai_fp4.quantization.kernels import triton_column_kernels as kernels
    from monai_fp4.quantization.kernels.triton_row_kernels import row_maxima

    items, rows, columns = x.shape
    stacked = -(-rows // BLOCK_SIZE)
    height = stacked * BLOCK_SIZE if task.rht else rows
    tile_columns = min(_COLUMN_TILE, _power_of_two(columns, BLOCK_SIZE))
    groups = min(_COLUMN_TILE // tile_columns, _power_of_two(stacked, 1))
    tiles = items * -(-stacked // groups) * -(-columns // tile_columns)
    strides = (x.stride(0), x.stride(1))
    tile = {"GROUPS": groups, "COLUMNS": tile_columns}
    paired = x.dtype is torch.bfloat16
    wide = {"ROWS": BLOCK_SIZE * groups, "COLUMNS": tile_columns}
    column_values = x.new_empty((items, height, columns), dtype=task.dtype)
    row_values = x.new_empty((items, rows, columns) if both else (0,), dtype=task.dtype)
    wanted = task.with_scales
    column_scales = x.new_empty((items, stacked, columns) if wanted else (0,), dtype=torch.float32)
    blocks = -(-columns // BLOCK_SIZE)
    row_scales = x.new_empty((items, rows, blocks) if wanted and both else (0,), dtype=torch.float32)
    found = x.new_empty(2, dtype=torch.float32)
    with torch.cuda.device_of(x):
        if partials is not None:
            count, step = 1, len(partials) - 1
        elif task.rht:
            count = step = min(tiles, _PROGRAMS)
            partials = x.new_empty(2 * count, dtype=torch.int32)
            kernels.column_maxima[(count,)](
                x, partials, rows, columns, *strides, tiles, PAIRED=paired, **tile, **_COMPILE
            )
        else:
            count, step = min(tiles, _PROGRAMS), 0
            partials = x.new_empty(count, dtype=torch.int32)
            row_maxima[(count,)](
                x, partials, rows, columns, *strides, tiles, ROTATE=False, PAIRED=paired, **wide, **_COMPILE
            )
        kernels.quantize_columns[(tiles,)](
            *(x, partials, count, step, row_values, row_scales, column_values, column_scales, found),
            *(_unsigned(task.key), _unsigned(column_key), rows, columns, height, *strides),
            **{"BOTH": both, "ROTATE": task.rht, "PAIRED": paired},
            **{"ROW_STOCHASTIC": task.key is not None, "COLUMN_STOCHASTIC": column_key is not None},
            **_compiled(task, count),
            **tile,
        )
    row = ScaledValues(row_values, found[0], row_scales)
    return row, ScaledValues(column_values.mT, found[1], column_scales.mT if wanted else column_scales)


def _long_rows(x: Tensor) -> Tensor:
    """The same blocks in the same order in rows of a power of two, so that tiles have no idle corners."""
    numbers = x.numel()
    width = math.gcd(numbers, _WIDEST_ROW)
    if x.shape[-1] % BLOCK_SIZE or width < _WIDEST_ROW // 8 or not x.is_contiguous():
        return x
    return x.view(1, -1, width)


def _compiled(task: Task, partials: int) -> dict[str, Any]:
    """The constants of compile time that both quantizing kernels have."""
    several = _PROGRAMS if partials > 1 else 1
    return {"DECODED": task.decoded, "WITH_SCALES": task.with_scales, "PARTIALS": several, **_COMPILE}


def _unsigned(key: int | None) -> int:
    return 0 if key is None else key & (1 << 64) - 1


def _padded(length: int) -> int:
    return -(-length // BLOCK_SIZE) * BLOCK_SIZE


def _power_of_two(number: int, smallest: int) -> int:
    """The smallest power of two that is not below either."""
    return 1 << (max(number, smallest) - 1).bit_length()
