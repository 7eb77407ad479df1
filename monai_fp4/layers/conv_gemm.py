"""The autograd function of convolutions and transposed convolutions: three GEMMs over the im2col matrix.

The operands are those of `monai_fp4.layers.gemm`, with output pixels for tokens and (kernel tap, channel) for features;
what each product does is told in `monai_fp4.layers.products`. Where a CPU has BF16 instructions, the same products come
from `monai_fp4.layers.cpu_conv`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from monai_fp4.kernels import cpu_gemm
from monai_fp4.layers import cpu_conv, cpu_conv_gradient
from monai_fp4.layers.cpu_operands import round_trip, swap_pairs
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
        ctx.geometry, ctx.recipe, ctx.transposed, ctx.image_shape = geometry, recipe, transposed, image_shape
        ctx.dtype, ctx.kernel = dtype, None
        if cpu_gemm.usable(x) and geometry.groups == 1:
            kernel = cpu_conv.pair_kernel(weight, two_d=recipe.two_d_weights, along_first=transposed)
            if recipe.backward is Backward.DEQUANTIZED:
                ctx.save_for_backward(*_round_trip(x, weight, geometry, recipe, dtype, transposed=transposed))
            else:
                ctx.save_for_backward(x, weight)
            if recipe.two_d_weights:
                ctx.kernel = kernel  # its 16 x 16 blocks are those of dgrad too
            if transposed:
                return cpu_conv.scatter(x, kernel, image_shape, geometry, dtype)
            return cpu_conv.gather(x, kernel, geometry, dtype)
        a, b = quantize_operands(x, weight, geometry, recipe, transposed=transposed)
        if recipe.backward is Backward.DEQUANTIZED:
            ctx.save_for_backward(
                channels_first(decode(a, dtype), geometry.groups),
                as_kernel(decode(b, dtype), along_first=transposed),
            )
        else:
            ctx.save_for_backward(x, weight)
        values = channels_first(a.values, geometry.groups)
        taps = as_kernel(b.values, along_first=transposed)
        product = scatter(values, taps, image_shape, geometry) if transposed else gather(values, taps, geometry)
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
    stochastic = recipe.stochastic_rounding
    if cpu_gemm.usable(dy) and geometry.groups == 1:
        if ctx.kernel is not None:
            pairs = swap_pairs(ctx.kernel, weight.shape[0 if ctx.transposed else 1])
        else:
            pairs = cpu_conv.pair_kernel(weight, two_d=recipe.two_d_weights, along_first=not ctx.transposed)
        if ctx.transposed:
            return cpu_conv.gather(dy, pairs, geometry, ctx.dtype, stochastic=stochastic)
        return cpu_conv.scatter(dy, pairs, ctx.image_shape, geometry, ctx.dtype, stochastic=stochastic)
    amax = geometry.amax_used(dy) if ctx.transposed else None
    a = along_channels(dy, geometry.groups, stochastic=stochastic, amax=amax)
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
    options = {
        "rht": recipe.hadamard,
        "image_stochastic": recipe.stochastic_rounding and ctx.transposed,
        "pixels_stochastic": recipe.stochastic_rounding and not ctx.transposed,
    }
    if cpu_gemm.usable(dy) and ctx.geometry.groups == 1:
        return cpu_conv_gradient.weight_product(image, pixels, kernel_shape, ctx.geometry, ctx.dtype, **options)
    return weight_product(image, pixels, kernel_shape, ctx.geometry, **options).to(ctx.dtype)


def _round_trip(
    x: Tensor, weight: Tensor, geometry: ConvGeometry, recipe: Recipe, dtype: torch.dtype, *, transposed: bool
) -> tuple[Tensor, Tensor]:
    """Decode what fprop saw of its operands: the operands of ``chain_rule``'s backward."""
    amax = None if transposed else geometry.amax_used(x)
    pixels = round_trip(x.movedim(1, -1), dtype, amax=amax)
    taps = weight.flatten(2).movedim(-1, 0)
    decoded = round_trip(taps.mT if transposed else taps, dtype, two_d=recipe.two_d_weights)
    kernel = (decoded.mT if transposed else decoded).movedim(0, -1).reshape(weight.shape)
    return pixels.movedim(-1, 1), kernel
