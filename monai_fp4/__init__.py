"""Train, compare and ship medical segmentation models in NVFP4, through MONAI bundles.

>>> import torch
>>> from monai_fp4 import build_network, convert
>>> network = build_network("unet", "500k", image_size=(64, 64))
>>> network, report = convert(network, "sr")
>>> network(torch.zeros(1, 3, 64, 64)).shape
torch.Size([1, 1, 64, 64])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from monai_fp4.errors import ConfigError, DataError, MonaiFP4Error, NumericsError
    from monai_fp4.networks import build_network
    from monai_fp4.quantization import RECIPES, ConversionReport, NVFP4Tensor, Recipe, convert, fake_quantize, quantize

__version__ = "0.1.0"

__all__ = [
    "RECIPES",
    "ConfigError",
    "ConversionReport",
    "DataError",
    "MonaiFP4Error",
    "NVFP4Tensor",
    "NumericsError",
    "Recipe",
    "build_network",
    "convert",
    "fake_quantize",
    "quantize",
]

# Loaded when first asked for (PEP 562): torch and MONAI take seconds, which 'monai-fp4 --help' does not need.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "errors": ["ConfigError", "DataError", "MonaiFP4Error", "NumericsError"],
        "networks": ["build_network"],
        "quantization": [
            "RECIPES",
            "ConversionReport",
            "NVFP4Tensor",
            "Recipe",
            "convert",
            "fake_quantize",
            "quantize",
        ],
    },
)
