"""The autograd function of convolutions and transposed convolutions: three GEMMs over the im2col matrix.

The operands are those of `monai_fp4.layers.gemm`, with output pixels for tokens and (kernel tap, channel) for features;
what each product does is told in `monai_fp4.layers.products`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from monai_fp4.layers.geometry import ConvGeometry
from monai_fp4.layers.operands import along_channels, as_kernel, channels_first, finish, kernel_values, without_autocast
from monai_fp4.layers.products import correlate, gather, scatter, weight_product
from monai_fp4.numerics import ScaledValues, decode
from monai_fp4.recipes import Backward, Recipe

__all__ = ["ConvFunction", "quantize_operands"]


def quantize_operands(
    x: Tensor, weight: Tensor, geometry: ConvGeometry, recipe: Recipe, *, transposed: bool
) -> tuple[ScaledValues, ScaledValues]:
    """Quantize the two operands of fprop; `channels_first` and `as_kernel` bring their values back into shape."""
    if transposed:
        a = along_channels(x, geometry.groups)
    else:
        a = along_channels(x, geometry.groups, amax=geometry.amax_used(x))
    return a, kernel_values(weight, geometry.groups, two_d=recipe.two_d_weights, along_first=transposed)


class ConvFunction(Function):
    """Convolve ``x``, or apply the adjoint of a convolution to it (``transposed``); results have ``dtype``."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        geometry: ConvGeometry,
        recipe: Recipe,
        dtype: torch.dtype,
        transposed: bool,
        image_shape: tuple[int, ...],
    ) -> Tensor:
        """Quantize pixels along their channels and the kernel along the same axis, and multiply."""
        a, b = quantize_operands(x, weight, geometry, recipe, transposed=transposed)
        ctx.geometry, ctx.recipe, ctx.transposed, ctx.image_shape = geometry, recipe, transposed, image_shape
        ctx.dtype = dtype
        if recipe.backward is Backward.DEQUANTIZED:
            ctx.save_for_backward(
                channels_first(decode(a, dtype), geometry.groups),
                as_kernel(decode(b, dtype), along_first=transposed),
            )
        else:
            ctx.save_for_backward(x, weight)
        values = channels_first(a.values, geometry.groups)
        kernel = as_kernel(b.values, along_first=transposed)
        product = scatter(values, kernel, image_shape, geometry) if transposed else gather(values, kernel, geometry)
        return finish(product, a, b, dtype)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weight."""
        x, weight = ctx.saved_tensors
        dx = _input_gradient(ctx, dy, weight) if ctx.needs_input_grad[0] else None
        dw = _weight_gradient(ctx, dy, x, tuple(weight.shape)) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None, None, None, None


def _input_gradient(ctx: Any, dy: Tensor, weight: Tensor) -> Tensor:
    geometry: ConvGeometry = ctx.geometry
    recipe: Recipe = ctx.recipe
    if recipe.backward is not Backward.FP4:
        weight = weight.to(ctx.dtype)
        return gather(dy, weight, geometry) if ctx.transposed else scatter(dy, weight, ctx.image_shape, geometry)
    amax = geometry.amax_used(dy) if ctx.transposed else None
    a = along_channels(dy, geometry.groups, stochastic=recipe.stochastic_rounding, amax=amax)
    b = kernel_values(weight, geometry.groups, two_d=recipe.two_d_weights, along_first=not ctx.transposed)
    values = channels_first(a.values, geometry.groups)
    kernel = as_kernel(b.values, along_first=not ctx.transposed)
    if ctx.transposed:
        return finish(gather(values, kernel, geometry), a, b, ctx.dtype)
    return finish(scatter(values, kernel, ctx.image_shape, geometry), a, b, ctx.dtype)


def _weight_gradient(ctx: Any, dy: Tensor, x: Tensor, kernel_shape: tuple[int, ...]) -> Tensor:
    recipe: Recipe = ctx.recipe
    if recipe.backward is not Backward.FP4:
        x = x.to(ctx.dtype)
    image, pixels = (dy, x) if ctx.transposed else (x, dy)
    if recipe.backward is not Backward.FP4:
        return correlate(image, pixels, kernel_shape, ctx.geometry)
    gradient: Tensor = weight_product(
        image,
        pixels,
        kernel_shape,
        ctx.geometry,
        rht=recipe.hadamard,
        image_stochastic=recipe.stochastic_rounding and ctx.transposed,
        pixels_stochastic=recipe.stochastic_rounding and not ctx.transposed,
    )
    return gradient.to(ctx.dtype)
