"""Building blocks of the CUDA kernels: the arithmetic of `quantization.formats` as Triton device functions.

Bits are what counts here, and three habits of GPU compilers would cost some. A product and a sum are fused into one
rounding: the kernels are compiled with ``enable_fp_fusion=False`` and call ``tl.fma`` where the product is exact, so
that fusing it changes nothing, or where the definition fuses. ``a / b`` is approximated: ``tl.div_rn`` is not. Minima
drop a NaN: ``propagate_nan`` keeps it. E4M3 and E2M1 are rounded with magic numbers, as on every other device; the cast
instructions for them exist on few GPUs only.

**Maxima are integers.** Without its sign bit a float is ordered as the integer of the same bits, NaN above infinity.
An integer maximum therefore keeps NaN for nothing and does not depend on the order that threads come in.
"""

# Constants of compile time are in capitals, as in Triton's own code, and its compiler knows no starred expressions.
# ruff: noqa: N803
# mypy: ignore-errors

from __future__ import annotations

from monai_fp4.quantization.kernels.triton_language import INTERPRETED, tl, triton

__all__ = [
    "as_fp32",
    "as_noise",
    "block_scales",
    "corner",
    "magnitude_bits",
    "maximum_of",
    "random_noise",
    "random_words",
    "round_bf16",
    "round_codes",
    "store",
    "tensor_scale",
]

_INTERPRETED = tl.constexpr(INTERPRETED)
_FLOAT_MAX = tl.constexpr(3.4028234663852886e38)
_EXPONENT = tl.constexpr(0x7F800000)
_TENSOR_MAX = tl.constexpr(2688.0)
_SIXTH = tl.constexpr(0.16666667163372040)  # 1 / 6 rounded to FP32
_PER_TENSOR_MAX = tl.constexpr(0.00037202381645329297)  # 1 / 2688 rounded to FP32


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
def corner(tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The item, first row and first column of a tile; tiles are counted along C first, then R, then N."""
    across = tl.cdiv(columns, COLUMNS)
    down = tl.cdiv(rows, ROWS)
    return (tile // (across * down)).to(tl.int64), (tile // across) % down * ROWS, tile % across * COLUMNS


@triton.jit
def store(pointers, values, mask, DECODED: tl.constexpr):
    """Store FP32 numbers in another dtype; decoded ones have to be rounded to BF16, all others are exact."""
    if DECODED and pointers.dtype.element_ty == tl.bfloat16:
        values = round_bf16(values)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)
