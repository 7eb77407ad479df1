"""The arithmetic of NVFP4, as pure functions of tensors.

NVFP4 stores a number in four bits, and gets its range back with two levels of scale:

* a **code** in E2M1 (one sign, two exponent bits, one mantissa bit): 0, 0.5, 1, 1.5, 2, 3, 4 or 6, and the negatives;
* a **block scale** in E4M3 (8 bits, at most 448), shared by 16 neighbours along the axis that a product sums over;
* one **tensor maximum** (``amax``, FP32), which places the largest block scale at 448 and the largest code at 6.

A value is thus ``code * block_scale * amax / 2688``, with 2688 = 448 * 6. The product ``code * block_scale`` has at
most six significant bits and spans 22 binades, so FP32, BF16 and FP16 all hold it *exactly*. That is what
:func:`scaled_values` returns, and why ``(qA * sA) @ (qB * sB)``, summed in FP32 and multiplied once by
:func:`gemm_alpha`, is the FP4 product and no approximation of it.

The operations and their order are those of NVIDIA's Transformer Engine 2.20.2 (``reference_nvfp4.py``), bit for bit.

Two more formats, four over six and MXFP4, are in :mod:`monai_fp4.quantization.formats.scheme`; what is said here of 16
and of 2688 is said of the standard one.

How numbers are rounded is in :mod:`monai_fp4.quantization.formats.rounding`, how they are rotated in
:mod:`monai_fp4.quantization.formats.rotation`, and how a tensor becomes blocks with their scales, step by step in plain
torch, in :mod:`monai_fp4.quantization.formats.blocks`. On a CPU a compiled kernel does all of that in one pass over
memory, bit for bit alike; :func:`plain_torch` does without it.

**NaN and infinity.** A NaN makes ``amax`` NaN, hence every block scale and every decoded value: it cannot get lost, and
training can stop at once. Where ``amax`` is given from outside, and in MXFP4, a NaN still turns its whole block into
NaN. An infinity makes ``amax`` infinite; by the formulas the tensor then decodes to infinities and NaN, never to finite
numbers. In MXFP4 an infinity decodes to infinity, and the scale that it gives its block leaves nothing of neighbours
below 2^125.

>>> import torch
>>> x = torch.tensor([[6.0] + [1.0] * 15])
>>> decode(scaled_values(x))[0, :3]
tensor([6., 1., 1.])
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.blocks import (
    BLOCK_SIZE,
    TENSOR_MAX,
    ScaledValues,
    check_blocks,
    decode_factors,
    pad_last,
    prepare_blocks,
)
from monai_fp4.quantization.formats.philox import draw_key
from monai_fp4.quantization.formats.rotation import rotate
from monai_fp4.quantization.formats.rounding import (
    E2M1_GRID,
    E2M1_MAX,
    E4M3_MAX,
    SUPPORTED_DTYPES,
    dtype_names,
    random_bits,
    round_e2m1,
    round_e2m1_stochastic,
)
from monai_fp4.quantization.formats.scheme import STANDARD, Scheme
from monai_fp4.quantization.kernels.dispatch import plain_torch
from monai_fp4.quantization.kernels.quantizers import quantize
from monai_fp4.quantization.kernels.task import Task

__all__ = [
    "BLOCK_SIZE",
    "E2M1_GRID",
    "E2M1_MAX",
    "E4M3_MAX",
    "STANDARD",
    "SUPPORTED_DTYPES",
    "ScaledValues",
    "Scheme",
    "decode",
    "gemm_alpha",
    "pad_last",
    "plain_torch",
    "prepare_blocks",
    "random_bits",
    "rotate",
    "round_e2m1",
    "round_e2m1_stochastic",
    "scaled_values",
]


@torch.no_grad()
def scaled_values(
    x: Tensor,
    *,
    two_d: bool = False,
    rht: bool = False,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
    amax: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    scheme: Scheme = STANDARD,
) -> ScaledValues:
    """Quantize along the last axis, to the operand ``code * block_scale`` of a matrix product.

    Args:
        x: FP32, BF16 or FP16, shape ``[..., K]``, any strides. K is padded with zeros to whole blocks inside.
        two_d: share one scale among 16 x 16 blocks of the last two axes (weights), so that the transposed tensor
            has the same codes. Otherwise blocks are 1 x 16.
        rht: rotate the tensor first, see :func:`rotate`.
        stochastic: round stochastically rather than to nearest.
        generator: what the key of the random bits is drawn from, see :mod:`monai_fp4.quantization.formats.philox`; by
            default torch's CPU generator.
        amax: the largest magnitude to scale by, where the tensor is a part of a larger one (of the rotated tensor with
            ``rht``); by default that of ``x``. MXFP4, which scales no tensor as a whole, takes no notice of it.
        dtype: of the returned values: FP32, BF16 or FP16, all exact.
        scheme: the format. With MXFP4 blocks are 1 x 32 or 32 x 32.

    Returns:
        The operand, its amax and its block scales. The values have the shape of ``x``, except that ``rht`` keeps the
        padded length, since a rotation mixes the padding with the numbers before it.

    Raises:
        ConfigError: a dtype is none of the three, ``x`` has too few axes, ``two_d`` and ``rht`` are both set, ``rht``
            is set with four over six, or the dtype is FP16 with MXFP4, whose scales FP16 does not hold.
    """
    if dtype not in SUPPORTED_DTYPES:
        raise ConfigError(
            f"scaled_values expected a dtype among {dtype_names(SUPPORTED_DTYPES)}, found {dtype}: use one of them"
        )
    check_blocks(x, two_d=two_d, rht=rht, scheme=scheme)
    if scheme is Scheme.MXFP4 and dtype is torch.float16:
        raise ConfigError(
            "scaled_values expected a dtype with the exponents of FP32 for MXFP4, found torch.float16: use bfloat16"
        )
    key = draw_key(generator) if stochastic else None
    return quantize(x, Task(two_d=two_d, rht=rht, key=key, amax=amax, dtype=dtype, scheme=scheme))


@torch.no_grad()
def gemm_alpha(amax_a: Tensor, amax_b: Tensor, bound_a: float = TENSOR_MAX, bound_b: float = TENSOR_MAX) -> Tensor:
    """The FP32 factor of a product of two quantized tensors, ``amax_a * amax_b * (1 / (36 * 448 * 448))``.

    The reciprocal is rounded first, as the contract of the numbers says; Transformer Engine's Python reference divides
    instead, which differs in the last FP32 bit of about one factor in six and vanishes in a BF16 result nearly always.

    Args:
        amax_a: the ``amax`` of one operand, an FP32 scalar.
        amax_b: the ``amax`` of the other.
        bound_a: the ``scheme.bound`` of the one operand, where it is another than 2688 = 6 * 448.
        bound_b: that of the other.

    Returns:
        An FP32 scalar to multiply the FP32 accumulator with.
    """
    return amax_a.float() * amax_b.float() * (1.0 / (bound_a * bound_b))


@torch.no_grad()
def decode(quantized: ScaledValues, dtype: torch.dtype = torch.float32) -> Tensor:
    """Turn the operand of a product back into the tensor that it stands for.

    The FP32 order is ``q * ((s * amax) * (1 / 2688))``, then a cast, so the codes are divided out of the values
    first, which is exact.

    Args:
        quantized: what :func:`scaled_values` returned.
        dtype: of the result.

    Returns:
        The decoded tensor, in the shape of ``quantized.values``.
    """
    length, size = quantized.values.shape[-1], quantized.scheme.block_size
    scales = quantized.scales.unsqueeze(-1)
    codes = pad_last(quantized.values.float(), size).unflatten(-1, (-1, size))
    # A block whose scale underflowed to zero holds zeros; dividing them by one keeps them.
    decoded = codes / torch.where(scales == 0, 1.0, scales)
    decoded *= decode_factors(scales, quantized.amax, quantized.scheme.bound)
    return decoded.flatten(-2)[..., :length].to(dtype)
