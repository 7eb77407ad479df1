"""The rotation of 16 numbers as Triton device functions, summed as :mod:`monai_fp4.quantization.formats.rotation` says.

A tensor-core product (``tl.dot``) would cost less, but sums 16 products at once with a truncation that is the
hardware's own affair, another one in each generation. The flush of subnormal numbers that is part of the definition for
BF16 is a property of one PTX instruction.
"""

# Constants of compile time are in capitals, as in Triton's own code, and its compiler knows no starred expressions.
# ruff: noqa: N803, RUF005
# mypy: ignore-errors

from __future__ import annotations

from monai_fp4.quantization.kernels.triton_device import round_bf16
from monai_fp4.quantization.kernels.triton_language import INTERPRETED, tl, triton

__all__ = ["rotate16", "rotate_inner"]

_INTERPRETED = tl.constexpr(INTERPRETED)
_SMALLEST_NORMAL = tl.constexpr(2.0**-126)
# Bit k: the rotation's sign of term k.
_NEGATIVE = tl.constexpr(sum(1 << k for k in (3, 5, 6, 7, 8, 9, 10, 12, 14, 15)))
_ODD = tl.constexpr(0x6996)  # bit k: whether an odd number of k's bits is set


@triton.jit
def _flush(x):
    """Subnormal numbers become zero."""
    return tl.where(tl.abs(x) < _SMALLEST_NORMAL, 0.0, x)


@triton.jit
def _add_term(total, x, quarter: tl.constexpr, FLUSH: tl.constexpr):
    """``total + x * quarter``, rounded once; with ``FLUSH`` subnormal numbers and sums are zero."""
    if FLUSH and not _INTERPRETED:
        factor = tl.full(x.shape, quarter, tl.float32)
        result = tl.inline_asm_elementwise(
            "fma.rn.ftz.f32 $0, $1, $2, $3;", "=f,f,f,f", [x, factor, total], dtype=tl.float32, is_pure=True, pack=1
        )
    elif FLUSH:
        result = _flush(tl.fma(_flush(x), quarter, total))
    else:
        result = tl.fma(x, quarter, total)
    return result


@triton.jit
def rotate16(x, PAIRED: tl.constexpr):
    """Rotate blocks given as a tuple of their 16 numbers: ``x @ (diag(signs) @ H16 / 4)``, rounded to BF16.

    Term k enters the sum of number j with the sign of ``signs[k] * (-1) ** popcount(k & j)``. The first 2, 4 and 8
    terms see only the lowest 1, 2 and 3 bits of j, so these sums are shared: 171 additions instead of 256.

    Args:
        x: sixteen FP32 tensors.
        PAIRED: of each two terms the second is added first and subnormal numbers are zero, as is defined for BF16.

    Returns:
        Sixteen FP32 tensors that hold BF16 numbers.
    """
    swap: tl.constexpr = 1 if PAIRED else 0
    sums = (tl.zeros_like(x[0]),)
    for stage in tl.static_range(4):
        sums = sums + sums
        for m in tl.static_range(0 if stage == 0 else 2**stage, 2 ** (stage + 1)):
            added = ()
            for j in tl.static_range(2 ** (stage + 1)):
                # The sign is negative if one of two is: signs[k], or (-1) ** popcount(k & j).
                quarter = 0.25 - 0.5 * (((_ODD >> ((m ^ swap) & j)) ^ (_NEGATIVE >> (m ^ swap))) & 1)
                added = added + (_add_term(sums[j], x[m ^ swap], quarter, PAIRED),)
            sums = added
    rotated = ()
    for j in tl.static_range(16):
        rotated = rotated + (round_bf16(sums[j]),)
    return rotated


@triton.jit
def rotate_inner(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PAIRED: tl.constexpr):
    """:func:`rotate16` of the runs of 16 along the last axis of an FP32 tile ``[ROWS, COLUMNS]``."""
    parts = (tl.reshape(x, (ROWS * COLUMNS // 16, 2, 2, 2, 2)),)
    for _ in tl.static_range(4):  # each split takes the lowest bit of the place, so the bits come out reversed
        halves = ()
        for i in tl.static_range(len(parts)):
            low, high = tl.split(parts[i])
            halves = halves + (low, high)
        parts = halves
    numbers = ()
    for k in tl.static_range(16):
        numbers = numbers + (parts[(k & 1) * 8 + (k & 2) * 2 + (k & 4) // 2 + (k & 8) // 8],)
    rotated = rotate16(numbers, PAIRED)
    parts = ()
    for k in tl.static_range(16):
        parts = parts + (rotated[(k & 1) * 8 + (k & 2) * 2 + (k & 4) // 2 + (k & 8) // 8],)
    for _ in tl.static_range(4):
        joined = ()
        for i in tl.static_range(len(parts) // 2):
            joined = joined + (tl.join(parts[2 * i], parts[2 * i + 1]),)
        parts = joined
    return tl.reshape(parts[0], (ROWS, COLUMNS))
