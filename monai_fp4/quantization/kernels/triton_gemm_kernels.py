"""The CUDA kernels of the products: one that multiplies and scales, and one that only scales.

`monai_fp4.quantization.kernels.triton_gemm` explains which is used when.
"""

# Constants of compile time are in capitals, as in Triton's own code.
# ruff: noqa: N803
# mypy: ignore-errors

from __future__ import annotations

from monai_fp4.quantization.kernels.triton_device import round_bf16
from monai_fp4.quantization.kernels.triton_language import INTERPRETED, tl, triton

__all__ = ["multiply_kernel", "scale_kernel"]

_INTERPRETED = tl.constexpr(INTERPRETED)
_PER_PRODUCT = tl.constexpr(1.3840171675383317e-07)  # 1 / (36 * 448 * 448) rounded to FP32


@triton.jit
def _store_scaled(out, accumulated, amax_a, amax_b, mask):
    """Multiply with ``amax_a * amax_b / (36 * 448 * 448)``, in the order of ``numerics.gemm_alpha``, and cast."""
    alpha = (tl.load(amax_a) * tl.load(amax_b)) * _PER_PRODUCT
    result = accumulated * alpha
    if out.dtype.element_ty == tl.bfloat16:
        result = round_bf16(result)
    tl.store(out, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def scale_kernel(accumulated, out, amax_a, amax_b, count, BLOCK: tl.constexpr):
    """``out = accumulated * alpha`` for ``count`` FP32 sums that lie together."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _store_scaled(out + places, tl.load(accumulated + places, mask=places < count), amax_a, amax_b, places < count)


@triton.jit
def multiply_kernel(
    a,
    b,
    out,
    amax_a,
    amax_b,
    rows,
    columns,
    depth,
    a_row,
    a_depth,
    b_row,
    b_depth,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    BAND: tl.constexpr,
):
    """``out = alpha * a @ b.T`` of ``a [rows, depth]`` and ``b [columns, depth]`` with any strides, summed in FP32.

    A program computes one tile of ``out``, contiguous ``[rows, columns]``. Programs walk through bands of ``BAND`` tile
    rows, column by column, so that those that run at once share operands in the L2 cache.
    """
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    program = tl.program_id(0)
    first = program // (BAND * across) * BAND
    height = tl.minimum(down - first, BAND)
    row = (first + program % (BAND * across) % height) * ROWS
    column = program % (BAND * across) // height * COLUMNS

    row_places = row + tl.arange(0, ROWS)
    column_places = column + tl.arange(0, COLUMNS)
    depth_places = tl.arange(0, DEPTH)
    # Tiles at the edge read the first rows again instead of none: their results are not stored, and no mask is needed.
    a_places = a + (row_places % rows).to(tl.int64)[:, None] * a_row + depth_places[None, :] * a_depth
    b_places = b + (column_places % columns).to(tl.int64)[None, :] * b_row + depth_places[:, None] * b_depth
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for done in range(0, depth, DEPTH):
        left = tl.load(a_places, mask=depth_places[None, :] < depth - done, other=0.0)
        right = tl.load(b_places, mask=depth_places[:, None] < depth - done, other=0.0)
        if _INTERPRETED:  # where a product of BF16 numbers is one of their bits
            left, right = left.to(tl.float32), right.to(tl.float32)
        sums = tl.dot(left, right, sums)
        a_places += DEPTH * a_depth
        b_places += DEPTH * b_depth
    places = out + row_places.to(tl.int64)[:, None] * columns + column_places[None, :]
    mask = (row_places < rows)[:, None] & (column_places < columns)[None, :]
    _store_scaled(places, sums, amax_a, amax_b, mask)
