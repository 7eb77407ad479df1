"""The three products of a linear layer in plain torch, on any device: what `cpu_linear` and `cuda_linear` speed up.

These are also the products of recipes in other formats than the standard one, which the kernels do not know.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monai_fp4.quantization.layers.operands import scale_and_cast
from monai_fp4.quantization.numerics import ScaledValues, decode, scaled_values
from monai_fp4.quantization.recipes import Operand, Recipe

__all__ = ["LinearProducts", "multiply", "quantized_input", "quantized_weight"]


def quantized_input(x: Tensor, recipe: Recipe) -> ScaledValues:
    """Quantize ``[..., K]`` along K, as fprop reads it."""
    return scaled_values(x, scheme=recipe.scheme_of(Operand.INPUT))


def quantized_weight(weight: Tensor, recipe: Recipe) -> ScaledValues:
    """Quantize ``[N, K]`` along K, or over both axes where the recipe says so."""
    return scaled_values(weight, two_d=recipe.two_d_weights, scheme=recipe.scheme_of(Operand.WEIGHT))


def multiply(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """Return ``a @ b.T`` of two operands ``[M, K]`` and ``[N, K]``, accumulated in FP32 and cast to ``dtype``."""
    return scale_and_cast(a.values @ b.values.mT, a, b, dtype)


class LinearProducts:
    """The products of a layer with an input ``[T, K]``, a weight ``[N, K]`` and an output gradient ``[T, N]``.

    Args:
        recipe: what is quantized, and how.
        dtype: of the results.
    """

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        self.recipe, self.dtype = recipe, dtype

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ScaledValues | None]:
        """Quantize both operands along K and multiply them.

        Returns:
            ``[T, N]``; and the quantized weight where its 16 x 16 blocks will serve the gradient too.
        """
        a, b = quantized_input(x, self.recipe), quantized_weight(weight, self.recipe)
        return multiply(a, b, self.dtype), b if self.recipe.two_d_weights else None

    def decoded(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` saw of its operands, decoded: the operands of ``chain_rule``'s backward."""
        a, b = quantized_input(x, self.recipe), quantized_weight(weight, self.recipe)
        return decode(a, self.dtype), decode(b, self.dtype)

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, kept: ScaledValues | None, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of x and of the weight, or None where ``needed`` says that one is not wanted.

        ``kept`` is what `forward` returned beside its result.
        """
        # In this order on every device, since both may draw a key for stochastic rounding.
        dx = self.input_gradient(dy, weight, kept) if needed[0] else None
        dw = self.weight_gradient(dy, x) if needed[1] else None
        return dx, dw

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None) -> Tensor:
        """``dy W`` ``[T, K]``, both quantized along N."""
        scheme = self.recipe.scheme_of(Operand.GRADIENT)
        rows = scaled_values(dy, stochastic=self.recipe.stochastic_rounding, scheme=scheme)
        # 16 x 16 blocks are those of the transposed matrix too; what the compiled path kept is in pairs.
        if kept is not None and kept.values.ndim == 2:
            return multiply(rows, replace(kept, values=kept.values.mT), self.dtype)
        return multiply(rows, quantized_weight(weight.mT, self.recipe), self.dtype)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """``dy^T x`` ``[N, K]``, both quantized along T and rotated where the recipe says so."""
        recipe, rht = self.recipe, self.recipe.hadamard
        scheme = recipe.scheme_of(Operand.GRADIENT)
        columns = scaled_values(dy.mT, rht=rht, stochastic=recipe.stochastic_rounding, scheme=scheme)
        return multiply(columns, scaled_values(x.mT, rht=rht, scheme=recipe.scheme_of(Operand.INPUT)), self.dtype)
