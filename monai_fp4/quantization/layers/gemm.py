"""The autograd function of a linear layer: three GEMMs, quantized as the recipe says.

With ``x`` of shape ``[T, K]`` (T tokens), ``W`` ``[N, K]`` and ``dy`` ``[T, N]``:

======  ==========================================  ==========================================
GEMM    backward ``fp4``                            ``high_precision`` or ``dequantized``
======  ==========================================  ==========================================
fprop   ``y = q(x) q(W)^T``, both along K           the same
dgrad   ``dx = q(dy) q(W)``, both along N; dy SR    ``dx = dy W``; the original or the decoded W
wgrad   ``dW = q(dy)^T q(x)``, both along T;        ``dW = dy^T x``; the original or the decoded x
        both rotated (RHT), dy SR
======  ==========================================  ==========================================

Each q(.) is of the tensor in the dtype that it came in; results have the dtype that the layer works in, and so have the
operands of the high-precision products (see `monai_fp4.quantization.layers.operands`). Biases are added by the layers,
in high precision, after the cast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from monai_fp4.quantization.kernels import cpu_gemm, triton_quantize
from monai_fp4.quantization.layers.cpu_linear import CPULinearProducts
from monai_fp4.quantization.layers.linear_products import LinearProducts
from monai_fp4.quantization.layers.operands import without_autocast
from monai_fp4.quantization.recipes import Backward, Recipe

__all__ = ["LinearFunction"]


class LinearFunction(Function):
    """``y = x @ W.T`` for ``x`` of shape ``[T, K]`` and ``W`` of shape ``[N, K]``; y, dx and dW have ``dtype``."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> Tensor:
        """Quantize both operands along K and multiply them."""
        products = _products(x, recipe, dtype)
        ctx.recipe, ctx.dtype = recipe, dtype
        y, ctx.kept = products.forward(x, weight)
        if recipe.backward is Backward.DEQUANTIZED:
            ctx.save_for_backward(*products.decoded(x, weight))
        else:
            ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weight."""
        x, weight = ctx.saved_tensors
        dtype: torch.dtype = ctx.dtype
        needed = ctx.needs_input_grad[:2]
        if ctx.recipe.backward is Backward.FP4:
            dx, dw = _products(dy, ctx.recipe, dtype).gradients(dy, x, weight, ctx.kept, needed)
        else:
            dx = dy @ weight.to(dtype) if needed[0] else None
            dw = dy.mT @ x.to(dtype) if needed[1] else None
        return dx, dw, None, None


def _products(x: Tensor, recipe: Recipe, dtype: torch.dtype) -> LinearProducts:
    """The quickest products where ``x`` is that know the recipe's format."""
    if recipe.standard_format:
        if cpu_gemm.usable(x):
            return CPULinearProducts(recipe, dtype)
        if triton_quantize.usable(x):
            from monai_fp4.quantization.layers.cuda_linear import CUDALinearProducts  # imports Triton

            return CUDALinearProducts(recipe, dtype)
    return LinearProducts(recipe, dtype)
