"""The three products of a convolution or transposed convolution in plain torch, without the im2col matrix.

The operands are those of `monai_fp4.quantization.layers.gemm`, with output pixels for tokens and (kernel tap, channel)
for features; what each product does is told in `monai_fp4.quantization.layers.products`. Where a CPU has BF16
instructions, the same products come from `monai_fp4.quantization.layers.cpu_products`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_fp4.quantization.layers.geometry import ConvGeometry, memory_format
from monai_fp4.quantization.layers.layer_products import Forward, Products
from monai_fp4.quantization.layers.operands import (
    along_channels,
    as_kernel,
    channels_first,
    kernel_values,
    scale_and_cast,
)
from monai_fp4.quantization.layers.products import correlate, gather, rotated_weight_product, scatter, weight_product
from monai_fp4.quantization.numerics import ScaledValues, decode
from monai_fp4.quantization.recipes import Operand, Recipe

__all__ = ["ConvProducts", "ConvSpec", "quantize_kernel", "quantize_operands"]


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
class ConvSpec:
    """Arguments of a convolution's products beside their operands.

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

    def memory_format(self, x: Tensor, weight: Tensor) -> torch.memory_format:
        """Channels last where either operand is."""
        return memory_format(x, weight)

    def read(self, x: Tensor) -> Tensor:
        """The pixels of the input that some tap reads."""
        return x if self.transposed else self.geometry.pixels_used(x)

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve, or apply the adjoint, to what is given: high-precision numbers or the values of FP4 ones."""
        if self.transposed:
            return scatter(x, kernel, self.image_shape, self.geometry)
        return gather(x, kernel, self.geometry)

    def backward(self, dy: Tensor, kernel: Tensor) -> Tensor:
        """Apply the adjoint of `forward`."""
        if self.transposed:
            return gather(dy, kernel, self.geometry)
        return scatter(dy, kernel, self.image_shape, self.geometry)

    def input_gradient(self, dy: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the input in high precision."""
        return self.backward(dy, weight.to(self.dtype))

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient of the kernel in high precision, of rotated operands where the recipe says so."""
        x = x.to(self.dtype)
        image, pixels = self.sides(x, dy)
        if self.recipe.hadamard:
            return rotated_weight_product(image, pixels, self.kernel_shape(x, dy), self.geometry)
        return correlate(image, pixels, self.kernel_shape(x, dy), self.geometry)

    def sides(self, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the two is the larger side of the convolution, the image, and which its pixels."""
        return (dy, x) if self.transposed else (x, dy)

    def kernel_shape(self, x: Tensor, dy: Tensor) -> tuple[int, ...]:
        """``[A, B / groups, *k]`` of the kernel between an input and an output."""
        image, pixels = self.sides(x, dy)
        return (pixels.shape[1], image.shape[1] // self.geometry.groups, *self.geometry.kernel)


class ConvProducts(Products[ConvSpec]):
    """The products of plain torch: its own convolutions, of ``code * block_scale``."""

    @classmethod
    def takes(cls, x: Tensor, spec: ConvSpec, /) -> bool:
        """Every tensor on every device, in every format."""
        return True

    def forward(self, x: Tensor, weight: Tensor) -> Forward:
        """Quantize pixels along their channels and the kernel along the same axis, and multiply."""
        transposed, groups = self.spec.transposed, self.spec.geometry.groups
        a, b = quantize_operands(x, weight, self.spec.geometry, self.recipe, transposed=transposed)
        saved = self._decoded(a, b) if self.decodes else (x, weight)
        y = self.spec.forward(channels_first(a.values, groups), as_kernel(b.values, along_first=transposed))
        return Forward(self.scale_and_cast(y, a, b), saved, b if self.keeps else None)

    def remembered(self, x: Tensor, weight: Tensor) -> tuple[tuple[Tensor, Tensor], ScaledValues | None]:
        """See `Products.remembered`."""
        if not (self.decodes or self.keeps):
            return (x, weight), None
        a, b = quantize_operands(x, weight, self.spec.geometry, self.recipe, transposed=self.spec.transposed)
        return self._decoded(a, b) if self.decodes else (x, weight), b if self.keeps else None

    def _decoded(self, a: ScaledValues, b: ScaledValues) -> tuple[Tensor, Tensor]:
        kernel = as_kernel(decode(b, self.dtype), along_first=self.spec.transposed)
        return channels_first(decode(a, self.dtype), self.spec.geometry.groups), kernel

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """Quantize dy along its channels and the kernel along the same axis, and multiply."""
        geometry, recipe, transposed = self.spec.geometry, self.recipe, self.spec.transposed
        amax = geometry.amax_used(dy) if transposed else None
        scheme = recipe.scheme_of(Operand.GRADIENT)
        a = along_channels(dy, geometry.groups, stochastic=recipe.stochastic_rounding, amax=amax, scheme=scheme)
        if kept is None or recipe.standard_format:  # what the compiled path kept is in pairs
            b, along_first = quantize_kernel(weight, geometry, recipe, along_first=not transposed), not transposed
        else:
            b, along_first = kept, transposed
        values, kernel = channels_first(a.values, geometry.groups), as_kernel(b.values, along_first=along_first)
        return self.scale_and_cast(self.spec.backward(values, kernel), a, b)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Quantize dy and x along the pixels and multiply; see `products.weight_product`."""
        stochastic, transposed = self.recipe.stochastic_rounding, self.spec.transposed
        x_scheme, dy_scheme = self.recipe.scheme_of(Operand.INPUT), self.recipe.scheme_of(Operand.GRADIENT)
        image, pixels = self.spec.sides(x, dy)
        return weight_product(
            image,
            pixels,
            self.spec.kernel_shape(x, dy),
            self.spec.geometry,
            rht=self.recipe.hadamard,
            image_stochastic=stochastic and transposed,
            pixels_stochastic=stochastic and not transposed,
            image_scheme=dy_scheme if transposed else x_scheme,
            pixels_scheme=x_scheme if transposed else dy_scheme,
        ).to(self.dtype)

    def scale_and_cast(self, accumulated: Tensor, a: ScaledValues, b: ScaledValues) -> Tensor:
        """Scale the FP32 sums of a product by alpha and cast them."""
        return scale_and_cast(accumulated, a, b, self.dtype)
