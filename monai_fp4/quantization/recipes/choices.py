"""The values that the fields of a recipe take.

Each is an enum of texts, so that a config, a run folder and a table in the documentation write them alike. A text
becomes a member once, where a recipe is made; whatever is wrong is said there, with the nearest names.

>>> member(Backward, "dequantized", "backward") is Backward.DEQUANTIZED
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from monai_fp4.errors import ConfigError, unknown_name

__all__ = [
    "AttentionPrecision",
    "Backward",
    "Format",
    "FourOverSix",
    "Operand",
    "Override",
    "Precision",
    "matches",
    "member",
]


class Precision(StrEnum):
    """The numbers that a layer's products run in."""

    FP4 = "fp4"
    BF16 = "bf16"


class Backward(StrEnum):
    """The operands of the two backward products."""

    FP4 = "fp4"
    """Gradient, weight and input quantized to FP4."""
    HIGH_PRECISION = "high_precision"
    """The original weight and input, as if the forward pass had not been quantized."""
    DEQUANTIZED = "dequantized"
    """The weight and input that the forward pass saw, decoded: the chain rule with a straight-through estimator."""


class AttentionPrecision(StrEnum):
    """The two products inside attention, of queries with keys and of weights with values."""

    HIGH_PRECISION = "high_precision"
    FP4 = "fp4"


class Format(StrEnum):
    """The four-bit number format of all quantized tensors; a member's `Scheme` bears its name."""

    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"


class Operand(StrEnum):
    """Operand of a layer's products that can be quantized."""

    INPUT = "input"
    WEIGHT = "weight"
    GRADIENT = "gradient"


class FourOverSix(StrEnum):
    """The tensors whose blocks are scaled to 4 or to 6, whichever loses less; gradients never are."""

    NONE = "none"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    ALL = "all"

    def covers(self, operand: Operand) -> bool:
        """Whether an operand is scaled adaptively.

        >>> [operand.value for operand in Operand if FourOverSix.ALL.covers(operand)]
        ['input', 'weight']
        """
        own = {Operand.INPUT: FourOverSix.ACTIVATIONS, Operand.WEIGHT: FourOverSix.WEIGHTS}.get(operand)
        return own is not None and self in (own, FourOverSix.ALL)


def matches(name: str, pattern: str) -> bool:
    """Whether a module has a name, or its name matches a glob of :mod:`fnmatch`; ``*`` also matches dots.

    >>> matches("encoder.layers.0", "encoder.*"), matches("levels[0]", "levels[0]")
    (True, True)
    """
    return name == pattern or fnmatchcase(name, pattern)  # a name may hold what is a wildcard elsewhere


@dataclass(frozen=True, slots=True)
class Override:
    """A precision for the layers whose module name matches a pattern.

    Attributes:
        pattern: a glob over full module names, see `matches`.
        precision: what those layers run in.
    """

    pattern: str
    precision: Precision

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ConfigError(
                f"recipe field 'overrides' expected a pattern over module names, found {self.pattern!r}:"
                " write one such as '*.head'"
            )
        object.__setattr__(self, "precision", member(Precision, self.precision, "overrides"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | Override) -> Override:
        """Read one entry of a recipe's ``overrides``: a mapping with ``pattern`` and ``precision``."""
        if isinstance(config, Override):
            return config
        if not isinstance(config, Mapping) or set(config) != {"pattern", "precision"}:
            raise ConfigError(
                "recipe field 'overrides' expected entries with exactly the keys 'pattern' and 'precision',"
                f" found {config!r}: rewrite that entry"
            )
        return cls(config["pattern"], config["precision"])


_Enum = TypeVar("_Enum", bound=StrEnum)


def member(kind: type[_Enum], value: object, field: str) -> _Enum:
    """The member of an enum that a text or a member names.

    Raises:
        ConfigError: when there is none, naming the recipe's field.
    """
    try:
        return kind(value)  # type: ignore[arg-type]
    except ValueError:
        raise unknown_name(f"value of recipe field {field!r}", value, [str(choice) for choice in kind]) from None
