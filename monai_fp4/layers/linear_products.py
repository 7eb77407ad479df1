"""The three products of a linear layer in plain torch, on any device: what `cpu_linear` and `cuda_linear` speed up.

These are also the products of recipes in other formats than the standard one, which the kernels do not know.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monai_fp4.layers.operands import finish
from monai_fp4.numerics import ScaledValues, decode, scaled_values
from monai_fp4.recipes import Operand, Recipe

__all__ = ["decoded", "forward", "gradients", "multiply", "quantized_input", "quantized_weight"]


def quantized_input(x: Tensor, recipe: Recipe) -> ScaledValues:
    """Quantize ``[..., K]`` along K, as fprop reads it."""
    return scaled_values(x, scheme=recipe.scheme_of(Operand.INPUT))


def quantized_weight(weight: Tensor, recipe: Recipe) -> ScaledValues:
    """Quantize ``[N, K]`` along K, or over both axes where the recipe says so."""
    return scaled_values(weight, two_d=recipe.two_d_weights, scheme=recipe.scheme_of(Operand.WEIGHT))


def multiply(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """Return ``a @ b.T`` of two operands ``[M, K]`` and ``[N, K]``, accumulated in FP32 and cast to ``dtype``."""
    return finish(a.values @ b.values.mT, a, b, dtype)


def forward(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> tuple[Tensor, ScaledValues | None]:
    """Quantize both operands along K and multiply them.

    Args:
        x: ``[T, K]``.
        weight: ``[N, K]``.
        recipe: what is quantized, and how.
        dtype: of the result.

    Returns:
        ``[T, N]``; and the quantized weight where its 16 x 16 blocks will serve the gradient too.
    """
    a, b = quantized_input(x, recipe), quantized_weight(weight, recipe)
    return multiply(a, b, dtype), b if recipe.two_d_weights else None


def decoded(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What `forward` saw of its operands, decoded: the operands of ``chain_rule``'s backward."""
    return decode(quantized_input(x, recipe), dtype), decode(quantized_weight(weight, recipe), dtype)


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: ScaledValues | None,
    recipe: Recipe,
    dtype: torch.dtype,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Quantize the operands of both backward products and multiply them.

    Args:
        dy: ``[T, N]``.
        x: ``[T, K]``.
        weight: ``[N, K]``.
        kept: what `forward` returned beside its result.
        recipe: what is quantized, and how.
        dtype: of the results.
        needed: whether the gradients of x and of the weight are wanted.

    Returns:
        The gradients of x and of the weight, or None.
    """
    dx = dw = None
    stochastic, rht = recipe.stochastic_rounding, recipe.hadamard
    scheme = recipe.scheme_of(Operand.GRADIENT)
    if needed[0]:
        rows = scaled_values(dy, stochastic=stochastic, scheme=scheme)
        # 16 x 16 blocks are those of the transposed matrix too; what the compiled path kept is in pairs.
        if kept is not None and kept.values.ndim == 2:
            dx = multiply(rows, replace(kept, values=kept.values.mT), dtype)
        else:
            dx = multiply(rows, quantized_weight(weight.mT, recipe), dtype)
    if needed[1]:
        columns = scaled_values(dy.mT, rht=rht, stochastic=stochastic, scheme=scheme)
        dw = multiply(columns, scaled_values(x.mT, rht=rht, scheme=recipe.scheme_of(Operand.INPUT)), dtype)
    return dx, dw
