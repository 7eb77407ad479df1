"""The autograd function of convolutions and transposed convolutions: three GEMMs over the im2col matrix.

The operands are those of `monai_fp4.quantization.layers.gemm`, with output pixels for tokens and (kernel tap, channel)
for features; what each product does is told in `monai_fp4.quantization.layers.products`. Where a CPU has BF16
instructions, the same products come from `monai_fp4.quantization.layers.cpu_conv`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from monai_fp4.quantization.kernels import cpu_gemm
from monai_fp4.quantization.layers import cpu_conv, cpu_conv_gradient
from monai_fp4.quantization.layers.cpu_operands import round_trip, swap_pairs
from monai_fp4.quantization.layers.geometry import ConvGeometry
from monai_fp4.quantization.layers.operands import (
    along_channels,
    as_kernel,
    channels_first,
    kernel_values,
    scale_and_cast,
    without_autocast,
)
from monai_fp4.quantization.layers.products import correlate, gather, scatter, weight_product
from monai_fp4.quantization.numerics import ScaledValues, decode
from monai_fp4.quantization.recipes import Backward, Operand, Recipe

__all__ = ["ConvFunction", "Convolution", "input_gradient", "quantize_kernel", "quantize_operands"]


def quantize_operands(
    x: Tensor, weight: Tensor, geometry: ConvGeometry, recipe: Recipe, *, transposed: bool
) -> tuple[ScaledValues, ScaledValues]:
    """Quantize the two operands of fprop; `channels_first` and `as_kernel` bring their values back into shape."""
    amax = None if transposed else geometry.amax_used(x)
    a = along_channels(x, geometry.groups, amax=amax, scheme=recipe.scheme_of(Operand.INPUT))
    return a, quantize_kernel(weight, geometry, recipe, along_first=transposed)


def quantize_kernel(weight: Tensor, geometry: ConvGeometry, recipe: Recipe, *, along_first: bool) -> ScaledValues:
    """Quantize the kernel as the recipe says; see `kernel_values`."""
    scheme = recipe.scheme_of(Operand.WEIGHT)
    return kernel_values(weight, geometry.groups, two_d=recipe.two_d_weights, along_first=along_first, scheme=scheme)


@dataclass(frozen=True)
class Convolution:
    """Arguments of a convolution's products, beside their operands.

    Attributes:
        geometry: of the convolution, or of the one that a transposed convolution is the adjoint of.
        recipe: what is quantized, and how.
        dtype: of the results.
        transposed: whether the layer is the adjoint.
        image_shape: ``[N, B, *spatial]`` of the larger side: the input, or the output of a transposed convolution.
    """

    geometry: ConvGeometry
    recipe: Recipe
    dtype: torch.dtype
    transposed: bool
    image_shape: tuple[int, ...]

    def on_cpu(self, x: Tensor) -> bool:
        """Whether the compiled CPU products take it."""
        return self.geometry.groups == 1 and self.recipe.standard_format and cpu_gemm.usable(x)


class ConvFunction(Function):
    """Convolve ``x``, or apply the adjoint of a convolution to it; results have the dtype of the convolution."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: Convolution) -> Tensor:
        """Quantize pixels along their channels and the kernel along the same axis, and multiply."""
        geometry, recipe, dtype, transposed = conv.geometry, conv.recipe, conv.dtype, conv.transposed
        ctx.conv, ctx.kept = conv, None
        if conv.on_cpu(x):
            kernel = cpu_conv.pair_kernel(weight, two_d=recipe.two_d_weights, along_first=transposed)
            if recipe.backward is Backward.DEQUANTIZED:
                ctx.save_for_backward(*_round_trip(x, weight, conv))
            else:
                ctx.save_for_backward(x, weight)
            if recipe.two_d_weights:
                ctx.kept = kernel  # its 16 x 16 blocks are those of dgrad too
            if transposed:
                return cpu_conv.scatter(x, kernel, conv.image_shape, geometry, dtype)
            return cpu_conv.gather(x, kernel, geometry, dtype)
        a, b = quantize_operands(x, weight, geometry, recipe, transposed=transposed)
        if recipe.two_d_weights and not recipe.standard_format:
            ctx.kept = b  # in the standard format dgrad finds the same blocks again, and nothing need be kept
        if recipe.backward is Backward.DEQUANTIZED:
            ctx.save_for_backward(
                channels_first(decode(a, dtype), geometry.groups),
                as_kernel(decode(b, dtype), along_first=transposed),
            )
        else:
            ctx.save_for_backward(x, weight)
        values = channels_first(a.values, geometry.groups)
        taps = as_kernel(b.values, along_first=transposed)
        product = scatter(values, taps, conv.image_shape, geometry) if transposed else gather(values, taps, geometry)
        return scale_and_cast(product, a, b, dtype)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weight."""
        x, weight = ctx.saved_tensors
        dx = input_gradient(dy, weight, ctx.conv, ctx.kept) if ctx.needs_input_grad[0] else None
        dw = _weight_gradient(dy, x, tuple(weight.shape), ctx.conv) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def input_gradient(dy: Tensor, weight: Tensor, conv: Convolution, kept: ScaledValues | None = None) -> Tensor:
    """Multiply the gradient of the output with the kernel, to the gradient of the input.

    Args:
        dy: gradient of the output.
        weight: the kernel; where the recipe's backward is `Backward.DEQUANTIZED`, the decoded one.
        conv: of the layer.
        kept: the quantized kernel along the forward axis, where its blocks span two axes: as pairs on a CPU, in plain
            torch as `quantize_operands` gave it.
    """
    geometry, recipe, transposed = conv.geometry, conv.recipe, conv.transposed
    if recipe.backward is not Backward.FP4:
        weight = weight.to(conv.dtype)
        return gather(dy, weight, geometry) if transposed else scatter(dy, weight, conv.image_shape, geometry)
    stochastic = recipe.stochastic_rounding
    if conv.on_cpu(dy):
        if kept is not None:
            pairs = swap_pairs(kept, weight.shape[0 if transposed else 1])
        else:
            pairs = cpu_conv.pair_kernel(weight, two_d=recipe.two_d_weights, along_first=not transposed)
        if transposed:
            return cpu_conv.gather(dy, pairs, geometry, conv.dtype, stochastic=stochastic)
        return cpu_conv.scatter(dy, pairs, conv.image_shape, geometry, conv.dtype, stochastic=stochastic)
    amax = geometry.amax_used(dy) if transposed else None
    scheme = recipe.scheme_of(Operand.GRADIENT)
    a = along_channels(dy, geometry.groups, stochastic=stochastic, amax=amax, scheme=scheme)
    if kept is None or recipe.standard_format:
        b, along_first = quantize_kernel(weight, geometry, recipe, along_first=not transposed), not transposed
    else:  # plain torch keeps it in other formats only
        b, along_first = kept, transposed
    values = channels_first(a.values, geometry.groups)
    kernel = as_kernel(b.values, along_first=along_first)
    product = gather(values, kernel, geometry) if transposed else scatter(values, kernel, conv.image_shape, geometry)
    return scale_and_cast(product, a, b, conv.dtype)


def _weight_gradient(dy: Tensor, x: Tensor, kernel_shape: tuple[int, ...], conv: Convolution) -> Tensor:
    recipe, transposed = conv.recipe, conv.transposed
    if recipe.backward is not Backward.FP4:
        x = x.to(conv.dtype)
    image, pixels = (dy, x) if transposed else (x, dy)
    if recipe.backward is not Backward.FP4:
        return correlate(image, pixels, kernel_shape, conv.geometry)
    options = {
        "rht": recipe.hadamard,
        "image_stochastic": recipe.stochastic_rounding and transposed,
        "pixels_stochastic": recipe.stochastic_rounding and not transposed,
    }
    schemes = recipe.scheme_of(Operand.INPUT), recipe.scheme_of(Operand.GRADIENT)
    image_scheme, pixels_scheme = reversed(schemes) if transposed else schemes
    if conv.on_cpu(dy):
        return cpu_conv_gradient.weight_product(image, pixels, kernel_shape, conv.geometry, conv.dtype, **options)
    product = weight_product(
        image, pixels, kernel_shape, conv.geometry, image_scheme=image_scheme, pixels_scheme=pixels_scheme, **options
    )
    return product.to(conv.dtype)


def _round_trip(x: Tensor, weight: Tensor, conv: Convolution) -> tuple[Tensor, Tensor]:
    """Decode what fprop saw of its operands: the operands of ``chain_rule``'s backward."""
    dtype, transposed = conv.dtype, conv.transposed
    pixels = round_trip(x.movedim(1, -1), dtype, amax=None if transposed else conv.geometry.amax_used(x))
    taps = weight.flatten(2).movedim(-1, 0)
    decoded = round_trip(taps.mT if transposed else taps, dtype, two_d=conv.recipe.two_d_weights)
    kernel = (decoded.mT if transposed else decoded).movedim(0, -1).reshape(weight.shape)
    return pixels.movedim(-1, 1), kernel
