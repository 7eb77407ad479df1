"""FP4 products on a CPU with BF16 instructions: one compiled function, called for every kind of product.

An operand holds ``code * block_scale`` in BF16, which is exact. The function sums products of BF16 pairs in FP32,
multiplies the sum by alpha and casts it: what FP4 tensor cores do, at the speed of a BF16 product (AVX512_BF16: AMD
from Zen 4, Intel from Cooper Lake). PyTorch has no CPU product of BF16 operands that returns the FP32 sum.

Two layouts are read:

* **rows**: ``[..., K]``, the reduction axis innermost, K even;
* **pairs**: ``[K / 2, columns, 2]``, two neighbours on the reduction axis beside each other.

The first operand of a product may be either, the second is pairs. Results equal those of plain torch where FP32 holds
every partial sum, and otherwise to the order of the summation, which depends on the shapes only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from monai_fp4.compiler import load

__all__ = ["SOURCE", "available", "matrix_product", "product", "stored"]

SOURCE = Path(__file__).with_name("gemm.cpp")
"""The C++ file that is compiled."""
_NO_OFFSET = torch.zeros(1, dtype=torch.int64, device="cpu")


def available() -> bool:
    """Whether this machine has the instructions, and the compiler to use them."""
    return _library() is not None


def matrix_product(a: Tensor, b: Tensor, alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply rows ``[M, K]``, or pairs ``[K / 2, M, 2]``, with pairs ``[K / 2, N, 2]``.

    Args:
        a: BF16, contiguous; K even.
        b: BF16, contiguous.
        alpha: FP32 scalar that the sums are multiplied with.
        dtype: of the result.

    Returns:
        ``[M, N]``.
    """
    rows, strides = (a.shape[0], (a.shape[1] // 2, 1)) if a.ndim == 2 else (a.shape[1], (1, a.shape[1]))
    out = a.new_empty((rows, b.shape[1]), dtype=stored(dtype))
    product(a, (0, 0, 0, *strides), b, out, (1, 1, 1, rows), (0, 0, 0, b.shape[1]), alpha)
    return out.to(dtype)


def product(
    a: Tensor,
    a_strides: Sequence[int],
    b: Tensor,
    out: Tensor,
    rows: Sequence[int],
    out_strides: Sequence[int],
    alpha: Tensor,
    *,
    segments: tuple[Tensor, Tensor] | None = None,
    pairs: int | None = None,
    a_start: int = 0,
    out_start: int = 0,
) -> None:
    """Sum products over a list of segments of the reduction axis, into ``out``.

    Row ``(r0, r1, r2, r3)`` of the result is, over all segments s and pairs k, the sum of

        ``A[a_start + a_offset[s] + (r0, r1, r2, r3, k) . a_strides] * B[b_offset[s] + k * columns]``.

    Args:
        a: the first operand, BF16; all its positions are counted in pairs.
        a_strides: of the four row numbers and of k.
        b: the second operand, pairs ``[..., columns, 2]``, contiguous.
        out: FP32 or BF16.
        rows: the four sizes of the rows' numbers.
        out_strides: of the four row numbers, in numbers; columns are contiguous.
        alpha: FP32 scalar that the sums are multiplied with.
        segments: where each segment starts in A and in B (int64 tensors of equal length); by default one, at 0.
        pairs: length of each segment; by default that of B.
        a_start: of the first row.
        out_start: of the first row, in numbers.
    """
    library = _library()
    assert library is not None  # callers ask `available` first
    a_offsets, b_offsets = segments or (_NO_OFFSET, _NO_OFFSET)
    columns = b.shape[-2]
    failed = library.bf16_product(
        *((c_int64 * 4)(*rows), columns, a.data_ptr() + 4 * a_start, (c_int64 * 5)(*a_strides), b.data_ptr(), columns),
        *(len(a_offsets), a_offsets.data_ptr(), b_offsets.data_ptr(), b.shape[0] if pairs is None else pairs),
        *(alpha.data_ptr(), out.data_ptr() + out.element_size() * out_start, out.dtype is torch.bfloat16),
        *((c_int64 * 4)(*out_strides), torch.get_num_threads()),
    )
    if failed:
        raise MemoryError(f"no memory to multiply {tuple(a.shape)} with {tuple(b.shape)}: lower batch_size")


def stored(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the function writes where ``dtype`` is asked for."""
    return torch.bfloat16 if dtype is torch.bfloat16 else torch.float32


def _library() -> ctypes.CDLL | None:
    return load(SOURCE, _check)


def _check(library: ctypes.CDLL) -> str | None:
    """Declare the function's arguments and compare a product, exact in FP32, with plain torch."""
    if not library.bf16_product_available():
        return "this processor has no AVX512_BF16 instructions"
    function = library.bf16_product
    function.restype = c_int
    function.argtypes = [
        *(c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int64),
        *(c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int, c_void_p, c_int),
    ]
    a = torch.arange(-700, 700, device="cpu").remainder(13).sub(6).view(14, 100).to(torch.bfloat16)
    b = torch.arange(100 * 70, device="cpu").remainder(11).sub(5).view(50, 70, 2).to(torch.bfloat16)
    alpha = torch.tensor(0.3, dtype=torch.float32, device="cpu")
    out = torch.empty(14, 70, dtype=torch.float32, device="cpu")
    function(
        (c_int64 * 4)(1, 1, 1, 14), 70, a.data_ptr(), (c_int64 * 5)(0, 0, 0, 50, 1), b.data_ptr(), 70,
        1, _NO_OFFSET.data_ptr(), _NO_OFFSET.data_ptr(), 50, alpha.data_ptr(), out.data_ptr(), 0,
        (c_int64 * 4)(0, 0, 0, 70), 1,
    )  # fmt: skip
    with torch.autocast("cpu", enabled=False):  # whoever asks first may stand inside of it
        expected = (a.float() @ b.float().movedim(1, 2).flatten(0, 1)) * alpha
    return None if torch.equal(out, expected) else "its products differ from those of plain torch"
