"""``NVFP4Linear``: ``nn.Linear`` with its three GEMMs in FP4."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.layers.base import NVFP4Layer, add_bias, leaves_to_torch, working_dtype
from monai_fp4.quantization.layers.operands import quantized
from monai_fp4.quantization.layers.operators import linear
from monai_fp4.quantization.numerics import decode

__all__ = ["NVFP4Linear"]


class NVFP4Linear(NVFP4Layer, nn.Linear):
    """A linear layer ``[..., in_features] -> [..., out_features]``; features are padded to multiples of 16 inside.

    Under BF16 autocast the input is cast to BF16 before it is quantized, and an FP32 weight is not rounded to BF16 on
    the way to FP4. The output has autocast's dtype where it is on, else that of the input.

    >>> _ = torch.manual_seed(0)
    >>> layer = NVFP4Linear(32, 8, recipe="sr")
    >>> layer(torch.randn(4, 7, 32)).shape
    torch.Size([4, 7, 8])
    """

    float_type = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to ``[..., in_features]``."""
        return self._linear_forward(input, self.weight, self.bias)

    def _linear_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply with a weight and a bias, as ``_conv_forward`` of a convolution does."""
        if not self.quantizing or leaves_to_torch(input):
            return F.linear(input, weight, bias)
        return self.in_fp4(input, weight, lambda x: self._multiply(x, weight, bias))

    def _multiply(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = input.shape[-1] if input.ndim else 0
        if (
            not torch.jit.is_tracing() and found != weight.shape[-1]
        ):  # the compiled products read memory by the sizes that they are given
            raise ConfigError(
                f"a linear layer whose weight takes {weight.shape[-1]} input features found an input of {found} (shape"
                f" {tuple(input.shape)}): check what precedes it"
            )
        dtype = working_dtype(input)
        x = (input.flatten(0, -2) if input.dim() > 1 else input.unsqueeze(0)).to(dtype)
        y = linear(x, weight, self.recipe, dtype, self.history)
        return add_bias(y, bias).view(*input.shape[:-1], weight.shape[0])

    @torch.no_grad()
    def quantized_operands(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the operands of fprop: input ``[..., in_features]`` and weight, each as (original, decoded)."""
        x, weight, how = x.to(working_dtype(x)), self.weight.detach(), self.recipe.encodings
        return {
            "input": (x, decode(quantized(x, how.input), x.dtype)),
            "weight": (weight, decode(quantized(weight, how.weight), weight.dtype)),
        }
