"""The three products of a linear layer in plain torch, on any device: what `cpu_linear` and `cuda_linear` speed up."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.layers.operands import finish
from monai_fp4.numerics import ScaledValues, decode, scaled_values
from monai_fp4.recipes import Recipe

__all__ = ["decoded", "forward", "gradients", "multiply"]


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
    a, b = scaled_values(x), scaled_values(weight, two_d=recipe.two_d_weights)
    return multiply(a, b, dtype), b if recipe.two_d_weights else None


def decoded(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What `forward` saw of its operands, decoded: the operands of ``chain_rule``'s backward."""
    return decode(scaled_values(x), dtype), decode(scaled_values(weight, two_d=recipe.two_d_weights), dtype)


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
    if needed[0]:
        rows = scaled_values(dy, stochastic=stochastic)
        if kept is not None:  # 16 x 16 blocks are those of the transposed matrix too
            dx = multiply(rows, ScaledValues(kept.values.mT, kept.amax, kept.scales), dtype)
        else:
            dx = multiply(rows, scaled_values(weight.mT, two_d=recipe.two_d_weights), dtype)
    if needed[1]:
        columns = scaled_values(dy.mT, rht=rht, stochastic=stochastic)
        dw = multiply(columns, scaled_values(x.mT, rht=rht), dtype)
    return dx, dw
