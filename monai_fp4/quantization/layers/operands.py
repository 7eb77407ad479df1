"""Operands of a GEMM, from the tensors of a layer and back.

Which operand is quantized how is a table of the recipe, `monai_fp4.quantization.recipes.encodings`. A quantized operand
is the values ``q * s`` (grid value times block scale, exact in BF16 and FP32) and the tensor's maximum; a GEMM of two
such operands, accumulated in FP32 and multiplied by ``alpha = amaxA * amaxB / (36 * 448 * 448)``, *is* the FP4 GEMM.

**High precision.** Where a recipe's backward pass is in high precision, wgrad keeps the rotation if the recipe has it,
and nothing is rounded to FP4 (`rotated_product`).

**Other formats.** Each of the three tensors may have a format of its own. The kernels know the standard one; a layer
whose recipe has another for any of them computes all of its products in plain torch, on any device, with the operands
and the alpha of that format. Blocks over two axes are chosen once and used in fprop and dgrad alike.

**Dtypes under autocast.** The input is cast to the autocast dtype before it is quantized, as a plain layer casts it:
CUDA's autocast runs layer norms in FP32, and Transformer Engine's kernels rotate BF16 only. The weight is not cast: a
master weight in FP32 goes to FP4 in one rounding, as in ``te.Linear``. The autocast dtype is that of the results (y,
dx, dW, each rounded to it), hence of dy, and of the products that a recipe leaves in high precision: there x and W,
original or decoded, are cast to it as a plain layer would. Rotated copies are BF16 by their definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.quantization.numerics import BLOCK_SIZE, ScaledValues, gemm_alpha, pad_last, rotate, scaled_values
from monai_fp4.quantization.recipes import Encoding

__all__ = [
    "along_channels",
    "as_kernel",
    "channels_first",
    "kernel_values",
    "quantized",
    "rotated_product",
    "scale_and_cast",
]


def quantized(x: Tensor, how: Encoding, amax: Tensor | None = None) -> ScaledValues:
    """Quantize an operand along its last axis, by its own maximum or the one given."""
    scheme, two_d, rht, stochastic = how
    return scaled_values(x, two_d=two_d, rht=rht, stochastic=stochastic, amax=amax, scheme=scheme)


def along_channels(x: Tensor, groups: int, how: Encoding, amax: Tensor | None = None) -> ScaledValues:
    """Quantize every pixel of ``[N, C, *spatial]`` along its channels, each group's channels padded to whole blocks."""
    pixels = x.movedim(1, -1)
    return quantized(pixels.unflatten(-1, (groups, -1)) if groups > 1 else pixels, how, amax)


def channels_first(pixels: Tensor, groups: int) -> Tensor:
    """Undo the view that `along_channels` took: ``[N, *spatial, (groups,) C]`` to ``[N, C, *spatial]``."""
    return (pixels.flatten(-2) if groups > 1 else pixels).movedim(-1, 1)


def kernel_values(weight: Tensor, groups: int, how: Encoding, *, along_first: bool) -> ScaledValues:
    """Quantize a kernel ``[A, B / groups, *k]`` within each tap: along B, or along A, or 16x16 over both when 2D.

    With ``two_d`` both directions give the same values; four over six may differ where two sums of errors are equal up
    to FP32 rounding.
    """
    # [A, B/g, *k] -> [g, *k, A/g, B/g]: one matrix per group and tap, the reduction axis of the GEMM last
    taps = weight.unflatten(0, (groups, -1)).movedim((1, 2), (-2, -1))
    return quantized(taps.mT if along_first else taps, how)


def as_kernel(taps: Tensor, *, along_first: bool) -> Tensor:
    """Undo the view that `kernel_values` took: ``[g, *k, ., .]`` to ``[A, B / groups, *k]``."""
    taps = taps.mT if along_first else taps
    return taps.movedim((-2, -1), (1, 2)).flatten(0, 1)


def scale_and_cast(accumulated: Tensor, a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """Scale the FP32 sums of a GEMM by alpha (in place) and cast them."""
    return accumulated.mul_(gemm_alpha(a.amax, b.amax, a.scheme.bound, b.scheme.bound)).to(dtype)


def rotated_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``a @ b.mT`` with both operands rotated along their last axis and neither quantized.

    The rotation cancels in the product, so this is the plain product with operands that were rounded to BF16 in another
    basis. Recipes with the Hadamard transform and a backward pass in high precision have it as their weight gradient.

    Args:
        a: ``[..., M, K]``, FP32, BF16 or FP16.
        b: ``[..., N, K]``.
        dtype: of the result; the products are summed in FP32.
    """
    a, b = rotate(pad_last(a, BLOCK_SIZE)), rotate(pad_last(b, BLOCK_SIZE))
    if dtype is not torch.bfloat16:  # FP16 has not the range of rotated gradients
        a, b = a.float(), b.float()
    return (a @ b.mT).to(dtype)
