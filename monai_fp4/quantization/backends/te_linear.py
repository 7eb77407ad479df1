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

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        if not self.on_te(input):
            return super().forward(input)
        return self.in_fp4(input, self._multiply_by_te, operators=False)

    def _multiply_by_te(self, input: Tensor) -> Tensor:
        rows = input.to(torch.bfloat16).reshape(-1, self.weight.shape[1])
        y = self.product(rows, self.weight)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.reshape(*input.shape[:-1], self.weight.shape[0])
