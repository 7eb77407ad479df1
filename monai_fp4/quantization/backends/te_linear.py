"""A linear layer that computes with ``te.Linear`` and looks like ``nn.Linear`` from outside.

**Not run on hardware yet**; tested around the real ``te.Linear`` with TE's reference quantizer
(tests/quantization/backends/test_te_linear.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.quantization.backends.te_product import TEProduct
from monai_fp4.quantization.layers import NVFP4Linear

__all__ = ["TELinear"]


class TELinear(TEProduct, NVFP4Linear):
    """``y = x W^T + b`` in FP4 by Transformer Engine where it can, by the emulation where it cannot.

    Shape:
        Input ``[..., in_features]``, output ``[..., out_features]``.
    """

    def _linear_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply with a weight and a bias; called by `forward`."""
        if not self.on_te(input, weight):
            return super()._linear_forward(input, weight, bias)
        return self.in_fp4(input, weight, lambda x: self._multiply_by_te(x, weight, bias), operators=False)

    def _multiply_by_te(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = input.to(torch.bfloat16).reshape(-1, weight.shape[1])
        y = self.product(rows, weight)
        if bias is not None:
            y = y + bias.to(y.dtype)
        return y.reshape(*input.shape[:-1], weight.shape[0])
