"""The backend for GPUs with FP4 tensor cores: Transformer Engine's ``te.Linear`` under its NVFP4 recipe.

**Not run on hardware yet.** What is tested without it: the capability check, the flags that a recipe becomes (against
the real ``NVFP4BlockScaling``), and `TELinear` around the real ``te.Linear`` with TE's reference quantizer in place
of its kernels.

Facts of Transformer Engine 2.20 that this module relies on:

* training in NVFP4 needs compute capability 10.0 or 10.3 (B200, B300), and BF16 for the Hadamard transform;
* nothing is padded and nothing falls back: sizes must be multiples of 32, so `TELinear` pads rows and features itself;
* the defaults of ``NVFP4BlockScaling`` come from environment variables, so every flag is given;
* there is no NVFP4 convolution in any library: convolutions stay emulated, with the same numbers.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any, ClassVar

import torch
from torch import nn

from monai_fp4.backends.base import Availability, Backend
from monai_fp4.errors import ConfigError
from monai_fp4.recipes import Backward, Recipe

__all__ = ["CAPABILITIES", "MINIMUM_VERSION", "TransformerEngineBackend", "te_flags", "te_recipe"]

CAPABILITIES = ((10, 0), (10, 3))
"""CUDA compute capabilities on which Transformer Engine trains in NVFP4."""

MINIMUM_VERSION = (2, 20)
"""The oldest Transformer Engine whose source this module was written against."""

_BACKWARD_OVERRIDES = {
    Backward.FP4: None,
    Backward.HIGH_PRECISION: "high_precision",
    Backward.DEQUANTIZED: "dequantized",
}


class TransformerEngineBackend(Backend):
    """``te.Linear`` for linear layers, the emulation for everything else."""

    name: ClassVar[str] = "transformer_engine"
    summary: ClassVar[str] = "FP4 tensor cores for linear layers (B200, B300); written, but not yet run on such a GPU"

    def check(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Availability:
        """Collect every reason against it: device, GPU, dtype, installation."""
        reasons = []
        if device.type != "cuda":
            reasons.append(
                f"Transformer Engine computes on CUDA only, and the model is on {device.type}:"
                " move the model to the GPU before convert"
            )
        if not torch.cuda.is_available():
            reasons.append("PyTorch finds no CUDA device: run on a machine with one")
        else:
            capability = torch.cuda.get_device_capability(device if device.type == "cuda" else None)
            if capability not in CAPABILITIES:
                reasons.append(
                    f"the GPU has compute capability {_dotted(capability)} and NVFP4 training needs"
                    f" {' or '.join(map(_dotted, CAPABILITIES))}: use a B200 or B300"
                )
        if dtype is not torch.bfloat16:
            reasons.append(
                f"Transformer Engine's NVFP4 kernels take BF16 and the layers compute in {dtype}:"
                " turn on BF16 autocast (amp)"
            )
        return Availability.of(reasons + _installation_faults())

    def refuses(self, layer: nn.Module, recipe: Recipe) -> str | None:
        """Take linear layers only."""
        if type(layer) is not nn.Linear:
            return f"no library has an NVFP4 {type(layer).__name__}, so it is emulated"
        return None

    def build(self, layer: nn.Module, recipe: Recipe) -> nn.Module:
        """Build a `TELinear`."""
        from monai_fp4.backends.te_linear import TELinear

        if not isinstance(layer, nn.Linear):
            raise ConfigError(
                f"backend {self.name!r} expected a Linear layer, found {type(layer).__name__}: use 'emulated'"
            )
        replacement: nn.Module = TELinear.from_float(layer, recipe)
        return replacement


def te_flags(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as arguments of ``transformer_engine.common.recipe.NVFP4BlockScaling``.

    >>> from monai_fp4.recipes import RECIPES
    >>> te_flags(RECIPES["chain_rule"])["backward_override"]
    'dequantized'

    Attention products in FP4 are no part of it: Transformer Engine has none, and `monai_fp4.attention` emulates them.

    Raises:
        ConfigError: the recipe quantizes nothing.
    """
    if not recipe.quantizes:
        raise ConfigError(
            f"recipe {recipe.name!r} quantizes nothing, so it has no Transformer Engine recipe: do not convert"
        )
    return {
        "disable_rht": not recipe.hadamard,
        "disable_stochastic_rounding": not recipe.stochastic_rounding,
        "disable_2d_quantization": not recipe.two_d_weights,
        "backward_override": _BACKWARD_OVERRIDES[recipe.backward],
        # Variants that no recipe of ours uses, and that an environment variable could switch on.
        "row_scaled_activation": False,
        "nvfp4_4over6": "none",
    }


def te_recipe(recipe: Recipe) -> Any:
    """Build the ``NVFP4BlockScaling`` of a recipe; imports Transformer Engine."""
    from transformer_engine.common.recipe import NVFP4BlockScaling

    return NVFP4BlockScaling(**te_flags(recipe))


def _installation_faults() -> list[str]:
    """Read what is installed from the packages' metadata; importing it without CUDA would fail or warn."""
    try:
        version = metadata.version("transformer-engine")
    except metadata.PackageNotFoundError:
        return ["Transformer Engine is not installed: pip install 'monai-fp4[te]'"]
    faults = []
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MINIMUM_VERSION:
        faults.append(
            f"Transformer Engine {version} is installed and {_dotted(MINIMUM_VERSION)} or later is needed:"
            " pip install --upgrade 'monai-fp4[te]'"
        )
    try:
        metadata.version("transformer-engine-torch")
    except metadata.PackageNotFoundError:
        faults.append(
            f"Transformer Engine {version} is installed without its compiled PyTorch extension:"
            " pip install 'monai-fp4[te]'"
        )
    return faults


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
