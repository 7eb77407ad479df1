"""The products of layers on a CUDA GPU, by the Triton kernels; the same numbers as in plain torch.

The gradient of a linear layer is read once for both of its operands: row-wise for dgrad, column-wise and rotated for
wgrad. Convolutions are cuDNN's; a kernel scales and casts their sums. Where Triton fails, plain torch takes over, which
is said once.

**Not run on hardware yet**; tested in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monai_fp4.quantization.formats.philox import draw_key
from monai_fp4.quantization.kernels import triton_gemm, triton_quantize
from monai_fp4.quantization.kernels.task import STANDARD_TASK, Task
from monai_fp4.quantization.kernels.triton_quantize import quantize, quantize_both
from monai_fp4.quantization.layers.conv_products import ConvProducts
from monai_fp4.quantization.layers.layer_products import Forward, Spec
from monai_fp4.quantization.layers.linear_products import LinearProducts
from monai_fp4.quantization.numerics import ScaledValues

__all__ = ["TritonConvProducts", "TritonLinearProducts"]

_OPERAND = Task(dtype=torch.bfloat16, with_scales=False)


class _OnTriton:
    @classmethod
    def takes(cls, x: Tensor, spec: Spec, /) -> bool:
        """A tensor on a GPU with Triton, in the standard format."""
        return spec.recipe.standard_format and triton_quantize.takes(x, STANDARD_TASK)


class TritonLinearProducts(_OnTriton, LinearProducts):
    """The products by the Triton kernels."""

    def forward(self, x: Tensor, weight: Tensor) -> Forward:
        """Multiply; see `LinearProducts.forward`."""
        two_d = self.recipe.two_d_weights
        a, b = quantize(x, _OPERAND), self._quantized(weight)
        y, saved = triton_gemm.multiply(a, b, self.dtype), (x, weight)
        if self.decodes:
            decoded = Task(dtype=self.dtype, decoded=True, with_scales=False)
            saved = (quantize(x, decoded).values, quantize(weight, decoded._replace(two_d=two_d)).values)
        return Forward(y, saved, b if two_d else None)

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, kept: ScaledValues | None, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Multiply backward; see `LinearProducts.gradients`."""
        rht, stochastic = self.recipe.hadamard, self.recipe.stochastic_rounding
        dx = dw = None
        # The keys are drawn in the order of the plain path, and only where it draws one.
        row_key = draw_key() if stochastic and needed[0] else None
        column_key = draw_key() if stochastic and needed[1] else None
        if all(needed):
            rows, columns = quantize_both(dy, _OPERAND._replace(rht=rht, key=row_key), column_key=column_key)
        elif needed[0]:
            rows = quantize(dy, _OPERAND._replace(key=row_key))
        elif needed[1]:
            columns = quantize(dy.mT, _OPERAND._replace(rht=rht, key=column_key))
        if needed[0]:
            # 16 x 16 blocks are those of the transposed matrix too
            other = self._quantized(weight.mT) if kept is None else replace(kept, values=kept.values.mT)
            dx = triton_gemm.multiply(rows, other, self.dtype)
        if needed[1]:
            dw = triton_gemm.multiply(columns, quantize(x.mT, _OPERAND._replace(rht=rht)), self.dtype)
        return dx, dw

    def _quantized(self, weight: Tensor) -> ScaledValues:
        return quantize(weight, _OPERAND._replace(two_d=self.recipe.two_d_weights))


class TritonConvProducts(_OnTriton, ConvProducts):
    """The products of plain torch, that is cuDNN, whose sums are scaled and cast in one kernel."""

    def scale_and_cast(self, accumulated: Tensor, a: ScaledValues, b: ScaledValues) -> Tensor:
        """Scale and cast in one pass over memory; see `ConvProducts.scale_and_cast`."""
        return triton_gemm.scale_and_cast(accumulated, a, b, self.dtype)
