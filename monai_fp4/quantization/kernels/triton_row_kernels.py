"""The CUDA kernels that work along rows: the maxima of a matrix, and its row-wise operand.

All kernels of the quantizer work on a matrix ``[N, R, C]`` of N items with C neighbouring in memory, read in tiles.
**Row-wise** blocks lie along C, **column-wise** ones along R.

==================  ==============================================  ==================================================
kernel              reads the tensor once and gives                 holds a tile as
==================  ==============================================  ==================================================
`row_maxima`        max abs(x), or that of the rotated rows         one tensor
`quantize_rows`     the row-wise operand, 1x16 or 16x16 blocks      one tensor
`column_maxima`     max abs(x) and that of the rotated columns      16 tensors, one for each place in a column block
`quantize_columns`  the column-wise operand, with the row-wise one  16 tensors
==================  ==============================================  ==================================================

The last two are in `triton_column_kernels`.

**Maxima without atomics.** The maxima kernels write one number per program, and each program of the quantizers reduces
these few numbers again. No counter has to be zeroed and no third kernel started, and the result does not depend on
the order of anything.
"""

# Constants of compile time are in capitals, as in Triton's own code.
# ruff: noqa: N803, N806
# mypy: ignore-errors

from __future__ import annotations

from monai_fp4.quantization.kernels.triton_device import (
    as_fp32,
    as_noise,
    block_scales,
    corner,
    magnitude_bits,
    maximum_of,
    random_words,
    round_codes,
    store,
)
from monai_fp4.quantization.kernels.triton_language import tl, triton
from monai_fp4.quantization.kernels.triton_rotation import rotate_inner

__all__ = ["quantize_row_tile", "quantize_rows", "row_maxima"]


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
        item, row, column = corner(tile, rows, columns, ROWS, COLUMNS)
        row_places = row + tl.arange(0, ROWS)[:, None]
        places = column + tl.arange(0, COLUMNS)[None, :]
        pointers = x + item * item_stride + row_places.to(tl.int64) * row_stride + places
        numbers = tl.load(pointers, mask=(row_places < rows) & (places < columns), other=0.0)
        numbers = as_fp32(numbers)
        if ROTATE:
            numbers = rotate_inner(numbers, ROWS, COLUMNS, PAIRED)
        largest = tl.maximum(largest, magnitude_bits(numbers))
    tl.store(partials + tl.program_id(0), tl.max(tl.max(largest, 1), 0))


@triton.jit
def quantize_row_tile(
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
    result = tl.reshape(codes * factors[:, :, None], (ROWS, COLUMNS))
    store(values + line * width + places, result, inside & (places < width), DECODED)


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
    item, row, column = corner(tl.program_id(0), rows, columns, ROWS, COLUMNS)
    quantize_row_tile(
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
