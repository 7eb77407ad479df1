"""The three products of a linear layer on a CUDA GPU, by the Triton kernels; the same numbers as `linear_products`.

The gradient is read once for both of its operands: row-wise for dgrad, column-wise and rotated for wgrad. Where Triton
fails, plain torch takes over, which is said once.

**Not run on hardware yet**; tested in Triton's interpreter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.quantization.formats.philox import draw_key
from monai_fp4.quantization.kernels.triton_gemm import multiply
from monai_fp4.quantization.kernels.triton_quantize import attempt, quantize, quantize_both
from monai_fp4.quantization.layers.linear_products import LinearProducts
from monai_fp4.quantization.numerics import ScaledValues

__all__ = ["CUDALinearProducts"]

_BF16 = torch.bfloat16


class CUDALinearProducts(LinearProducts):
    """The products by the Triton kernels, or in plain torch where those fail."""

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ScaledValues | None]:
        """Multiply; see `LinearProducts.forward`."""

        def on_triton() -> tuple[Tensor, ScaledValues | None]:
            a, b = quantize(x, dtype=_BF16, with_scales=False), self._quantized(weight)
            return multiply(a, b, self.dtype), b if self.recipe.two_d_weights else None

        return attempt(on_triton) or super().forward(x, weight)

    def decoded(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Decode what the forward product saw; see `LinearProducts.decoded`."""

        def on_triton() -> tuple[Tensor, Tensor]:
            a = quantize(x, dtype=self.dtype, decoded=True, with_scales=False)
            two_d = self.recipe.two_d_weights
            b = quantize(weight, two_d=two_d, dtype=self.dtype, decoded=True, with_scales=False)
            return a.values, b.values

        return attempt(on_triton) or super().decoded(x, weight)

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, kept: ScaledValues | None, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Multiply backward; see `LinearProducts.gradients`."""
        rht, stochastic = self.recipe.hadamard, self.recipe.stochastic_rounding

        def on_triton() -> tuple[Tensor | None, Tensor | None]:
            dx = dw = None
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
                    other = self._quantized(weight.mT)
                dx = multiply(rows, other, self.dtype)
            if needed[1]:
                dw = multiply(columns, quantize(x.mT, rht=rht, dtype=_BF16, with_scales=False), self.dtype)
            return dx, dw

        return attempt(on_triton) or super().gradients(dy, x, weight, kept, needed)

    def _quantized(self, weight: Tensor) -> ScaledValues:
        return quantize(weight, two_d=self.recipe.two_d_weights, dtype=_BF16, with_scales=False)
