"""Building blocks of the CUDA kernels: the arithmetic of `quantization.formats` as Triton device functions.

Bits are what counts here, and three habits of GPU compilers would cost some. A product and a sum are fused into one
rounding: the kernels are compiled with ``enable_fp_fusion=False`` and call ``tl.fma`` where the product is exact, so
that fusing it changes nothing, or where the definition fuses. ``a / b`` is approximated: ``tl.div_rn`` is not. Minima
drop a NaN: ``propagate_nan`` keeps it. E4M3 and E2M1 are rounded with magic numbers, as on every other device; the cast
instructions for them exist on few GPUs only.

**Maxima are integers.** Without its sign bit a float is ordered as the integer of the same bits, NaN above infinity.
An integer maximum therefore keeps NaN for nothing and does not depend on the order that threads come in.

**The rotation sums in a defined order**, that of :mod:`monai_fp4.quantization.formats.rotation`. A tensor-core product
(``tl.dot``) would cost less, but sums 16 products at once with a truncation that is the hardware's own affair, another
one in each generation. The flush of subnormal numbers that is part of the definition for BF16 is a property of one PTX
instruction.
"""

# Constants of compile time are in capitals, as in Triton's own code, and its compiler knows no starred expressions.
# ruff: noqa: N803, RUF005
# mypy: ignore-errors

from __future__ import annotations

from monai_fp4.quantization.kernels.triton_language import INTERPRETED, tl, triton

__all__ = [
    "as_fp32",
    "as_noise",
    "block_scales",
    "magnitude_bits",
    "maximum_of",
    "random_noise",
    "random_words",
    "rotate16",
    "rotate_inner",
    "round_bf16",
    "round_codes",
    "scaled",
    "tensor_scale",
]

_INTERPRETED = tl.constexpr(INTERPRETED)
_FLOAT_MAX = tl.constexpr(3.4028234663852886e38)
_SMALLEST_NORMAL = tl.constexpr(2.0**-126)
_EXPONENT = tl.constexpr(0x7F800000)
_TENSOR_MAX = tl.constexpr(2688.0)
_SIXTH = tl.constexpr(0.16666667163372040)  # 1 / 6 rounded to FP32
_PER_TENSOR_MAX = tl.constexpr(0.00037202381645329297)  # 1 / 2688 rounded to FP32
# Bit k: the rotation's sign of term k.
_NEGATIVE = tl.constexpr(sum(1 << k for k in (3, 5, 6, 7, 8, 9, 10, 12, 14, 15)))
_ODD = tl.constexpr(0x6996)  # bit k: whether an odd number of k's bits is set


@triton.jit
def as_fp32(x):
    """FP32 numbers of FP32, BF16 or FP16 ones, which is exact."""
    if _INTERPRETED and x.dtype == tl.bfloat16:  # where the cast gets subnormal numbers wrong
        result = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        result = x.to(tl.float32)
    return result


@triton.jit
def magnitude_bits(x):
    """The bits of |x| for FP32 numbers, int32: ordered as the magnitudes are, NaN on top."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def maximum_of(partials, count, BLOCK: tl.constexpr):
    """The largest of ``count`` magnitudes, given as bits; returned as an FP32 scalar."""
    places = tl.arange(0, BLOCK)
    bits = tl.max(tl.load(partials + places, mask=places < count, other=0), 0)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def tensor_scale(amax):
    """The scale ``S`` of a tensor, from its maximum: both FP32 scalars."""
    scale = tl.minimum(tl.div_rn(_TENSOR_MAX, amax), _FLOAT_MAX, propagate_nan=tl.PropagateNan.ALL)
    return tl.where((amax == 0.0) | (scale == 0.0), 1.0, scale)


@triton.jit
def block_scales(maxima, amax, DECODED: tl.constexpr):
    """What the numbers of a block are multiplied with before and after they are rounded, and its E4M3 scale.

    Args:
        maxima: the block maxima as bits, int32.
        amax: the tensor's maximum, an FP32 scalar.
        DECODED: the second factor decodes (``s * amax / 2688``) instead of scaling (``s``).
    """
    scale = tensor_scale(amax)
    scales = maxima.to(tl.float32, bitcast=True) * (scale * _SIXTH)
    scales = tl.minimum(scales, 448.0, propagate_nan=tl.PropagateNan.ALL)
    scales = _round_small_float(scales, 3, 0.015625)
    encode = tl.div_rn(1.0, scales * tl.div_rn(1.0, scale))
    encode = tl.minimum(encode, _FLOAT_MAX, propagate_nan=tl.PropagateNan.ALL)
    factors = scales
    if DECODED:
        factors = (scales * amax) * _PER_TENSOR_MAX
    return encode, factors, scales


@triton.jit
def _power_of_two(x, smallest: tl.constexpr):
    """The largest power of two at or below |x|, but no smaller than ``smallest``; infinity for NaN."""
    return tl.maximum((x.to(tl.int32, bitcast=True) & _EXPONENT).to(tl.float32, bitcast=True), smallest)


@triton.jit
def _round_small_float(x, MANTISSA_BITS: tl.constexpr, smallest: tl.constexpr):
    """`formats.rounding`: add and subtract a large multiple of the step; powers of two keep them exact."""
    magic: tl.constexpr = 1.5 * 2.0 ** (23 - MANTISSA_BITS)
    power = _power_of_two(x, smallest)
    return tl.fma(power, -magic, tl.fma(power, magic, x))


@triton.jit
def round_codes(x, noise, STOCHASTIC: tl.constexpr):
    """Round FP32 numbers to E2M1: to nearest, or stochastically with ``noise`` from :func:`as_noise` for each.

    A NaN may become a number here: the scale of its block is NaN, and what is multiplied with that is NaN again.
    """
    if STOCHASTIC:
        magnitude = tl.minimum(tl.abs(x), 6.0)
        # The noise is below half the power of two, which is the step.
        magnitude = tl.fma(_power_of_two(magnitude, 1.0), noise, magnitude)
        # Round down: from 1 on, the grid holds the numbers of one mantissa bit.
        kept = (magnitude.to(tl.int32, bitcast=True) & -4194304).to(tl.float32, bitcast=True)
        magnitude = tl.where(magnitude >= 1.0, kept, tl.where(magnitude >= 0.5, 0.5, 0.0))
        bits = (x.to(tl.int32, bitcast=True) & -2147483648) | magnitude.to(tl.int32, bitcast=True)
        rounded = bits.to(tl.float32, bitcast=True) + 0.0  # turns -0 into +0
    else:
        rounded = _round_small_float(tl.minimum(tl.maximum(x, -6.0), 6.0), 1, 1.0)
    return rounded


@triton.jit
def scaled(codes, factors):
    """The product, rounded: a negative code times a scale of zero is a negative zero, as in plain torch."""
    return codes * factors


@triton.jit
def as_noise(byte):
    """``byte / 512`` of random bytes (uint32), as FP32: half the power of two times that is what is added."""
    # Set below the leading bit of 2^14, whose last bit is 1/512: cheaper than a conversion from integer.
    return (byte | 0x46800000).to(tl.float32, bitcast=True) - 16384.0


@triton.jit
def round_bf16(x):
    """Round FP32 to BF16, ties to even, and back."""
    if _INTERPRETED:  # where the cast truncates
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        rounded = tl.where((bits & 0x7FFFFFFF) > _EXPONENT, 0x7FC00000, rounded)
        result = rounded.to(tl.float32, bitcast=True)
    else:  # two at a time: the instruction for one has an eighth of the throughput
        result = tl.inline_asm_elementwise(
            "{ .reg .b32 both; cvt.rn.bf16x2.f32 both, $3, $2; shl.b32 $0, both, 16; and.b32 $1, both, 0xffff0000; }",
            "=f,=f,f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
    return result


@triton.jit
def random_words(key, blocks):
    """Philox4x32-10 of block numbers (int64): four words of random bits for each, uint32."""
    low = (blocks & 0xFFFFFFFF).to(tl.uint32)
    high = (blocks >> 32).to(tl.uint32)
    return tl.philox(key, low, high, low * 0, low * 0)


@triton.jit
def random_noise(words, place: tl.constexpr):
    """:func:`as_noise` of the byte that number ``place`` of each block takes from the block's words."""
    return as_noise((words[place // 4] >> (8 * (place % 4))) & 0xFF)


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
