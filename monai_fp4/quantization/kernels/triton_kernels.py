"""The CUDA kernels of the quantizer: maxima first, then the operands.

All work on a matrix ``[N, R, C]`` of N items with C neighbouring in memory, read in tiles. **Row-wise** blocks lie
along C, **column-wise** ones along R.

==================  ==============================================  ==================================================
kernel              reads the tensor once and gives                 holds a tile as
==================  ==============================================  ==================================================
`row_maxima`        max abs(x), or that of the rotated rows          one tensor
`column_maxima`     max abs(x) and that of the rotated columns       16 tensors, one for each place in a column block
`quantize_rows`     the row-wise operand, 1x16 or 16x16 blocks      one tensor
`quantize_columns`  the column-wise operand, with the row-wise one  16 tensors
==================  ==============================================  ==================================================

Sixteen tensors make everything about a column block, its maximum, rotation and random bits, arithmetic within a thread.
Reads and writes are contiguous along C for both operands: a column-wise operand stays in the layout of its
tensor, which the caller transposes as a view, since BF16 tensor cores take either layout. (Those for FP4 do not.)

**Maxima without atomics.** The maxima kernels write one number per program, and each program of the quantizers reduces
these few numbers again. No counter has to be zeroed and no third kernel started, and the result does not depend on
the order of anything.
"""

# Constants of compile time are in capitals, as in Triton's own code, and its compiler knows no starred expressions.
# ruff: noqa: N803, N806, RUF005
# mypy: ignore-errors

from __future__ import annotations

from monai_fp4.quantization.kernels.triton_device import (
    as_fp32,
    as_noise,
    block_scales,
    magnitude_bits,
    maximum_of,
    random_noise,
    random_words,
    rotate16,
    rotate_inner,
    round_bf16,
    round_codes,
    scaled,
)
from monai_fp4.quantization.kernels.triton_language import tl, triton

__all__ = ["column_maxima", "quantize_columns", "quantize_rows", "row_maxima"]


@triton.jit
def _corner(tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The item, first row and first column of a tile; tiles are counted along C first, then R, then N."""
    across = tl.cdiv(columns, COLUMNS)
    down = tl.cdiv(rows, ROWS)
    return (tile // (across * down)).to(tl.int64), (tile // across) % down * ROWS, tile % across * COLUMNS


@triton.jit
def _store(pointers, values, mask, DECODED: tl.constexpr):
    """Store FP32 numbers in another dtype; decoded ones have to be rounded to BF16, all others are exact."""
    if DECODED and pointers.dtype.element_ty == tl.bfloat16:
        values = round_bf16(values)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)


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
def row_maxima(
    x,
    partials,
    rows,
    columns,
    item_stride,
    row_stride,
    tiles,
    ROTATE: tl.constexpr,
    PAIRED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write max |x| of this program's tiles, as FP32 bits, to ``partials[program]``; of the rotated rows if asked."""
    largest = tl.zeros((ROWS, COLUMNS), tl.int32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        item, row, column = _corner(tile, rows, columns, ROWS, COLUMNS)
        row_places = row + tl.arange(0, ROWS)[:, None]
        places = column + tl.arange(0, COLUMNS)[None, :]
        pointers = x + item * item_stride + row_places.to(tl.int64) * row_stride + places
        numbers = tl.load(pointers, mask=(row_places < rows) & (places < columns), other=0.0)
        numbers = as_fp32(numbers)
        if ROTATE:
            numbers = rotate_inner(numbers, ROWS, COLUMNS, PAIRED)
        largest = tl.maximum(largest, magnitude_bits(numbers))
    tl.store(partials + tl.program_id(0), tl.max(tl.max(largest, 1), 0))


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
        item, row, column = _corner(tile, rows, columns, 16 * GROUPS, COLUMNS)
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


@triton.jit
def _quantize_row_tile(
    x,
    values,
    scales,
    amax,
    key: tl.uint64,
    item,
    row,
    column,
    rows,
    columns,
    width,
    item_stride,
    row_stride,
    ROTATE: tl.constexpr,
    PAIRED: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    TWO_D: tl.constexpr,
    DECODED: tl.constexpr,
    WITH_SCALES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Quantize a tile along its rows: write ``values [N, R, width]`` and ``scales [N, R, ceil(C / 16)]``."""
    WIDTH: tl.constexpr = COLUMNS // 16
    row_places = row + tl.arange(0, ROWS)[:, None]
    places = column + tl.arange(0, COLUMNS)[None, :]
    inside = row_places < rows
    pointers = x + item * item_stride + row_places.to(tl.int64) * row_stride + places
    numbers = tl.load(pointers, mask=inside & (places < columns), other=0.0)
    numbers = as_fp32(numbers)
    if ROTATE:
        numbers = rotate_inner(numbers, ROWS, COLUMNS, PAIRED)
    blocks = tl.reshape(numbers, (ROWS, WIDTH, 16))
    maxima = tl.max(magnitude_bits(blocks), 2)
    if TWO_D:
        shared = tl.max(tl.reshape(maxima, (ROWS // 16, 16, WIDTH)), 1)
        maxima = tl.reshape(tl.broadcast_to(shared[:, None, :], (ROWS // 16, 16, WIDTH)), (ROWS, WIDTH))
    encode, factors, block_scale = block_scales(maxima, amax, DECODED)
    line = item * rows + row_places  # int64
    count = tl.cdiv(columns, 16)
    block_places = column // 16 + tl.arange(0, WIDTH)[None, :]
    if WITH_SCALES:
        tl.store(scales + line * count + block_places, block_scale, mask=inside & (block_places < count))
    noise = 0.0
    if STOCHASTIC:
        r0, r1, r2, r3 = random_words(key, line * count + block_places)
        words = tl.reshape(tl.join(tl.join(r0, r2), tl.join(r1, r3)), (ROWS, WIDTH, 4, 1))
        shifts = (8 * tl.arange(0, 4)).to(tl.uint32)[None, None, None, :]
        noise = tl.reshape(as_noise((words >> shifts) & 0xFF), (ROWS, WIDTH, 16))
    codes = round_codes(blocks * encode[:, :, None], noise, STOCHASTIC)
    result = tl.reshape(scaled(codes, factors[:, :, None]), (ROWS, COLUMNS))
    _store(values + line * width + places, result, inside & (places < width), DECODED)


@triton.jit(do_not_specialize=["count", "key"])
def quantize_rows(
    x,
    partials,
    count,
    values,
    scales,
    amax_out,
    key: tl.uint64,
    rows,
    columns,
    width,
    item_stride,
    row_stride,
    ROTATE: tl.constexpr,
    PAIRED: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    TWO_D: tl.constexpr,
    DECODED: tl.constexpr,
    WITH_SCALES: tl.constexpr,
    PARTIALS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write ``values [N, R, width]``, ``scales [N, R, ceil(C / 16)]``, the maximum; ``width``: C, padded if rotated."""
    amax = maximum_of(partials, count, PARTIALS)
    if tl.program_id(0) == 0:
        tl.store(amax_out, amax)
    item, row, column = _corner(tl.program_id(0), rows, columns, ROWS, COLUMNS)
    _quantize_row_tile(
        x,
        values,
        scales,
        amax,
        key,
        item,
        row,
        column,
        rows,
        columns,
        width,
        item_stride,
        row_stride,
        ROTATE,
        PAIRED,
        STOCHASTIC,
        TWO_D,
        DECODED,
        WITH_SCALES,
        ROWS,
        COLUMNS,
    )


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
    item, row, column = _corner(tl.program_id(0), rows, columns, 16 * GROUPS, COLUMNS)
    if BOTH:  # its reads find the tile in the caches afterwards, or fill them for the other
        _quantize_row_tile(
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
        _store(pointers, scaled(codes, factors), within & (first_rows + k < height), DECODED)
