"""One FP4 product by ``te.Linear``: what the layers of the Transformer Engine backend share.

``te.Linear`` itself is awkward to put into somebody's model: its checkpoints carry an extra key, so they load neither
into ``nn.Linear`` nor from it; it refuses sizes that are not multiples of 32; and it computes on CUDA only. So a
`TEProduct` layer owns weight and bias as its float class does, and keeps a parameterless ``te.Linear`` beside them,
which it lends a weight matrix for the length of one call. Padding with zeros changes neither the maxima nor the sums.

Its ``te.Linear`` is built on the device ``meta``, because a real one draws initial weights from the caller's generator:
whatever that generator feeds (dropout, shuffling) would differ between a run and its resumption. There is one for each
device that the layer computes on: the quantizers inside hold a rotation matrix of the device they were made on. All
calls go through one lock, since ``autocast`` of Transformer Engine is a switch of the whole process, which the threads
of DataParallel would turn under each other.

Transformer Engine takes over on CUDA, where the layer works in BF16 (a BF16 input, or BF16 autocast). Anything else is
computed by the emulated layer that this one derives from, in the same numbers, and the first such call says why.

**Under autocast the input is cast to BF16 before it is quantized**, as a plain layer casts it: CUDA's autocast runs
layer norms in FP32, and Transformer Engine's kernels rotate BF16 only. The weight is not cast: a master weight in FP32
goes to FP4 in one rounding.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from monai_fp4.quantization.backends.te_recipe import te_recipe
from monai_fp4.quantization.layers import NVFP4Layer
from monai_fp4.quantization.layers.base import working_dtype
from monai_fp4.quantization.layers.guards import without_autocast
from monai_fp4.quantization.layers.separate import separated
from monai_fp4.quantization.recipes import Backward, Recipe

__all__ = ["MULTIPLE", "TEProduct", "WithInputGradient", "obstacle", "pad_axis"]

MULTIPLE = 32
"""Rows, input features and output features are padded to multiples of this: each is one product's reduction axis."""

_warned: set[str] = set()
_one_call = threading.RLock()  # reentrant: a hook on all modules of the process may run another layer


class TEProduct(NVFP4Layer):
    """Mixin in front of an emulated layer: `product` multiplies with ``te.Linear`` where `on_te` says that it can."""

    _te: dict[tuple[torch.device, Recipe], Any]
    weight: Tensor

    @classmethod
    def from_float(cls, module: nn.Module, recipe: Recipe | str) -> Self:
        """Build the layer, and its te.Linear if it is on a GPU; see `NVFP4Layer.from_float`."""
        layer = super().from_float(module, recipe)
        layer._te = {}  # here, so that the replicas of DataParallel share it
        if layer.weight.is_cuda:
            layer.te_linear(layer.weight.device)
        return layer

    def __getstate__(self) -> dict[str, Any]:
        # te.Linear holds handles of its process; a copy or an unpickled layer makes its own on first use.
        return self.__dict__ | {"_te": {}}

    def on_te(self, input: Tensor, weight: Tensor) -> bool:
        """Whether Transformer Engine computes this call; if it should and cannot, warn once for each reason."""
        if not self.quantizing or input.numel() == 0 or separated():  # te.Linear has one maximum for all of its input
            return False
        reason = obstacle(input, weight)
        if self.recipe.hadamard and self.recipe.backward is Backward.HIGH_PRECISION:
            reason = "Transformer Engine does not rotate the operands of a weight gradient in high precision"
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
        with (
            _one_call,
            torch.cuda.device_of(rows),  # kernels run on the current device, whatever their operands are on
            torch.autocast("cuda", dtype=torch.bfloat16),
            autocast(enabled=True, recipe=self._te_recipe()),
        ):
            lent = pad_axis(pad_axis(weight, -1), -2)
            te_linear = self.te_linear(rows.device)
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

    def te_linear(self, device: torch.device) -> Any:
        """Return the ``te.Linear`` that computes on a device, built without drawing a random number."""
        with _one_call:
            key = (device, self.recipe)  # te.Linear keeps the quantizers of its first recipe
            if key not in self._te:
                from transformer_engine.pytorch.module.linear import Linear
                from transformer_engine.pytorch.quantization import quantized_model_init

                # Every size comes from the operands of a call. A caller's quantized_model_init is not for us.
                with quantized_model_init(enabled=False):
                    te_linear = Linear(MULTIPLE, MULTIPLE, bias=False, params_dtype=torch.bfloat16, device="meta")
                del te_linear.weight
                self._te[key] = te_linear  # in a dict, so that it is no submodule and in no state_dict
            return self._te[key]


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
