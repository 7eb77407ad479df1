"""A product and its gradients as a pair of operators of torch: schemas, fake results, autograd, what runs them.

Which operators there are, and why, is told in `monai_fp4.quantization.layers.operators`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from monai_fp4.quantization.formats.philox import keys_from
from monai_fp4.quantization.layers import flops
from monai_fp4.quantization.layers.guards import autocast_off, check_backward, check_not_onnx, refuse_transforms
from monai_fp4.quantization.layers.history import LayerHistory, history_of_stream
from monai_fp4.quantization.layers.separate import separated
from monai_fp4.quantization.recipes import Recipe

__all__ = ["Gradients", "Operator", "observed"]

Gradients = tuple[Tensor | None, Tensor | None]
"""Gradients of the two operands of a product; None where one needs none."""

_LIBRARY = torch.library.Library("monai_fp4", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)  # a captured graph would repeat its random keys


def observed() -> bool:
    """Whether somebody looks on who records or counts operators: a compiler, a tracer, a mode, the profiler."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    counted = is_in_torch_dispatch_mode() or torch.autograd.profiler._is_profiler_enabled
    return counted and not separated()  # whose gradients the operators do not know


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
        for each in (name, f"{name}_backward"):
            torch.library.register_vmap(f"monai_fp4::{each}", _refuse_vmap, lib=_LIBRARY)
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
            c = self.forward(a, b, _recipe_of(text), *arguments)
        return c.clone() if c._is_view() else c  # torch's conv1d gives one, which autograd lets nobody change in place

    def _backward(
        self, dc: Tensor, a: Tensor, b: Tensor, stream: Tensor | None, text: str, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        history = history_of_stream(stream)
        if history is not None:
            history.record_gradients()
        *own, needed = arguments
        with torch.no_grad(), autocast_off(a), keys_from(None if history is None else history.next_key):
            found = self.gradients(dc, a, b, _recipe_of(text), *own, needed=tuple(needed))
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


def _refuse_vmap(*arguments: object) -> NoReturn:
    refuse_transforms()


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.arguments = inputs[3:]


@lru_cache(maxsize=64)
def _recipe_of(text: str) -> Recipe:
    """The recipe of a `Recipe.text`."""
    return Recipe.from_config(json.loads(text))
