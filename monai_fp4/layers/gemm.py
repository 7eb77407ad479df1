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
operands of the high-precision products (see `monai_fp4.layers.operands`). Biases are added by the layers, in high
precision, after the cast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from monai_fp4.kernels import cpu_gemm
from monai_fp4.layers.cpu_operands import quantized, quantized_rows, round_trip, swap_pairs
from monai_fp4.layers.operands import finish, without_autocast
from monai_fp4.numerics import ScaledValues, decode, gemm_alpha, scaled_values
from monai_fp4.recipes import Backward, Recipe

__all__ = ["LinearFunction", "multiply"]


def multiply(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """Return ``a @ b.T`` of two operands ``[M, K]`` and ``[N, K]``, accumulated in FP32 and cast to ``dtype``."""
    return finish(a.values @ b.values.mT, a, b, dtype)


class LinearFunction(Function):
    """``y = x @ W.T`` for ``x`` of shape ``[T, K]`` and ``W`` of shape ``[N, K]``; y, dx and dW have ``dtype``."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> Tensor:
        """Quantize both operands along K and multiply them."""
        ctx.recipe, ctx.dtype, ctx.weight_pairs = recipe, dtype, None
        if cpu_gemm.usable(x):
            rows, pairs = quantized_rows(x), quantized(weight, two_d=recipe.two_d_weights, pairs=True)
            if recipe.backward is Backward.DEQUANTIZED:
                ctx.save_for_backward(round_trip(x, dtype), round_trip(weight, dtype, two_d=recipe.two_d_weights))
            else:
                ctx.save_for_backward(x, weight)
            if recipe.two_d_weights:
                ctx.weight_pairs = pairs  # its 16 x 16 blocks are those of dgrad too
            return cpu_gemm.product_of_rows(rows.values, pairs.values, gemm_alpha(rows.amax, pairs.amax), dtype)
        a = scaled_values(x)
        b = scaled_values(weight, two_d=recipe.two_d_weights)
        if recipe.backward is Backward.DEQUANTIZED:
            ctx.save_for_backward(decode(a, dtype), decode(b, dtype))
        else:
            ctx.save_for_backward(x, weight)
        return multiply(a, b, dtype)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weight."""
        x, weight = ctx.saved_tensors
        recipe: Recipe = ctx.recipe
        dtype: torch.dtype = ctx.dtype
        dx = dw = None
        if recipe.backward is not Backward.FP4:
            dx = dy @ weight.to(dtype) if ctx.needs_input_grad[0] else None
            dw = dy.mT @ x.to(dtype) if ctx.needs_input_grad[1] else None
            return dx, dw, None, None
        stochastic, rht = recipe.stochastic_rounding, recipe.hadamard
        if cpu_gemm.usable(dy):
            if ctx.needs_input_grad[0]:
                a = quantized_rows(dy, stochastic=stochastic)
                if ctx.weight_pairs is not None:
                    b = swap_pairs(ctx.weight_pairs, weight.shape[1])
                else:
                    b = quantized(weight.mT, two_d=recipe.two_d_weights, pairs=True)
                dx = cpu_gemm.product_of_rows(a.values, b.values, gemm_alpha(a.amax, b.amax), dtype)
            if ctx.needs_input_grad[1]:
                a = quantized(dy.mT, rht=rht, stochastic=stochastic, pairs=True)
                b = quantized(x.mT, rht=rht, pairs=True)
                dw = cpu_gemm.product_of_pairs(a.values, b.values, gemm_alpha(a.amax, b.amax), dtype)
            return dx, dw, None, None
        if ctx.needs_input_grad[0]:
            rows = scaled_values(dy, stochastic=stochastic)
            dx = multiply(rows, scaled_values(weight.mT, two_d=recipe.two_d_weights), dtype)
        if ctx.needs_input_grad[1]:
            columns = scaled_values(dy.mT, rht=rht, stochastic=stochastic)
            dw = multiply(columns, scaled_values(x.mT, rht=rht), dtype)
        return dx, dw, None, None
