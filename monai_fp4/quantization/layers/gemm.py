"""Multiply in FP4, for linear layers and convolutions: the table of implementations, and their autograd function.

With ``x`` of shape ``[T, K]`` (T tokens), ``W`` ``[N, K]`` and ``dy`` ``[T, N]``:

======  ==========================================  ==========================================
GEMM    backward ``fp4``                            ``high_precision`` or ``dequantized``
======  ==========================================  ==========================================
fprop   ``y = q(x) q(W)^T``, both along K           the same
dgrad   ``dx = q(dy) q(W)``, both along N; dy SR    ``dx = dy W``; the original or the decoded W
wgrad   ``dW = q(dy)^T q(x)``, both along T;        ``dW = dy^T x``; the original or the decoded x
        both rotated (RHT), dy SR
======  ==========================================  ==========================================

A convolution is the same with output pixels for tokens and (kernel tap, channel) for features, over an im2col matrix
that is never built; see `monai_fp4.quantization.layers.products`.

Each q(.) is of the tensor in the dtype that it came in; results have the dtype that the layer works in, and so have the
operands of the high-precision products (see `monai_fp4.quantization.layers.operands`). Biases are added by the layers,
in high precision, after the cast.

`MULTIPLIERS` is the table of implementations. Transformer Engine is not in it, though it multiplies too: ``te.Linear``
is a module with a state and an autograd of its own, so it is chosen once, by `convert`
(:data:`monai_fp4.quantization.backends.BACKENDS`), and what it does not take comes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function

from monai_fp4.quantization.kernels.dispatch import dispatch
from monai_fp4.quantization.layers.conv_products import ConvProducts, ConvSpec
from monai_fp4.quantization.layers.cpu_products import CPUConvProducts, CPULinearProducts
from monai_fp4.quantization.layers.guards import without_autocast
from monai_fp4.quantization.layers.layer_products import Products, Spec
from monai_fp4.quantization.layers.linear_products import LinearProducts, LinearSpec
from monai_fp4.quantization.layers.separate import maxima, separated
from monai_fp4.quantization.layers.triton_products import TritonConvProducts, TritonLinearProducts
from monai_fp4.quantization.numerics import ScaledValues, Scheme
from monai_fp4.quantization.recipes import Backward, Operand

__all__ = ["MULTIPLIERS", "gradients", "input_gradient", "multiply"]

_Result = TypeVar("_Result")

MULTIPLIERS: Mapping[type, Sequence[type[Products[Any]]]] = {
    LinearSpec: (CPULinearProducts, TritonLinearProducts, LinearProducts),
    ConvSpec: (CPUConvProducts, TritonConvProducts, ConvProducts),
}
"""Implementations for each kind of layer: compiled C++, Triton, plain torch."""


def multiply(x: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """Multiply an input with a weight as a layer does, in FP4, with the gradients that its recipe asks for.

    Args:
        x: ``[T, K]`` of a linear layer, ``[N, C, *spatial]`` of a convolution.
        weight: ``[N, K]``, or the kernel.
        spec: what is multiplied how.

    Returns:
        ``[T, N]``, or ``[N, A, *out]``, in ``spec.dtype``, as are both gradients. It lies in memory as torch's result
        would, and so does the gradient of x.
    """
    y: Tensor
    own = maxima(spec.read(x)) if separated() and spec.recipe.scheme_of(Operand.INPUT) is not Scheme.MXFP4 else None
    if own is None:
        y = _Multiply.apply(x, weight, spec)
        return y
    y = _Multiply.apply(x / own, weight, replace(cast(Any, spec), dtype=torch.float32))
    return y.mul(own).to(spec.dtype)


def input_gradient(dy: Tensor, weight: Tensor, spec: Spec) -> Tensor:
    """The gradient that `multiply` gives its input, for a layer whose forward product is computed elsewhere.

    Where the recipe's backward is `Backward.DEQUANTIZED`, the weight is the decoded one.
    """
    if spec.recipe.backward is not Backward.FP4:
        return spec.input_gradient(dy, weight)
    return _compute(dy, spec, lambda products: products.input_gradient(dy, weight))


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor, spec: Spec, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of `multiply` from its operands alone, for operators, which save nothing else.

    What its autograd function keeps of the forward pass is computed anew: the same bits.
    """
    saved, kept = _compute(x, spec, lambda products: products.remembered(x, weight))
    return _gradients(dy, *saved, kept, spec, needed)


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, kept: ScaledValues | None, spec: Spec, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    if spec.recipe.backward is Backward.FP4:
        return _compute(dy, spec, lambda products: products.gradients(dy, x, weight, kept, needed))
    dx = spec.input_gradient(dy, weight) if needed[0] else None
    dw = spec.weight_gradient(dy, x) if needed[1] else None
    return dx, dw


def _compute(x: Tensor, spec: Spec, call: Callable[[Products[Any]], _Result]) -> _Result:
    return dispatch(MULTIPLIERS[type(spec)], x, spec, lambda products: call(products(spec)))


class _Multiply(Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, spec: Spec) -> Tensor:
        y, saved, kept = _compute(x, spec, lambda products: products.forward(x, weight))
        # Whatever is kept for later goes through autograd, so that checkpointing and save_on_cpu can free and move it.
        ctx.spec, ctx.scheme, ctx.layout = spec, kept and kept.scheme, spec.memory_format(x, weight)
        ctx.save_for_backward(*saved, *((kept.values, kept.amax, kept.scales) if kept is not None else ()))
        return y.contiguous(memory_format=ctx.layout)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *parts = ctx.saved_tensors
        kept = ScaledValues(parts[0], parts[1], parts[2], ctx.scheme) if parts else None
        dx, dw = _gradients(dy, x, weight, kept, ctx.spec, ctx.needs_input_grad[:2])
        return None if dx is None else dx.contiguous(memory_format=ctx.layout), dw, None
