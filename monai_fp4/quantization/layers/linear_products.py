"""The three products of a linear layer in plain torch: what `cpu_products` and `triton_products` speed up.

These are also the products of recipes in other formats than the standard one, which the kernels do not know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monai_fp4.quantization.layers.layer_products import Products
from monai_fp4.quantization.layers.operands import quantized, rotated_product, scale_and_cast
from monai_fp4.quantization.numerics import ScaledValues, decode
from monai_fp4.quantization.recipes import Recipe

__all__ = ["LinearProducts", "LinearSpec", "matrix_product"]


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

    @property
    def keeps(self) -> bool:
        """16 x 16 blocks are those of the transposed matrix too."""
        return self.recipe.two_d_weights

    def quantized_input(self, x: Tensor) -> ScaledValues:
        """Along K."""
        return quantized(x, self.how.input)

    def quantized_weight(self, weight: Tensor) -> ScaledValues:
        """Along K."""
        return quantized(weight, self.how.weight)

    def multiply(self, a: ScaledValues, b: ScaledValues) -> Tensor:
        """To ``[T, N]``."""
        return matrix_product(a, b, self.dtype)

    def decoded(self, a: ScaledValues, b: ScaledValues) -> tuple[Tensor, Tensor]:
        """As they are multiplied."""
        return decode(a, self.dtype), decode(b, self.dtype)

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """``dy W`` ``[T, K]``, both quantized along N."""
        rows = quantized(dy, self.how.gradient)
        if kept is not None and kept.values.ndim == 2:  # what the compiled path kept is in pairs
            return self.multiply(rows, replace(kept, values=kept.values.mT))
        return self.multiply(rows, self.quantized_weight(weight.mT))

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """``dy^T x`` ``[N, K]``, both quantized along T and rotated where the recipe says so."""
        return self.multiply(quantized(dy.mT, self.how.gradient_columns), quantized(x.mT, self.how.input_columns))
