"""The CUDA kernels that work along columns: their maxima, and the column-wise operand, with the row-wise one if asked.

A tile is held as sixteen tensors, one for each place in a column block, which make everything about a block, its
maximum, rotation and random bits, arithmetic within a thread. Reads and writes are contiguous along C for both
operands: a column-wise operand stays in the layout of its tensor, which the caller transposes as a view, since BF16
tensor cores take either layout. (Those for FP4 do not.)
"""

# Constants of compile time are in capitals, as in Triton's own code, and its compiler knows no starred expressions.
# ruff: noqa: N803, RUF005
# mypy: ignore-errors

from __future__ import annotations

from monai_fp4.quantization.kernels.triton_device import (
    as_fp32,
    block_scales,
    corner,
    magnitude_bits,
    maximum_of,
    random_noise,
    random_words,
    round_codes,
    store,
)
from monai_fp4.quantization.kernels.triton_language import tl, triton
from monai_fp4.quantization.kernels.triton_rotation import rotate16
from monai_fp4.quantization.kernels.triton_row_kernels import quantize_row_tile

__all__ = ["column_maxima", "quantize_columns"]


@triton.jit
def _column_tile(
    x, item, row, column, rows, columns, item_stride, row_stride, GROUPS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The numbers of ``GROUPS`` x ``COLUMNS`` column blocks, as a tuple of their 16 places, with zeros outside."""
    block_rows = row + 16 * tl.arange(0, GROUPS)[:, None]
    places = column + tl.arange(0, COLUMNS)[None, :]
    numbers = ()
    for k in tl.static_range(16):
        pointers = x + item * item_stride + (block_rows + k).to(tl.int64) * row_stride + places
        numbers = numbers + (tl.load(pointers, mask=(block_rows + k < rows) & (places < columns), other=0.0),)
    return numbers


@triton.jit(do_not_specialize=["tiles"])
def column_maxima(
    x,
    partials,
    rows,
    columns,
    item_stride,
    row_stride,
    tiles,
    PAIRED: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write max |x| of this program's tiles to ``partials[0, program]``, the rotated columns' to ``[1, program]``."""
    largest = tl.zeros((GROUPS, COLUMNS), tl.int32)
    largest_rotated = tl.zeros((GROUPS, COLUMNS), tl.int32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        item, row, column = corner(tile, rows, columns, 16 * GROUPS, COLUMNS)
        numbers = _column_tile(x, item, row, column, rows, columns, item_stride, row_stride, GROUPS, COLUMNS)
        floats = ()
        for k in tl.static_range(16):
            floats = floats + (as_fp32(numbers[k]),)
        rotated = rotate16(floats, PAIRED)
        for k in tl.static_range(16):
            largest = tl.maximum(largest, magnitude_bits(floats[k]))
            largest_rotated = tl.maximum(largest_rotated, magnitude_bits(rotated[k]))
    tl.store(partials + tl.program_id(0), tl.max(tl.max(largest, 1), 0))
    tl.store(partials + tl.num_programs(0) + tl.program_id(0), tl.max(tl.max(largest_rotated, 1), 0))


@triton.jit(do_not_specialize=["count", "step", "row_key", "column_key"])
def quantize_columns(
    x,
    partials,
    count,
    step,
    row_values,
    row_scales,
    column_values,
    column_scales,
    amax_out,
    row_key: tl.uint64,
    column_key: tl.uint64,
    rows,
    columns,
    height,
    item_stride,
    row_stride,
    BOTH: tl.constexpr,
    ROTATE: tl.constexpr,
    PAIRED: tl.constexpr,
    ROW_STOCHASTIC: tl.constexpr,
    COLUMN_STOCHASTIC: tl.constexpr,
    DECODED: tl.constexpr,
    WITH_SCALES: tl.constexpr,
    PARTIALS: tl.constexpr,
    GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write ``column_values [N, height, C]``, ``column_scales [N, ceil(R / 16), C]``; ``BOTH``: the row-wise ones too.

    ``height`` is R, padded to whole blocks if the columns are rotated. ``partials`` holds the maxima for the rows, and
    ``step`` places later those for the columns; the two maxima go to ``amax_out[0]`` and ``[1]``.
    """
    amax = maximum_of(partials + step, count, PARTIALS)
    row_amax = amax
    if BOTH:
        row_amax = maximum_of(partials, count, PARTIALS)
    if tl.program_id(0) == 0:
        tl.store(amax_out, row_amax)
        tl.store(amax_out + 1, amax)
    item, row, column = corner(tl.program_id(0), rows, columns, 16 * GROUPS, COLUMNS)
    if BOTH:  # its reads find the tile in the caches afterwards, or fill them for the other
        quantize_row_tile(
            x,
            row_values,
            row_scales,
            row_amax,
            row_key,
            item,
            row,
            column,
            rows,
            columns,
            columns,
            item_stride,
            row_stride,
            False,
            PAIRED,
            ROW_STOCHASTIC,
            False,
            DECODED,
            WITH_SCALES,
            16 * GROUPS,
            COLUMNS,
        )
    numbers = _column_tile(x, item, row, column, rows, columns, item_stride, row_stride, GROUPS, COLUMNS)
    groups = tl.arange(0, GROUPS)[:, None]
    places = column + tl.arange(0, COLUMNS)[None, :]
    within = places < columns
    first_rows = row + 16 * groups
    floats = ()
    for k in tl.static_range(16):
        floats = floats + (as_fp32(numbers[k]),)
    if ROTATE:
        floats = rotate16(floats, PAIRED)
    maxima = magnitude_bits(floats[0])
    for k in tl.static_range(1, 16):
        maxima = tl.maximum(maxima, magnitude_bits(floats[k]))
    encode, factors, block_scale = block_scales(maxima, amax, DECODED)
    stacked = tl.cdiv(rows, 16)
    block_rows = row // 16 + groups
    inside = within & (block_rows < stacked)
    if WITH_SCALES:
        tl.store(column_scales + (item * stacked + block_rows) * columns + places, block_scale, mask=inside)
    words = (0, 0, 0, 0)
    if COLUMN_STOCHASTIC:
        words = random_words(column_key, (item * columns + places) * stacked + block_rows)
    for k in tl.static_range(16):
        noise = 0.0
        if COLUMN_STOCHASTIC:
            noise = random_noise(words, k)
        codes = round_codes(floats[k] * encode, noise, COLUMN_STOCHASTIC)
        pointers = column_values + (item * height + first_rows + k) * columns + places
        store(pointers, codes * factors, within & (first_rows + k < height), DECODED)
