"""Train, compare and ship medical segmentation models in NVFP4, through MONAI bundles.

>>> import torch
>>> from monai_fp4 import build_network, convert
>>> network = build_network("unet", "500k", image_size=(64, 64))
>>> network, report = convert(network, "sr")
>>> network(torch.zeros(1, 3, 64, 64)).shape
torch.Size([1, 1, 64, 64])
"""

from monai_fp4.convert import ConversionReport, convert
from monai_fp4.errors import ConfigError, DataError, MonaiFP4Error, NumericsError
from monai_fp4.networks import build_network
from monai_fp4.recipes import RECIPES, Recipe
from monai_fp4.tensor import NVFP4Tensor, fake_quantize, quantize

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
