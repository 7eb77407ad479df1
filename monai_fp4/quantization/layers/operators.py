"""The products of the layers as operators of torch: what compilers, exporters, tracers and counters see of a layer.

Eager mode calls the products directly, through one autograd function (`monai_fp4.quantization.layers.gemm`). Whoever
looks on instead records operators and not Python: `torch.compile`, `torch.export`, `torch.jit.trace` and with it
TensorBoard's ``add_graph``, a fake tensor, a FLOP counter, the profiler. For them each product is one operator,

    monai_fp4::linear(x, weight, stream, recipe, dtype)
    monai_fp4::convolution(x, weight, stream, recipe, dtype, stride, padding, dilation, groups, output_padding)
    monai_fp4::attention_product(a, b, stream, recipe)

with a second one for its gradients (``monai_fp4::linear_backward``). When a graph runs, the operators compute what
eager mode computes, by the same kernels and to the same bits. They differ in what they keep for the backward pass:
their operands alone, from which what eager mode keeps beside them is quantized again.

The recipe travels as a text. ``stream`` stands for the layer's `monai_fp4.quantization.layers.history.LayerHistory`:
at each run the operators count there, and draw from there the keys of stochastic rounding, so nothing random is baked
into a graph. A graph that was saved runs wherever this package is imported before it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_fp4.quantization.layers.conv_products import ConvSpec
from monai_fp4.quantization.layers.custom_operator import Gradients, Operator, observed
from monai_fp4.quantization.layers.gemm import gradients, multiply
from monai_fp4.quantization.layers.geometry import ConvGeometry, memory_format
from monai_fp4.quantization.layers.history import LayerHistory
from monai_fp4.quantization.layers.linear_products import LinearSpec
from monai_fp4.quantization.recipes import Recipe

__all__ = ["convolve", "linear"]


def linear(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype, history: LayerHistory) -> Tensor:
    """Multiply ``[T, K]`` with a weight ``[N, K]`` in FP4, to ``[T, N]`` of that dtype."""
    if observed():
        return LINEAR(x, weight, history, recipe, dtype)
    return multiply(x, weight, LinearSpec(recipe, dtype))


def convolve(
    x: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    recipe: Recipe,
    dtype: torch.dtype,
    history: LayerHistory,
    output_padding: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolve in FP4, to the memory format that torch's convolution answers in.

    Args:
        x: ``[N, C, *spatial]``.
        weight: the kernel.
        geometry: of the convolution, or of the one that a transposed convolution is the adjoint of.
        recipe: what is quantized, and how.
        dtype: of the result.
        history: of the layer.
        output_padding: one number for each axis makes it a transposed convolution; None a convolution.

    Returns:
        ``[N, A, *out]``, channels last where input or weight are so.
    """
    if observed():
        sizes = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups, output_padding)
        return CONVOLUTION(x, weight, history, recipe, dtype, *sizes)
    return multiply(x, weight, _conv_spec(x, weight, geometry, recipe, dtype, output_padding))


class Linear(Operator):
    """The operator ``monai_fp4::linear``."""

    def forward(self, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any) -> Tensor:
        return multiply(a, b, LinearSpec(recipe, *arguments))

    def gradients(
        self, dc: Tensor, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any, needed: tuple[bool, bool]
    ) -> Gradients:
        return gradients(dc, a, b, LinearSpec(recipe, *arguments), needed)

    def shape(self, a: Tensor, b: Tensor, *arguments: Any) -> tuple[int, ...]:
        return (a.shape[0], b.shape[0])

    def flops(self, a: Sequence[int], b: Sequence[int], c: Sequence[int], *arguments: Any) -> int:
        return 2 * a[0] * a[1] * b[0]


class Convolution(Operator):
    """The operator ``monai_fp4::convolution``, which a transposed convolution is too."""

    def forward(self, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any) -> Tensor:
        return multiply(a, b, self._spec(a, b, recipe, *arguments))

    def gradients(
        self, dc: Tensor, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any, needed: tuple[bool, bool]
    ) -> Gradients:
        return gradients(dc, a, b, self._spec(a, b, recipe, *arguments), needed)

    def shape(self, a: Tensor, b: Tensor, *arguments: Any) -> tuple[int, ...]:
        _, *sizes, extra = arguments
        geometry = _geometry(b, *sizes)
        if extra is None:
            return (a.shape[0], b.shape[0], *geometry.out_shape(tuple(a.shape[2:])))
        return _image_shape(a, b, geometry, tuple(extra))

    def layout(self, *tensors: Tensor) -> torch.memory_format:
        return memory_format(*tensors)

    def flops(self, a: Sequence[int], b: Sequence[int], c: Sequence[int], *arguments: Any) -> int:
        pixels = c if arguments[-1] is None else a  # each meets every tap and the channels of its group
        return 2 * pixels[0] * torch.Size(pixels[2:]).numel() * torch.Size(b).numel()

    def _spec(self, x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype, *sizes: Any) -> ConvSpec:
        *sides, extra = sizes
        return _conv_spec(x, weight, _geometry(weight, *sides), recipe, dtype, None if extra is None else tuple(extra))


def _geometry(
    weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> ConvGeometry:
    return ConvGeometry(tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups)


def _image_shape(x: Tensor, weight: Tensor, geometry: ConvGeometry, extra: tuple[int, ...]) -> tuple[int, ...]:
    return (x.shape[0], weight.shape[1] * geometry.groups, *geometry.image_size(tuple(x.shape[2:]), extra))


def _conv_spec(
    x: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    recipe: Recipe,
    dtype: torch.dtype,
    output_padding: tuple[int, ...] | None,
) -> ConvSpec:
    transposed = output_padding is not None
    shape = tuple(x.shape) if output_padding is None else _image_shape(x, weight, geometry, output_padding)
    return ConvSpec(geometry, recipe, dtype, transposed, shape)


LINEAR = Linear("linear", ", ScalarType dtype")
CONVOLUTION = Convolution(
    "convolution",
    ", ScalarType dtype, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, SymInt[]? output_padding",
)
