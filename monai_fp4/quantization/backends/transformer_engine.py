"""The backends for GPUs with FP4 tensor cores: Transformer Engine's ``te.Linear`` under its NVFP4 recipe.

**Not run on hardware yet.** What is tested without it: the capability check, the flags that a recipe becomes (against
the real ``NVFP4BlockScaling``), and the layers around the real ``te.Linear`` with TE's reference quantizer in place
of its kernels.

Facts of Transformer Engine 2.20 that this module relies on:

* training in NVFP4 was written for compute capability 10.0 and 10.3 (B200, B300), and the rotation for BF16. Its own
  check (``is_nvfp4_available``) says yes from 10.0 on, consumer Blackwell (12.x) included, where one version did not
  start the kernel of the Hadamard transform (issue 3062 of NVIDIA/TransformerEngine) and one returned zeros for
  stochastic rounding (pull request 3281). So on any other GPU with FP4 tensor cores the device is asked: `self_test`;
* nothing is padded and nothing falls back: sizes must be multiples of 32, so the layers pad rows and features;
* there is no NVFP4 convolution in any library; which of them are matrix products is told in `te_conv`.
"""

from __future__ import annotations

import os
import re
from importlib import metadata
from typing import ClassVar

import torch
from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.backends.base import Availability, Backend
from monai_fp4.quantization.recipes import Format, Recipe

__all__ = ["CAPABILITIES", "MINIMUM_VERSION", "TransformerEngineBackend", "TransformerEngineIm2colBackend"]

CAPABILITIES = ((10, 0), (10, 3))
"""CUDA compute capabilities that Transformer Engine's NVFP4 was written for; later ones are tested before use."""

MINIMUM_VERSION = (2, 20)
"""The oldest Transformer Engine whose source this module was written against."""


class TransformerEngineBackend(Backend):
    """``te.Linear`` for linear layers and for convolutions that are plain products, the emulation for the rest."""

    name: ClassVar[str] = "transformer_engine"
    summary: ClassVar[str] = (
        "FP4 tensor cores (B200, B300) for linear layers, 1x1 and patch convolutions; written, but not yet run on one"
    )
    im2col: ClassVar[bool] = False
    """Whether convolutions with overlapping patches are taken too."""

    def check(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Availability:
        """Collect every reason against it: device, GPU, dtype, installation, and a test of an unknown GPU."""
        reasons, known = [], True
        if device.type != "cuda":
            reasons.append(
                f"Transformer Engine computes on CUDA only, and the model is on {device.type}:"
                " move the model to the GPU before convert"
            )
        if not torch.cuda.is_available():
            reasons.append("PyTorch finds no CUDA device: run on a machine with one")
        else:
            capability = torch.cuda.get_device_capability(device if device.type == "cuda" else None)
            known = capability in CAPABILITIES
            if capability < min(CAPABILITIES):
                reasons.append(
                    f"a GPU of compute capability {_dotted(capability)} has no FP4 tensor cores and NVFP4 training"
                    f" needs {_dotted(min(CAPABILITIES))} or later: use a Blackwell GPU, or the backend 'emulated'"
                )
        if dtype is not torch.bfloat16:
            reasons.append(
                f"Transformer Engine's NVFP4 kernels take BF16 and the layers compute in {dtype}:"
                " turn on BF16 autocast (amp)"
            )
        reasons += _environment_faults()
        reasons += _installation_faults()
        # Imported only where nothing else is in the way: without CUDA the import itself fails.
        reasons = reasons or _import_faults()
        if reasons or known:
            return Availability.of(reasons)
        from monai_fp4.quantization.backends.self_test import self_test

        index = torch.cuda.current_device() if device.index is None else device.index
        said = self_test(f"cuda:{index}")
        if said.passed:
            return Availability(True, evidence=said.sentence)
        return Availability(
            False, (f"{said.sentence}: update Transformer Engine and the driver, or use the backend 'emulated'",)
        )

    def refuses(self, layer: nn.Module, recipe: Recipe) -> str | None:
        """Take linear layers and convolutions that are matrix products, in NVFP4."""
        from monai_fp4.quantization.backends.te_conv import TE_CONV_TYPES, is_matrix_product

        if recipe.format is not Format.NVFP4:
            return f"emulated: Transformer Engine has no training in {recipe.format.upper()}"
        if type(layer) is nn.Linear:
            return None
        if type(layer) not in TE_CONV_TYPES:
            return f"emulated: {type(layer).__name__} is none of torch's own classes"
        assert isinstance(layer, nn.modules.conv._ConvNd), "the emulation takes linear layers and convolutions"
        if is_matrix_product(layer, layer.weight):
            return None
        if layer.groups > 1:
            return "emulated: te.Linear has no groups"
        if layer.transposed:
            return "emulated: te.Linear would round each tap of a pixel to BF16 before they are added up"
        return None if self.im2col else f"emulated: no library has an NVFP4 {type(layer).__name__} with this kernel"

    def build(self, layer: nn.Module, recipe: Recipe) -> nn.Module:
        """Build a `TELinear`, or one of `te_conv`."""
        from monai_fp4.quantization.backends.te_conv import TE_CONV_TYPES
        from monai_fp4.quantization.backends.te_linear import TELinear

        if type(layer) not in (nn.Linear, *TE_CONV_TYPES):
            raise ConfigError(
                f"backend {self.name!r} expected a linear layer or a convolution, found {type(layer).__name__}:"
                " use 'emulated'"
            )
        refused = self.refuses(layer, recipe)
        if refused is not None:
            raise ConfigError(f"backend {self.name!r} does not take this {type(layer).__name__} ({refused})")
        kind = TELinear if type(layer) is nn.Linear else TE_CONV_TYPES[type(layer)]
        replacement: nn.Module = kind.from_float(layer, recipe)
        return replacement


class TransformerEngineIm2colBackend(TransformerEngineBackend):
    """The same, and every other ungrouped convolution too, through the im2col matrix.

    It is never chosen by ``"auto"``: the matrix is 9 times the input for a 3x3 kernel, and whether FP4 products make
    up for writing and reading it has not been measured (docs/design-decisions.md has an estimate).
    """

    name: ClassVar[str] = "transformer_engine_im2col"
    summary: ClassVar[str] = (
        "the same, and fprop and wgrad of all other convolutions through the im2col matrix; only where it is asked for"
    )
    im2col: ClassVar[bool] = True


def _environment_faults() -> list[str]:
    """Refuse shortcuts that change numbers: NVTE_USE_FAST_MATH and its siblings for rotations and four over six."""
    shortcuts = (name for name in sorted(os.environ) if name.startswith("NVTE_") and name.endswith("FAST_MATH"))
    return [
        f"{name} is set, under which Transformer Engine rounds otherwise than NVFP4 is defined here: unset it"
        for name in shortcuts
        if os.environ[name] not in ("", "0")
    ]


def _installation_faults() -> list[str]:
    """Read what is installed from the packages' metadata; importing it without CUDA would fail or warn."""
    version, extension = _version("transformer-engine"), _version("transformer-engine-torch")
    if version is None:
        return ["Transformer Engine is not installed: pip install 'monai-fp4[te]'"]
    faults = []
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < MINIMUM_VERSION:
        faults.append(
            f"Transformer Engine {version} is installed and {_dotted(MINIMUM_VERSION)} or later is needed:"
            " pip install --upgrade 'monai-fp4[te]'"
        )
    if extension is None:
        faults.append(
            f"Transformer Engine {version} is installed without its compiled PyTorch extension:"
            " pip install 'monai-fp4[te]'"
        )
    elif extension.split("+")[0] != version.split("+")[0]:
        faults.append(
            f"Transformer Engine {version} is installed with the PyTorch extension of version {extension}:"
            " pip install --force-reinstall 'monai-fp4[te]'"
        )
    return faults


def _import_faults() -> list[str]:
    """Import Transformer Engine and ask it; what its metadata promise may still lack a library."""
    try:
        from transformer_engine.pytorch.module.linear import Linear  # noqa: F401
        from transformer_engine.pytorch.quantization import is_nvfp4_available
    except Exception as error:  # a missing library is an OSError, a symbol an ImportError, a failed check an assertion
        reason = str(error).strip().partition("\n")[0]
        return [
            f"Transformer Engine is installed but cannot be imported ({type(error).__name__}: {reason}):"
            " pip install --force-reinstall 'monai-fp4[te]'"
        ]
    available, reason = is_nvfp4_available(return_reason=True)
    return [] if available else [f"Transformer Engine itself finds no NVFP4 here: {reason}"]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
