"""Train, compare and ship medical segmentation models in NVFP4, through MONAI bundles.

>>> import torch
>>> from monai_fp4 import build_network, convert
>>> network = build_network("unet", "500k", image_size=(64, 64))
>>> network, report = convert(network, "sr")
>>> network(torch.zeros(1, 3, 64, 64)).shape
torch.Size([1, 1, 64, 64])
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Loaded when first asked for (PEP 562): torch and MONAI take seconds, which 'monai-fp4 --help' does not need.
_HOME = {
    **dict.fromkeys(("ConversionReport", "convert"), "convert"),
    **dict.fromkeys(("ConfigError", "DataError", "MonaiFP4Error", "NumericsError"), "errors"),
    "build_network": "networks",
    **dict.fromkeys(("RECIPES", "Recipe"), "recipes"),
    **dict.fromkeys(("NVFP4Tensor", "fake_quantize", "quantize"), "tensor"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


class _Package(ModuleType):
    """This package, in which `convert` is the function, although a module of that name is loaded into it."""

    @property
    def convert(self) -> Any:
        return import_module("monai_fp4.convert").convert

    @convert.setter
    def convert(self, module: ModuleType) -> None:
        """Importing a module sets it on its package; this one stays reachable as `sys.modules` and `from` know it."""


sys.modules[__name__].__class__ = _Package
