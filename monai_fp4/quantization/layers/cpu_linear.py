"""The three products of a linear layer on a CPU with BF16 instructions; the same numbers as `linear_products`."""

from __future__ import annotations

from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.kernels import cpu_gemm
from monai_fp4.quantization.layers.cpu_operands import quantized, quantized_rows, round_trip, swap_pairs
from monai_fp4.quantization.layers.linear_products import LinearProducts
from monai_fp4.quantization.numerics import ScaledValues, gemm_alpha

__all__ = ["CPULinearProducts"]


class CPULinearProducts(LinearProducts):
    """The products by the compiled kernels, whose weights and columns lie in pairs of neighbours."""

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ScaledValues | None]:
        """Multiply; see `LinearProducts.forward`."""
        if x.shape[1] != weight.shape[1]:
            raise ConfigError(
                f"a linear layer of {weight.shape[1]} input features found an input of {x.shape[1]}: check what"
                " precedes it"
            )
        two_d = self.recipe.two_d_weights
        rows, pairs = quantized_rows(x), quantized(weight, two_d=two_d, pairs=True)
        return self._product_of_rows(rows, pairs), pairs if two_d else None

    def decoded(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Decode what the forward product saw; see `LinearProducts.decoded`."""
        return round_trip(x, self.dtype), round_trip(weight, self.dtype, two_d=self.recipe.two_d_weights)

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None) -> Tensor:
        """Multiply backward; see `LinearProducts.input_gradient`."""
        rows = quantized_rows(dy, stochastic=self.recipe.stochastic_rounding)
        if kept is not None and kept.values.ndim == 3:  # plain torch, under a compiler say, keeps a matrix
            pairs = swap_pairs(kept, weight.shape[1])
        else:
            pairs = quantized(weight.mT, two_d=self.recipe.two_d_weights, pairs=True)
        return self._product_of_rows(rows, pairs)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Multiply backward; see `LinearProducts.weight_gradient`."""
        rht = self.recipe.hadamard
        a = quantized(dy.mT, rht=rht, stochastic=self.recipe.stochastic_rounding, pairs=True)
        b = quantized(x.mT, rht=rht, pairs=True)
        return cpu_gemm.product_of_pairs(a.values, b.values, gemm_alpha(a.amax, b.amax), self.dtype)

    def _product_of_rows(self, rows: ScaledValues, pairs: ScaledValues) -> Tensor:
        return cpu_gemm.product_of_rows(rows.values, pairs.values, gemm_alpha(rows.amax, pairs.amax), self.dtype)
