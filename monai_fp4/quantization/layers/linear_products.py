"""The three products of a linear layer in plain torch: what `cpu_products` and `triton_products` speed up.

These are also the products of recipes in other formats than the standard one, which the kernels do not know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monai_fp4.quantization.layers.layer_products import Forward, Products
from monai_fp4.quantization.layers.operands import rotated_product, scale_and_cast
from monai_fp4.quantization.numerics import ScaledValues, decode, scaled_values
from monai_fp4.quantization.recipes import Operand, Recipe

__all__ = ["LinearProducts", "LinearSpec", "matrix_product", "quantized_input", "quantized_weight"]


def quantized_input(x: Tensor, recipe: Recipe) -> ScaledValues:
    """Quantize ``[..., K]`` along K, as fprop reads it."""
    return scaled_values(x, scheme=recipe.scheme_of(Operand.INPUT))


def quantized_weight(weight: Tensor, recipe: Recipe) -> ScaledValues:
    """Quantize ``[N, K]`` along K, or over both axes where the recipe says so."""
    return scaled_values(weight, two_d=recipe.two_d_weights, scheme=recipe.scheme_of(Operand.WEIGHT))


def matrix_product(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """Return ``a @ b.mT`` of two operands ``[..., M, K]`` and ``[..., N, K]``, summed in FP32 and cast to ``dtype``."""
    return scale_and_cast(a.values @ b.values.mT, a, b, dtype)


@dataclass(frozen=True)
class LinearSpec:
    """Arguments of a linear layer's products beside their operands.

    Attributes:
        recipe: what is quantized, and how.
        dtype: of the results.
    """

    recipe: Recipe
    dtype: torch.dtype

    def memory_format(self, x: Tensor, weight: Tensor) -> torch.memory_format:
        """Matrices have one format."""
        return torch.contiguous_format

    def read(self, x: Tensor) -> Tensor:
        """All of the input."""
        return x

    def input_gradient(self, dy: Tensor, weight: Tensor) -> Tensor:
        """``dy W`` in high precision."""
        return dy @ weight.to(self.dtype)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """``dy^T x`` in high precision, of rotated operands where the recipe says so."""
        if self.recipe.hadamard:
            return rotated_product(dy.mT, x.mT, self.dtype)
        return dy.mT @ x.to(self.dtype)


class LinearProducts(Products[LinearSpec]):
    """The products of a layer with an input ``[T, K]``, a weight ``[N, K]`` and an output gradient ``[T, N]``."""

    @classmethod
    def takes(cls, x: Tensor, spec: LinearSpec, /) -> bool:
        """Every tensor on every device, in every format."""
        return True

    def forward(self, x: Tensor, weight: Tensor) -> Forward:
        """Quantize both operands along K and multiply them, to ``[T, N]``."""
        a, b = quantized_input(x, self.recipe), quantized_weight(weight, self.recipe)
        saved = (decode(a, self.dtype), decode(b, self.dtype)) if self.decodes else (x, weight)
        return Forward(matrix_product(a, b, self.dtype), saved, b if self.recipe.two_d_weights else None)

    def remembered(self, x: Tensor, weight: Tensor) -> tuple[tuple[Tensor, Tensor], ScaledValues | None]:
        """See `Products.remembered`."""
        saved, kept = (x, weight), quantized_weight(weight, self.recipe) if self.keeps else None
        if self.decodes:
            a, b = quantized_input(x, self.recipe), kept or quantized_weight(weight, self.recipe)
            saved = (decode(a, self.dtype), decode(b, self.dtype))
        return saved, kept

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """``dy W`` ``[T, K]``, both quantized along N."""
        scheme = self.recipe.scheme_of(Operand.GRADIENT)
        rows = scaled_values(dy, stochastic=self.recipe.stochastic_rounding, scheme=scheme)
        # 16 x 16 blocks are those of the transposed matrix too; what the compiled path kept is in pairs.
        if kept is not None and kept.values.ndim == 2:
            return matrix_product(rows, replace(kept, values=kept.values.mT), self.dtype)
        return matrix_product(rows, quantized_weight(weight.mT, self.recipe), self.dtype)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """``dy^T x`` ``[N, K]``, both quantized along T and rotated where the recipe says so."""
        recipe, rht = self.recipe, self.recipe.hadamard
        scheme = recipe.scheme_of(Operand.GRADIENT)
        columns = scaled_values(dy.mT, rht=rht, stochastic=recipe.stochastic_rounding, scheme=scheme)
        other = scaled_values(x.mT, rht=rht, scheme=recipe.scheme_of(Operand.INPUT))
        return matrix_product(columns, other, self.dtype)
