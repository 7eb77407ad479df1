"""The three products of a convolution or transposed convolution in plain torch, without the im2col matrix.

The operands are those of `monai_fp4.quantization.layers.gemm`, with output pixels for tokens and (kernel tap, channel)
for features; what each product does is told in `monai_fp4.quantization.layers.products`. Where a CPU has BF16
instructions, the same products come from `monai_fp4.quantization.layers.cpu_products`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from monai_fp4.quantization.layers.geometry import ConvGeometry, memory_format
from monai_fp4.quantization.layers.layer_products import Products
from monai_fp4.quantization.layers.operands import (
    along_channels,
    as_kernel,
    channels_first,
    kernel_values,
    scale_and_cast,
)
from monai_fp4.quantization.layers.products import correlate, gather, rotated_weight_product, scatter, weight_product
from monai_fp4.quantization.numerics import ScaledValues, decode
from monai_fp4.quantization.recipes import Recipe

__all__ = ["ConvProducts", "ConvSpec", "quantized_operands"]

_T = TypeVar("_T")


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

    def sides(self, x: _T, dy: _T) -> tuple[_T, _T]:
        """What belongs to the larger side of the convolution, the image, and what to its pixels."""
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

    def quantized_input(self, x: Tensor) -> ScaledValues:
        """Pixels along their channels."""
        amax = None if self.spec.transposed else self.spec.geometry.amax_used(x)
        return along_channels(x, self.spec.geometry.groups, self.how.input, amax)

    def quantized_weight(self, weight: Tensor) -> ScaledValues:
        """Each tap along the same axis."""
        return self._kernel(weight, along_first=self.spec.transposed)

    def multiply(self, a: ScaledValues, b: ScaledValues) -> Tensor:
        """To ``[N, A, *out]``."""
        y = self.spec.forward(*self._shaped(a.values, b.values, along_first=self.spec.transposed))
        return self.scale_and_cast(y, a, b)

    def decoded(self, a: ScaledValues, b: ScaledValues) -> tuple[Tensor, Tensor]:
        """In the shapes of input and kernel."""
        return self._shaped(decode(a, self.dtype), decode(b, self.dtype), along_first=self.spec.transposed)

    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """Quantize dy along its channels and the kernel along the same axis, and multiply."""
        geometry, transposed = self.spec.geometry, self.spec.transposed
        a = along_channels(dy, geometry.groups, self.how.gradient, geometry.amax_used(dy) if transposed else None)
        if kept is None or self.recipe.standard_format:  # what the compiled path kept is in pairs
            b, along_first = self._kernel(weight, along_first=not transposed), not transposed
        else:
            b, along_first = kept, transposed
        dx = self.spec.backward(*self._shaped(a.values, b.values, along_first=along_first))
        return self.scale_and_cast(dx, a, b)

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Quantize dy and x along the pixels and multiply; see `products.weight_product`."""
        how = self.spec.sides(self.how.input_columns, self.how.gradient_columns)
        sides, shape = self.spec.sides(x, dy), self.spec.kernel_shape(x, dy)
        return weight_product(*sides, shape, self.spec.geometry, how).to(self.dtype)

    def scale_and_cast(self, accumulated: Tensor, a: ScaledValues, b: ScaledValues) -> Tensor:
        """Scale the FP32 sums of a product by alpha and cast them."""
        return scale_and_cast(accumulated, a, b, self.dtype)

    def _kernel(self, weight: Tensor, *, along_first: bool) -> ScaledValues:
        return kernel_values(weight, self.spec.geometry.groups, self.how.weight, along_first=along_first)

    def _shaped(self, pixels: Tensor, taps: Tensor, *, along_first: bool) -> tuple[Tensor, Tensor]:
        return channels_first(pixels, self.spec.geometry.groups), as_kernel(taps, along_first=along_first)


def quantized_operands(
    x: Tensor, weight: Tensor, geometry: ConvGeometry, recipe: Recipe, *, transposed: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """What the forward product reads: name -> (original, decoded from FP4)."""
    products = ConvProducts(ConvSpec(geometry, recipe, x.dtype, transposed, tuple(x.shape)))
    a, b = products.quantized_input(x), products.quantized_weight(weight)
    kernel = as_kernel(decode(b, weight.dtype), along_first=transposed)
    return {"input": (x, channels_first(decode(a, x.dtype), geometry.groups)), "weight": (weight, kernel)}
