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

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from monai_fp4.quantization.formats.philox import keys_from
from monai_fp4.quantization.layers import flops
from monai_fp4.quantization.layers.conv_products import ConvSpec
from monai_fp4.quantization.layers.gemm import gradients, multiply
from monai_fp4.quantization.layers.geometry import ConvGeometry, memory_format
from monai_fp4.quantization.layers.history import LayerHistory, history_of_stream
from monai_fp4.quantization.layers.linear_products import LinearSpec
from monai_fp4.quantization.layers.operands import autocast_off, check_backward, check_not_onnx
from monai_fp4.quantization.recipes import Recipe

__all__ = ["Gradients", "Operator", "convolve", "linear", "observed", "recipe_of"]

Gradients = tuple[Tensor | None, Tensor | None]

_LIBRARY = torch.library.Library("monai_fp4", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)  # a captured graph would repeat its random keys


def observed() -> bool:
    """Whether somebody looks on who records or counts operators: a compiler, a tracer, a mode, the profiler."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_in_torch_dispatch_mode()
        or torch.autograd.profiler._is_profiler_enabled
    )


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


class Operator(ABC):
    """A product ``c`` of two tensors ``a`` and ``b``, and its gradients, as operators of torch.

    Args:
        name: of the operator, in the namespace ``monai_fp4``.
        arguments: what follows the recipe, in the language of torch's schemas.
    """

    operands: ClassVar[tuple[str, str]] = ("x", "weight")

    def __init__(self, name: str, arguments: str = "") -> None:
        a, b = self.operands
        inputs = f"Tensor {a}, Tensor {b}, Tensor? stream, str recipe{arguments}"
        _LIBRARY.define(f"{name}({inputs}) -> Tensor", tags=_TAGS)
        _LIBRARY.define(f"{name}_backward(Tensor gradient, {inputs}, bool[2] needed) -> (Tensor, Tensor)", tags=_TAGS)
        _LIBRARY.impl(name, self._forward, "CompositeExplicitAutograd")
        _LIBRARY.impl(f"{name}_backward", self._backward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"monai_fp4::{name}", self._fake, lib=_LIBRARY)
        torch.library.register_fake(f"monai_fp4::{name}_backward", self._fake_backward, lib=_LIBRARY)
        torch.library.register_autograd(
            f"monai_fp4::{name}", self._differentiate, setup_context=_save_operands, lib=_LIBRARY
        )
        self._call = getattr(torch.ops.monai_fp4, name)
        self._call_backward = getattr(torch.ops.monai_fp4, f"{name}_backward")
        flops.define(self._call, self._call_backward, self.flops)

    def __call__(self, a: Tensor, b: Tensor, history: LayerHistory | None, recipe: Recipe, *arguments: Any) -> Tensor:
        """Record the product, or compute it."""
        stream = None if history is None else history.stream
        if not torch.compiler.is_compiling():
            flops.register()
            if stream is not None and isinstance(a, FakeTensor) and not a.fake_mode.allow_non_fake_inputs:
                stream = a.fake_mode.from_tensor(stream)
        c: Tensor = self._call(a, b, stream, recipe.text, *arguments)
        return c

    @abstractmethod
    def forward(self, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any) -> Tensor:
        """Compute the product."""

    @abstractmethod
    def gradients(
        self, dc: Tensor, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any, needed: tuple[bool, bool]
    ) -> Gradients:
        """Compute the gradients of a and b from that of the product, or None for one that is not needed."""

    @abstractmethod
    def shape(self, a: Tensor, b: Tensor, *arguments: Any) -> tuple[int, ...]:
        """The shape of the product."""

    def dtype(self, a: Tensor, *arguments: Any) -> torch.dtype:
        """The dtype of the product and of both gradients: the first of the arguments, or that of a."""
        return arguments[0] if arguments else a.dtype

    def layout(self, *tensors: Tensor) -> torch.memory_format:
        """The memory format of what is computed from these tensors, or for the one of them."""
        return torch.contiguous_format

    @abstractmethod
    def flops(self, a: Sequence[int], b: Sequence[int], c: Sequence[int], *arguments: Any) -> int:
        """The floating-point operations of the product, and of each gradient, by the shapes of the tensors."""

    def _forward(self, a: Tensor, b: Tensor, stream: Tensor | None, text: str, *arguments: Any) -> Tensor:
        history = history_of_stream(stream)
        if history is not None:
            history.record()
        with torch.no_grad(), autocast_off(a):
            return self.forward(a, b, recipe_of(text), *arguments)

    def _backward(
        self, dc: Tensor, a: Tensor, b: Tensor, stream: Tensor | None, text: str, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        history = history_of_stream(stream)
        if history is not None:
            history.record_gradients()
        *own, needed = arguments
        with torch.no_grad(), autocast_off(a), keys_from(None if history is None else history.next_key):
            found = self.gradients(dc, a, b, recipe_of(text), *own, needed=tuple(needed))
        da, db = (
            a.new_empty(0) if gradient is None else gradient.contiguous(memory_format=self.layout(*operands))
            for gradient, operands in zip(found, ((a, b), (b, a)), strict=True)
        )
        return da, db

    def _fake(self, a: Tensor, b: Tensor, stream: Tensor | None, text: str, *arguments: Any) -> Tensor:
        check_not_onnx()
        flops.register()
        c = a.new_empty(self.shape(a, b, *arguments), dtype=self.dtype(a, *arguments))
        return c.contiguous(memory_format=self.layout(a, b))

    def _fake_backward(
        self, dc: Tensor, a: Tensor, b: Tensor, stream: Tensor | None, text: str, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        *own, needed = arguments
        dtype = self.dtype(a, *own)
        da, db = (
            x.new_empty(x.shape, dtype=dtype).contiguous(memory_format=self.layout(x, y)) if wanted else a.new_empty(0)
            for wanted, x, y in zip(needed, (a, b), (b, a), strict=True)
        )
        return da, db

    def _differentiate(self, ctx: Any, dc: Tensor) -> tuple[Tensor | None, ...]:
        check_backward(dc)
        a, b, stream = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        found = self._call_backward(dc, a, b, stream, *ctx.arguments, needed)
        gradients = (each if wanted else None for each, wanted in zip(found, needed, strict=True))
        return *gradients, None, *(None for _ in ctx.arguments)


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.arguments = inputs[3:]


@lru_cache(maxsize=64)
def recipe_of(text: str) -> Recipe:
    """The recipe of a `Recipe.text`."""
    return Recipe.from_config(json.loads(text))


class _Linear(Operator):
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


class _Convolution(Operator):
    def forward(self, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any) -> Tensor:
        return multiply(a, b, self._spec(a, b, recipe, *arguments))

    def gradients(
        self, dc: Tensor, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any, needed: tuple[bool, bool]
    ) -> Gradients:
        return gradients(dc, a, b, self._spec(a, b, recipe, *arguments), needed)

    def shape(self, a: Tensor, b: Tensor, *arguments: Any) -> tuple[int, ...]:
        dtype, *sizes, extra = arguments
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
        return _conv_spec(
            x, weight, _geometry(weight, *sides), recipe, dtype, None if extra is None else tuple(extra)
        )


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



LINEAR = _Linear("linear", ", ScalarType dtype")
CONVOLUTION = _Convolution(
    "convolution",
    ", ScalarType dtype, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, SymInt[]? output_padding",
)
