"""The products of the layers, and the operators of torch that a tracer records in their place.

`torch.jit.trace`, and with it TensorBoard's ``add_graph``, records operators and not Python: an autograd function would
become a node that cannot be saved, and kernels would read memory that a tracer only describes. While a tracer records,
`linear` and `convolve` therefore call ``monai_fp4::linear`` and ``monai_fp4::convolution``, which compute the same with
the same gradients. A traced network that was saved runs wherever this package is imported before it is loaded.
"""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from monai_fp4.quantization.layers.conv_products import ConvSpec
from monai_fp4.quantization.layers.gemm import multiply
from monai_fp4.quantization.layers.geometry import ConvGeometry
from monai_fp4.quantization.layers.linear_products import LinearSpec
from monai_fp4.quantization.recipes import Recipe

__all__ = ["LIBRARY", "convolve", "linear", "recipe_of", "text_of"]

LIBRARY = torch.library.Library("monai_fp4", "DEF")
"""Where the operators are defined."""


def linear(x: Tensor, weight: Tensor, recipe: Recipe, dtype: torch.dtype) -> Tensor:
    """Multiply ``[T, K]`` with a weight ``[N, K]`` in FP4, to ``[T, N]`` of that dtype."""
    if torch.jit.is_tracing():
        recorded: Tensor = torch.ops.monai_fp4.linear(x, weight, text_of(recipe), dtype)
        return recorded
    return multiply(x, weight, LinearSpec(recipe, dtype))


def convolve(
    x: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    recipe: Recipe,
    dtype: torch.dtype,
    output_padding: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolve in FP4, to the memory format that torch's convolution answers in.

    Args:
        x: ``[N, C, *spatial]``.
        weight: the kernel.
        geometry: of the convolution, or of the one that a transposed convolution is the adjoint of.
        recipe: what is quantized, and how.
        dtype: of the result.
        output_padding: one number for each axis makes it a transposed convolution; None a convolution.

    Returns:
        ``[N, A, *out]``, channels last where input or weight are so.
    """
    if torch.jit.is_tracing():
        sizes = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups, output_padding)
        recorded: Tensor = torch.ops.monai_fp4.convolution(x, weight, *sizes, text_of(recipe), dtype)
        return recorded
    shape = tuple(x.shape)
    if output_padding is not None:
        shape = (shape[0], weight.shape[1] * geometry.groups, *geometry.image_size(shape[2:], output_padding))
    y = multiply(x, weight, ConvSpec(geometry, recipe, dtype, output_padding is not None, shape))
    last = _memory_format(x)
    return y.contiguous(memory_format=last if last is not torch.contiguous_format else _memory_format(weight))


def _memory_format(x: Tensor) -> torch.memory_format:
    """What torch's convolutions take a tensor's memory format for."""
    if x.ndim not in (4, 5) or x.is_contiguous():
        return torch.contiguous_format
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return last if x.is_contiguous(memory_format=last) else suggest_memory_format(x)


def text_of(recipe: Recipe) -> str:
    """A recipe as an operator's argument."""
    return json.dumps(recipe.to_config())


@lru_cache(maxsize=64)
def recipe_of(text: str) -> Recipe:
    """The recipe of such a text."""
    return Recipe.from_config(json.loads(text))


def _convolution(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    output_padding: list[int] | None,
    recipe: str,
    dtype: torch.dtype,
) -> Tensor:
    geometry = ConvGeometry(tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups)
    extra = None if output_padding is None else tuple(output_padding)
    return convolve(x, weight, geometry, recipe_of(recipe), dtype, extra)


LIBRARY.define("linear(Tensor x, Tensor weight, str recipe, ScalarType dtype) -> Tensor")
LIBRARY.define(
    "convolution(Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups,"
    " int[]? output_padding, str recipe, ScalarType dtype) -> Tensor"
)
LIBRARY.impl("linear", lambda x, w, text, dtype: linear(x, w, recipe_of(text), dtype), "CompositeImplicitAutograd")
LIBRARY.impl("convolution", _convolution, "CompositeImplicitAutograd")
