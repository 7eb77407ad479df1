"""Interface of a backend: say whether it works here, say which layers it takes, and build them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from monai_fp4.quantization.recipes import Recipe

__all__ = ["Availability", "Backend"]


@dataclass(frozen=True)
class Availability:
    """The answer to "does this backend work here?".

    Attributes:
        available: whether it does.
        reasons: every reason why it does not, each with what to do; empty if it does.
        evidence: what a test on this device said, in a sentence, where one was asked and speaks for it.
    """

    available: bool
    reasons: tuple[str, ...] = ()
    evidence: str = ""

    @classmethod
    def of(cls, reasons: list[str]) -> Availability:
        """Available if nothing speaks against it."""
        return cls(not reasons, tuple(reasons))


class Backend(ABC):
    """Builds FP4 layers out of high-precision ones.

    The layers it builds share the parameters of those they replace, keep their ``state_dict`` keys, and carry
    ``recipe`` and ``active`` (False: compute in high precision), as the layers of :mod:`monai_fp4.quantization.layers`
    do.
    """

    name: ClassVar[str]
    """What users write for it."""
    summary: ClassVar[str]
    """One line for ``monai-fp4 doctor``."""

    @abstractmethod
    def check(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Availability:
        """Whether this backend can train a model on ``device`` whose layers compute in ``dtype``."""

    @abstractmethod
    def refuses(self, layer: nn.Module, recipe: Recipe) -> str | None:
        """Why this backend would not take a layer that the emulation takes, or None if it takes it."""

    @abstractmethod
    def build(self, layer: nn.Module, recipe: Recipe) -> nn.Module:
        """Build the FP4 layer that replaces ``layer``.

        Raises:
            ConfigError: this layer cannot be quantized; the sentence says why.
        """
