"""Interface of the products of a layer, which every implementation shares.

A layer multiplies three times: its input with its weight forward, and the gradient of its output with each of them
backward. What it asks for is told by a **spec** (`monai_fp4.quantization.layers.linear_products.LinearSpec` or
`monai_fp4.quantization.layers.conv_products.ConvSpec`), and `Products` of that spec quantize the operands and multiply
them: in plain torch, or faster in a subclass, which has to give the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from monai_fp4.quantization.numerics import ScaledValues
from monai_fp4.quantization.recipes import Backward, Recipe

__all__ = ["Forward", "Products", "Spec"]


class Spec(Protocol):
    """Arguments of a layer's products beside their operands, and its backward pass in high precision."""

    @property
    def recipe(self) -> Recipe:
        """Recipe: what is quantized, and how."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the results."""

    def memory_format(self, x: Tensor, weight: Tensor) -> torch.memory_format:
        """Of the product, and of the gradient of the input."""

    def read(self, x: Tensor) -> Tensor:
        """The part of an input that the product reads, and whose maximum scales it."""

    def input_gradient(self, dy: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the input, in high precision."""

    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient of the weight, in high precision."""


class Forward(NamedTuple):
    """Result of a forward product, with the tensors that the backward pass needs.

    Attributes:
        y: the product.
        saved: input and weight, decoded from FP4 where the recipe's backward is `Backward.DEQUANTIZED`.
        kept: the quantized weight where its blocks span two axes and serve the gradient too.
    """

    y: Tensor
    saved: tuple[Tensor, Tensor]
    kept: ScaledValues | None


_Spec = TypeVar("_Spec", bound=Spec)


class Products(ABC, Generic[_Spec]):
    """The three products of a layer in FP4.

    Args:
        spec: what they depend on beside their operands.
    """

    def __init__(self, spec: _Spec) -> None:
        self.spec = spec
        self.recipe, self.dtype, self.how = spec.recipe, spec.dtype, spec.recipe.encodings

    @classmethod
    @abstractmethod
    def takes(cls, x: Tensor, spec: _Spec, /) -> bool:
        """Whether these products can be had where ``x`` lies, and for this spec."""

    @abstractmethod
    def quantized_input(self, x: Tensor) -> ScaledValues:
        """The first operand of the forward product."""

    @abstractmethod
    def quantized_weight(self, weight: Tensor) -> ScaledValues:
        """The second operand of the forward product."""

    @abstractmethod
    def multiply(self, a: ScaledValues, b: ScaledValues) -> Tensor:
        """The forward product of its operands."""

    @abstractmethod
    def decoded(self, a: ScaledValues, b: ScaledValues) -> tuple[Tensor, Tensor]:
        """Input and weight as the forward product saw them, in their own shapes."""

    def forward(self, x: Tensor, weight: Tensor) -> Forward:
        """Quantize both operands and multiply them."""
        a, b = self.quantized_input(x), self.quantized_weight(weight)
        return Forward(
            self.multiply(a, b), self.decoded(a, b) if self.decodes else (x, weight), b if self.keeps else None
        )

    def remembered(self, x: Tensor, weight: Tensor) -> tuple[tuple[Tensor, Tensor], ScaledValues | None]:
        """`Forward.saved` and `Forward.kept` computed anew, for those that saved the operands alone."""
        keeps = self.keeps and not self.recipe.standard_format  # where the transposed weight has the same blocks
        if not (self.decodes or keeps):
            return (x, weight), None
        b = self.quantized_weight(weight)
        return self.decoded(self.quantized_input(x), b) if self.decodes else (x, weight), b if keeps else None

    @abstractmethod
    def input_gradient(self, dy: Tensor, weight: Tensor, kept: ScaledValues | None = None) -> Tensor:
        """Quantize the gradient and the weight and multiply them; ``kept`` is that of `Forward`."""

    @abstractmethod
    def weight_gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Quantize the gradient and the input and multiply them."""

    def gradients(
        self, dy: Tensor, x: Tensor, weight: Tensor, kept: ScaledValues | None, needed: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of x and of the weight, or None where ``needed`` says that one is not wanted."""
        # In this order on every device, since both may draw a key for stochastic rounding.
        dx = self.input_gradient(dy, weight, kept) if needed[0] else None
        dw = self.weight_gradient(dy, x) if needed[1] else None
        return dx, dw

    @property
    def keeps(self) -> bool:
        """Whether the backward pass reads the forward pass's weight: blocks over two axes may differ, transposed."""
        return self.recipe.two_d_weights and not self.recipe.standard_format

    @property
    def decodes(self) -> bool:
        """Whether the backward pass reads what the forward pass saw of its operands, decoded."""
        return self.recipe.backward is Backward.DEQUANTIZED
