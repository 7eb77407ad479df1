"""The backend that runs anywhere: FP4 values in FP32, BF16 or FP16 tensors, multiplied by PyTorch's own kernels.

A grid value times its block scale is exact in those types, so an ordinary matrix product of such tensors, accumulated
in FP32, is the FP4 product (see `monai_fp4.quantization.numerics`). It trains like FP4 hardware and is slower than
BF16, not faster.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.backends.base import Availability, Backend
from monai_fp4.quantization.layers import fp4_layer
from monai_fp4.quantization.recipes import Recipe

__all__ = ["EmulatedBackend"]


class EmulatedBackend(Backend):
    """Linear layers and convolutions of :mod:`monai_fp4.quantization.layers`, on any device."""

    name: ClassVar[str] = "emulated"
    summary: ClassVar[str] = "the same numbers as FP4 hardware, computed by PyTorch on any device"

    def check(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Availability:
        """Available on every device and in every dtype that the layers take."""
        return Availability(available=True)

    def refuses(self, layer: nn.Module, recipe: Recipe) -> str | None:
        """Take whatever has an emulated layer."""
        return None

    def build(self, layer: nn.Module, recipe: Recipe) -> nn.Module:
        """Build the layer that `monai_fp4.quantization.layers.fp4_layer` names for this class."""
        kind = fp4_layer(type(layer))
        if kind is None:
            raise ConfigError(f"no FP4 layer is known for a {type(layer).__name__}: see register_layer")
        replacement: nn.Module = kind.from_float(layer, recipe)
        return replacement
