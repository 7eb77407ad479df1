"""One FP4 product by ``te.Linear``: what the layers of the Transformer Engine backend share.

``te.Linear`` itself is awkward to put into somebody's model: its checkpoints carry an extra key, so they load neither
into ``nn.Linear`` nor from it; it refuses sizes that are not multiples of 32; and it computes on CUDA only. So a
`TEProduct` layer owns weight and bias as its float class does, and keeps a parameterless ``te.Linear`` beside them,
which it lends a weight matrix for the length of one call. Padding with zeros changes neither the maxima nor the sums.

Transformer Engine takes over on CUDA, where the layer works in BF16 (a BF16 input, or BF16 autocast). Anything else is
computed by the emulated layer that this one derives from, in the same numbers, and the first such call says why.

**Under autocast the input is cast to BF16 before it is quantized**, as a plain layer casts it: CUDA's autocast runs
layer norms in FP32, and Transformer Engine's kernels rotate BF16 only. The weight is not cast: a master weight in FP32
goes to FP4 in one rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from monai_fp4.quantization.backends.te_recipe import te_recipe
from monai_fp4.quantization.layers import NVFP4Layer
from monai_fp4.quantization.layers.base import working_dtype
from monai_fp4.quantization.layers.operands import without_autocast
from monai_fp4.quantization.layers.separate import separated
from monai_fp4.quantization.recipes import Backward

__all__ = ["MULTIPLE", "TEProduct", "WithInputGradient", "obstacle", "pad_axis"]

MULTIPLE = 32
"""Rows, input features and output features are padded to multiples of this: each is one product's reduction axis."""

_warned: set[str] = set()


class TEProduct(NVFP4Layer):
    """Mixin in front of an emulated layer: `product` multiplies with ``te.Linear`` where `on_te` says that it can."""

    _te: Any = None
    weight: Tensor

    def __getstate__(self) -> dict[str, Any]:
        # te.Linear holds handles of its process; a copy or an unpickled layer makes its own on first use.
        return {key: value for key, value in self.__dict__.items() if key != "_te"}

    def on_te(self, input: Tensor) -> bool:
        """Whether Transformer Engine computes this call; if it should and cannot, warn once for each reason."""
        if not self.quantizing or input.numel() == 0 or separated():  # te.Linear has one maximum for all of its input
            return False
        reason = obstacle(input, self.weight)
        if reason is not None and reason not in _warned:
            _warned.add(reason)
            warnings.warn(
                f"a layer of the Transformer Engine backend is computed by the emulation, in the same numbers: {reason}"
                " (said once)",
                stacklevel=2,
            )
        return reason is None

    def product(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Multiply to ``rows @ weight.T`` in FP4, with the gradients that the recipe asks for.

        Args:
            rows: ``[T, K]``, BF16.
            weight: ``[N, K]``, BF16 or FP32, made from the layer's parameter in a way that autograd can follow.

        Returns:
            ``[T, N]``, BF16.
        """
        from transformer_engine.pytorch.quantization import autocast

        # With a backward pass in high precision te.Linear multiplies the BF16 gradient with the weight as it is. For
        # an FP32 weight cuBLAS has no such product, so that one is ours; then te.Linear's own need not be computed.
        ours = self.recipe.backward is Backward.HIGH_PRECISION
        # Autocast, and no cast: te.Linear quantizes input and weight as they are, and returns BF16.
        with torch.autocast("cuda", dtype=torch.bfloat16), autocast(enabled=True, recipe=self._te_recipe()):
            lent = pad_axis(pad_axis(weight, -1), -2)
            te_linear = self._te_linear(*lent.shape)
            # Lent, not registered: nn.Module would refuse a tensor that is no Parameter under the name of one.
            te_linear.__dict__["weight"] = lent
            try:
                y = te_linear(pad_axis(pad_axis(rows.detach() if ours else rows, -1), -2))
            finally:
                del te_linear.__dict__["weight"]
        y = y[: rows.shape[0], : weight.shape[0]]
        if ours:
            y = WithInputGradient.apply(y, rows, weight, lambda dy, w: dy @ w.to(dy.dtype))
        return y

    def _te_recipe(self) -> Any:
        return te_recipe(self.recipe)

    def _te_linear(self, outputs: int, inputs: int) -> Any:
        if self._te is None:
            from transformer_engine.pytorch.module.linear import Linear

            te_linear = Linear(inputs, outputs, bias=False, params_dtype=torch.bfloat16, device=self.weight.device)
            del te_linear.weight
            # past nn.Module, so that it is no submodule and in no state_dict
            object.__setattr__(self, "_te", te_linear)
        return self._te


class WithInputGradient(Function):
    """Return ``y`` as it is, and give ``x``, which it was computed from without a gradient, the gradient given here."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, gradient: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Remember the weight and ``gradient``, a function of dy and the weight."""
        ctx.save_for_backward(weight)
        ctx.gradient = gradient
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Pass dy on to whatever made y, which has the weight's gradient to compute."""
        (weight,) = ctx.saved_tensors
        return dy, ctx.gradient(dy, weight) if ctx.needs_input_grad[1] else None, None, None


def obstacle(input: Tensor, weight: Tensor) -> str | None:
    """Why Transformer Engine cannot take this input and weight, or None if it can."""
    if not input.is_cuda:
        return f"its input is on {input.device.type}; move model and data to the GPU"
    dtype = working_dtype(input)
    if dtype is not torch.bfloat16:
        return f"it works in {dtype}, and Transformer Engine's NVFP4 kernels in torch.bfloat16; turn on BF16 autocast"
    if weight.dtype not in (torch.bfloat16, torch.float32):
        return f"its weight is {weight.dtype}, and Transformer Engine quantizes torch.bfloat16 and torch.float32"
    return None


def pad_axis(x: Tensor, axis: int, multiple: int = MULTIPLE) -> Tensor:
    """Pad one of the last two axes with zeros to a multiple."""
    missing = -x.shape[axis] % multiple
    return x if missing == 0 else F.pad(x, (0, missing) if axis == -1 else (0, 0, 0, missing))
