"""The three products of a linear layer on a CPU with BF16 instructions; the same numbers as `linear_products`."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.kernels import cpu_gemm
from monai_fp4.layers.cpu_operands import quantized, quantized_rows, round_trip, swap_pairs
from monai_fp4.numerics import ScaledValues, gemm_alpha
from monai_fp4.recipes import Recipe

__all__ = ["decoded", "forward", "gradients"]


def forward(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> tuple[Tensor, ScaledValues | None]:
    """Multiply; see `linear_products.forward`."""
    if x.shape[1] != weight.shape[1]:
        raise ConfigError(
            f"a linear layer of {weight.shape[1]} input features found an input of {x.shape[1]}: check what precedes it"
        )
    rows, pairs = quantized_rows(x), quantized(weight, two_d=recipe.two_d_weights, pairs=True)
    y = cpu_gemm.product_of_rows(rows.values, pairs.values, gemm_alpha(rows.amax, pairs.amax), dtype)
    return y, pairs if recipe.two_d_weights else None


def decoded(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Decode what the forward product saw; see `linear_products.decoded`."""
    return round_trip(x, dtype), round_trip(weight, dtype, two_d=recipe.two_d_weights)


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: ScaledValues | None,
    recipe: Recipe,
    dtype: torch.dtype,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Multiply backward; see `linear_products.gradients`."""
    dx = dw = None
    stochastic, rht = recipe.stochastic_rounding, recipe.hadamard
    if needed[0]:
        a = quantized_rows(dy, stochastic=stochastic)
        if kept is not None and kept.values.ndim == 3:  # plain torch, under a compiler say, keeps a matrix
            b = swap_pairs(kept, weight.shape[1])
        else:
            b = quantized(weight.mT, two_d=recipe.two_d_weights, pairs=True)
        dx = cpu_gemm.product_of_rows(a.values, b.values, gemm_alpha(a.amax, b.amax), dtype)
    if needed[1]:
        a = quantized(dy.mT, rht=rht, stochastic=stochastic, pairs=True)
        b = quantized(x.mT, rht=rht, pairs=True)
        dw = cpu_gemm.product_of_pairs(a.values, b.values, gemm_alpha(a.amax, b.amax), dtype)
    return dx, dw
