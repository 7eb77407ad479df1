"""A linear layer that computes with ``te.Linear`` and looks like ``nn.Linear`` from outside.

``te.Linear`` itself is awkward to put into somebody's model: its checkpoints carry an extra key, so they load neither
into ``nn.Linear`` nor from it; it refuses sizes that are not multiples of 32; and it computes on CUDA only. So
`TELinear` owns weight and bias as ``nn.Linear`` does, and keeps a parameterless ``te.Linear`` beside them, which it
lends the (padded) weight for the length of one call. Padding with zeros changes neither the maxima nor the sums.

**Not run on hardware yet**; tested around the real ``te.Linear`` with TE's reference quantizer
(tests/test_te_linear.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_fp4.backends.transformer_engine import te_recipe
from monai_fp4.layers import NVFP4Linear
from monai_fp4.layers.base import working_dtype
from monai_fp4.recipes import Backward, Recipe

__all__ = ["MULTIPLE", "TELinear", "te_takes"]

MULTIPLE = 32
"""Rows, input features and output features are padded to multiples of this: each is one product's reduction axis."""


class TELinear(NVFP4Linear):
    """``y = x W^T + b`` in FP4 by Transformer Engine where it can, by the emulation where it cannot.

    Transformer Engine takes over on CUDA, where the layer works in BF16 (a BF16 input or BF16 autocast) and `te_takes`
    finds dtypes that its kernels can read. Anything else - the CPU, another dtype, an inactive layer - is computed by
    `NVFP4Linear`, in the same numbers.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``.
    """

    _te: Any = None

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        on_te = input.is_cuda and working_dtype(input) is torch.bfloat16
        on_te = on_te and te_takes(input.dtype, self.weight.dtype, self.recipe)
        if not self.quantizing or input.numel() == 0 or not on_te:
            return super().forward(input)
        return self._te_forward(input)

    def __getstate__(self) -> dict[str, Any]:
        # te.Linear holds handles of its process; a copy or an unpickled layer makes its own on first use.
        return {key: value for key, value in self.__dict__.items() if key != "_te"}

    def _te_forward(self, x: Tensor) -> Tensor:
        from transformer_engine.pytorch.quantization import autocast

        rows = x.reshape(-1, self.in_features)
        # Autocast, and no cast: te.Linear quantizes input and weight as they are, and returns BF16.
        with torch.autocast("cuda", dtype=torch.bfloat16), autocast(enabled=True, recipe=self._te_recipe()):
            te_linear = self._te_linear()
            # Lent, not registered: nn.Module would refuse a tensor that is no Parameter under the name of one.
            te_linear.__dict__["weight"] = _pad(_pad(self.weight, -1), -2)
            try:
                y = te_linear(_pad(_pad(rows, -1), -2))
            finally:
                del te_linear.__dict__["weight"]
        y = y[: rows.shape[0], : self.out_features]
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _te_recipe(self) -> Any:
        return te_recipe(self.recipe)

    def _te_linear(self) -> Any:
        if self._te is None:
            from transformer_engine.pytorch.module.linear import Linear

            sizes = (size + -size % MULTIPLE for size in (self.in_features, self.out_features))
            te_linear = Linear(*sizes, bias=False, params_dtype=torch.bfloat16, device=self.weight.device)
            del te_linear.weight
            object.__setattr__(
                self, "_te", te_linear
            )  # past nn.Module, so that it is no submodule and in no state_dict
        return self._te


def te_takes(input: torch.dtype, weight: torch.dtype, recipe: Recipe) -> bool:
    """Whether Transformer Engine's kernels take operands of these dtypes; they read BF16, and FP32 with two exceptions.

    They rotate BF16 only ("RHT is only supported for bfloat16 input"); and under ``backward_override="high_precision"``
    te.Linear multiplies the BF16 gradient with the weight as it is, for which cuBLAS has no mixed product.
    """
    if not {input, weight} <= {torch.bfloat16, torch.float32}:
        return False
    if recipe.hadamard and input is not torch.bfloat16:
        return False
    return recipe.backward is not Backward.HIGH_PRECISION or weight is torch.bfloat16


def _pad(x: Tensor, axis: int) -> Tensor:
    """Pad one of the last two axes with zeros to a multiple of 32."""
    missing = -x.shape[axis] % MULTIPLE
    return x if missing == 0 else F.pad(x, (0, missing) if axis == -1 else (0, 0, 0, missing))
