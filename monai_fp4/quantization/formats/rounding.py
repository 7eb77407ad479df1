"""Rounding to the four-bit numbers of NVFP4 (E2M1) and to the eight-bit numbers of its block scales (E4M3).

**Rounding without branches.** Adding and then subtracting ``1.5 * 2^23 * step`` rounds an FP32 number to the nearest
multiple of ``step``, ties to even, since the sum has no bits left below ``step``. In a small float format the step
follows from the number's own power of two, ``2^e``, which a bit mask isolates; below the smallest normal number the
step no longer shrinks. Both formats use this one rule with different constants.

**Stochastic rounding** goes up with the probability of the distance covered, so that rounded gradients keep their mean.

>>> import torch
>>> round_e2m1(torch.tensor([0.2, 0.25, 0.75, 2.4, 5.0, -7.0]))
tensor([ 0.,  0.,  1.,  2.,  4., -6.])
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.philox import BYTES_PER_COUNTER, draw_key, random_bytes
from monai_fp4.quantization.formats.scheme import E2M1_MAX, E4M3_MAX

__all__ = [
    "E2M1_GRID",
    "E2M1_MAX",
    "E4M3_MAX",
    "SUPPORTED_DTYPES",
    "check_dtype",
    "dtype_names",
    "random_bits",
    "round_e2m1",
    "round_e2m1_",
    "round_e2m1_stochastic",
    "round_e4m3_",
]

E2M1_GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The eight magnitudes of a four-bit code, in the order of their codes."""

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of tensors that can be quantized."""

_EXPONENT_MASK = 0x7F800000  # of an FP32 number's bits


@torch.no_grad()
def round_e2m1(x: Tensor) -> Tensor:
    """Round to the nearest E2M1 number, ties to the even code, magnitudes above 6 to 6.

    Args:
        x: FP32, BF16 or FP16 numbers of any shape. NaN stays NaN; a negative number that rounds to zero becomes +0.

    Returns:
        Numbers of the grid, in the shape and dtype of ``x``.

    Raises:
        ConfigError: the dtype is none of the three.
    """
    check_dtype(x)
    return round_e2m1_(x.to(torch.float32, copy=True)).to(x.dtype)


@torch.no_grad()
def round_e2m1_stochastic(x: Tensor, random_bits: Tensor) -> Tensor:
    """Round up or down to one of the two E2M1 neighbours, up with the probability of the distance covered.

    With ``u = bits / 256`` and the grid's ``step`` at ``|x|``, the result is the grid number at or below
    ``|x| + u * step``: unbiased to 1/256 of a step inside the grid. Magnitudes above 6 are clipped first, and that
    is a bias which no rounding can undo.

    Args:
        x: FP32, BF16 or FP16 numbers of any shape; NaN stays NaN.
        random_bits: 8 random bits for each number (uint8), in the shape of ``x``.

    Returns:
        Numbers of the grid, in the shape and dtype of ``x``.

    Raises:
        ConfigError: the dtype of ``x`` is none of the three.
    """
    check_dtype(x)
    return _round_e2m1_stochastic(x.to(torch.float32), random_bits).to(x.dtype)


def round_e2m1_(x: Tensor) -> Tensor:
    """:func:`round_e2m1` of FP32 numbers, in place."""
    return _round_small_float_(x.clamp_(-E2M1_MAX, E2M1_MAX), mantissa_bits=1, smallest_normal=1.0)


def round_e4m3_(x: Tensor) -> Tensor:
    """Round FP32 magnitudes up to 448, in place, to the nearest E4M3 number, ties to even."""
    return _round_small_float_(x, mantissa_bits=3, smallest_normal=2.0**-6)


def _round_small_float_(x: Tensor, *, mantissa_bits: int, smallest_normal: float) -> Tensor:
    """Round FP32 numbers in place to a float format: its mantissa bits, and subnormals below its smallest normal."""
    magic = 1.5 * 2.0 ** (23 - mantissa_bits)
    power = _power_of_two(x, smallest_normal)
    return x.add_(power, alpha=magic).sub_(power, alpha=magic)


def _round_e2m1_stochastic(x: Tensor, random_bits: Tensor) -> Tensor:
    """:func:`round_e2m1_stochastic` of FP32 numbers."""
    magnitude = x.abs().clamp_max_(E2M1_MAX)
    # The grid's step is half the power of two, and u is bits / 256.
    magnitude.addcmul_(_power_of_two(magnitude, 1.0), random_bits.to(torch.float32), value=0.5 / 256)
    step = _power_of_two(magnitude, 1.0).mul_(0.5)
    magnitude.div_(step).floor_().mul_(step)  # at most 6, as u < 1
    return magnitude.copysign_(x).add_(0.0)  # the sum turns -0 into +0


def _power_of_two(x: Tensor, smallest: float) -> Tensor:
    """The largest power of two at or below each FP32 magnitude, but no smaller than ``smallest``."""
    return x.view(torch.int32).bitwise_and(_EXPONENT_MASK).view(torch.float32).clamp_min_(smallest)


def random_bits(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Eight independent random bits for each number: uint8, in the shape of ``like``.

    One 64-bit key is drawn from the generator, by default torch's CPU generator, and every 16 numbers, in the order of
    their logical axes, take the bytes of one counter: see :mod:`monai_fp4.quantization.formats.philox`.
    """
    counters = -(-like.numel() // BYTES_PER_COUNTER)
    return random_bytes(counters, draw_key(generator), like.device).flatten()[: like.numel()].view(like.shape)


def check_dtype(x: Tensor) -> None:
    """Refuse, with a ConfigError, a tensor that is none of FP32, BF16 and FP16."""
    if x.dtype not in SUPPORTED_DTYPES:
        raise ConfigError(
            f"expected a tensor of {dtype_names(SUPPORTED_DTYPES)} to quantize, found {x.dtype}: convert it first"
        )


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    """List dtypes for a message."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
