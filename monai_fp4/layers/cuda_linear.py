"""The three products of a linear layer on a CUDA GPU, by the Triton kernels; the same numbers as `linear_products`.

The gradient is read once for both of its operands: row-wise for dgrad, column-wise and rotated for wgrad. Where Triton
fails, plain torch takes over, which is said once.

**Not run on hardware yet**; tested in Triton's interpreter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.kernels.triton_gemm import multiply
from monai_fp4.kernels.triton_quantize import attempt, quantize, quantize_both
from monai_fp4.layers import linear_products
from monai_fp4.numerics import ScaledValues
from monai_fp4.philox import draw_key
from monai_fp4.recipes import Recipe

__all__ = ["decoded", "forward", "gradients"]

_BF16 = torch.bfloat16


def forward(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> tuple[Tensor, ScaledValues | None]:
    """Multiply; see `linear_products.forward`."""

    def on_triton() -> tuple[Tensor, ScaledValues | None]:
        a = quantize(x, dtype=_BF16, with_scales=False)
        b = quantize(weight, two_d=recipe.two_d_weights, dtype=_BF16, with_scales=False)
        return multiply(a, b, dtype), b if recipe.two_d_weights else None

    return attempt(on_triton) or linear_products.forward(x, weight, recipe, dtype)


def decoded(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Decode what the forward product saw; see `linear_products.decoded`."""

    def on_triton() -> tuple[Tensor, Tensor]:
        a = quantize(x, dtype=dtype, decoded=True, with_scales=False)
        b = quantize(weight, two_d=recipe.two_d_weights, dtype=dtype, decoded=True, with_scales=False)
        return a.values, b.values

    return attempt(on_triton) or linear_products.decoded(x, weight, recipe, dtype)


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
    arguments = (dy, x, weight, kept, recipe, dtype, needed)
    return attempt(lambda: _gradients(*arguments)) or linear_products.gradients(*arguments)


def _gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: ScaledValues | None,
    recipe: Recipe,
    dtype: torch.dtype,
    needed: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    dx = dw = None
    rht, stochastic = recipe.hadamard, recipe.stochastic_rounding
    # The keys are drawn in the order of the plain path, and only where it draws one.
    row_key = draw_key() if stochastic and needed[0] else None
    column_key = draw_key() if stochastic and needed[1] else None
    if all(needed):
        rows, columns = quantize_both(dy, rht=rht, row_key=row_key, column_key=column_key, with_scales=False)
    elif needed[0]:
        rows = quantize(dy, key=row_key, dtype=_BF16, with_scales=False)
    elif needed[1]:
        columns = quantize(dy.mT, rht=rht, key=column_key, dtype=_BF16, with_scales=False)
    if needed[0]:
        if kept is not None:  # 16 x 16 blocks are those of the transposed matrix too
            other = ScaledValues(kept.values.mT, kept.amax, kept.scales)
        else:
            other = quantize(weight.mT, two_d=recipe.two_d_weights, dtype=_BF16, with_scales=False)
        dx = multiply(rows, other, dtype)
    if needed[1]:
        dw = multiply(columns, quantize(x.mT, rht=rht, dtype=_BF16, with_scales=False), dtype)
    return dx, dw
