"""What is quantized, and how: a recipe is data, and the eleven recipes of the study are one table.

A linear layer or a convolution computes three products in a training step: its output (forward), the gradient of its
input and the gradient of its weight (backward). A recipe says which of them run in FP4 and with which aids:

* **stochastic rounding** keeps rounded gradients unbiased;
* the **random Hadamard transform** spreads outliers in the two operands of the weight gradient;
* **2D weights** share scales over 16 x 16 blocks, so that forward and backward see the same quantized weight.

Two more fields change the **number format**: ``four_over_six`` the scales of NVFP4 blocks, for weights, activations or
both, and ``format`` the whole format, to MXFP4 (see :mod:`monai_fp4.scheme`). The eleven have neither.

A config names a recipe (``"sr_rht_2d"``) or writes one out, field by field, on top of another:

>>> recipe = Recipe.from_config({
...     "base": "sr",
...     "overrides": [{"pattern": "*.layers.0.*", "precision": "bf16"}],
...     "bf16_last_share": 0.1,
... })
>>> recipe.precision_of("encoder.layers.0.mlp.linear1"), recipe.precision_of("encoder.layers.1.mlp.linear1")
(<Precision.BF16: 'bf16'>, <Precision.FP4: 'fp4'>)
>>> recipe.runs_in_bf16(step=89, steps=100), recipe.runs_in_bf16(step=90, steps=100)
(False, True)
>>> Recipe.from_config(recipe.to_config()) == recipe
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, TypeVar

from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.scheme import Scheme

__all__ = [
    "RECIPES",
    "AttentionPrecision",
    "Backward",
    "Format",
    "FourOverSix",
    "Operand",
    "Override",
    "Precision",
    "Recipe",
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
    """The four-bit number format of all quantized tensors."""

    NVFP4 = "nvfp4"
    MXFP4 = "mxfp4"


class FourOverSix(StrEnum):
    """The tensors whose blocks are scaled to 4 or to 6, whichever loses less; gradients never are."""

    NONE = "none"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"
    ALL = "all"


class Operand(StrEnum):
    """What is quantized in a layer."""

    INPUT = "input"
    WEIGHT = "weight"
    GRADIENT = "gradient"


_Enum = TypeVar("_Enum", bound=StrEnum)
_FLAGS = ("stochastic_rounding", "hadamard", "two_d_weights")


@dataclass(frozen=True, slots=True)
class Override:
    """A precision for the layers whose module name matches a pattern.

    Attributes:
        pattern: a glob over full module names, as in :mod:`fnmatch`, case-sensitive; ``*`` also matches dots.
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
        object.__setattr__(self, "precision", _member(Precision, self.precision, "overrides"))

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train in FP4.

    Attributes:
        name: how reports and run folders call it.
        forward: precision of the forward product.
        backward: operands of the two backward products.
        stochastic_rounding: round the FP4 gradients stochastically; needs ``backward="fp4"``.
        hadamard: rotate both operands of the weight gradient; needs ``backward="fp4"``.
        two_d_weights: scale weights in 16 x 16 blocks; needs ``forward="fp4"``.
        attention: precision of the products inside attention; ``"fp4"`` needs ``forward="fp4"``.
        overrides: precisions of single layers, the first matching pattern wins.
        bf16_last_share: share of the training steps, at the end, that run in BF16, from 0 to 1.
        format: of the four-bit numbers; ``"mxfp4"`` needs ``forward="fp4"``.
        four_over_six: which tensors are scaled adaptively; needs ``forward="fp4"`` and ``format="nvfp4"``, and
            ``"activations"`` and ``"all"`` do not go with ``hadamard``, which rotates them.

    Raises:
        ConfigError: a field has another type or value than these, or two fields contradict each other.
    """

    name: str
    forward: Precision = Precision.FP4
    backward: Backward = Backward.FP4
    stochastic_rounding: bool = False
    hadamard: bool = False
    two_d_weights: bool = False
    attention: AttentionPrecision = AttentionPrecision.HIGH_PRECISION
    overrides: tuple[Override, ...] = ()
    bf16_last_share: float = 0.0
    format: Format = Format.NVFP4
    four_over_six: FourOverSix = FourOverSix.NONE

    def __post_init__(self) -> None:
        # Strings become enum members here, once, so that code further in compares members only.
        set_field = object.__setattr__
        set_field(self, "forward", _member(Precision, self.forward, "forward"))
        set_field(self, "backward", _member(Backward, self.backward, "backward"))
        set_field(self, "attention", _member(AttentionPrecision, self.attention, "attention"))
        set_field(self, "format", _member(Format, self.format, "format"))
        set_field(self, "four_over_six", _member(FourOverSix, self.four_over_six, "four_over_six"))
        if isinstance(self.overrides, str | Mapping) or not isinstance(self.overrides, Sequence):
            raise ConfigError(
                f"recipe field 'overrides' expected a list, found {self.overrides!r}: put the entries in a list"
            )
        set_field(self, "overrides", tuple(Override.from_config(entry) for entry in self.overrides))
        self._check_types()
        self._check_contradictions()

    @property
    def quantizes(self) -> bool:
        """Whether any layer is quantized under this recipe."""
        return self.forward is Precision.FP4

    @property
    def standard_format(self) -> bool:
        """Whether every tensor has the standard scheme, the only one that the fast kernels know."""
        return self.format is Format.NVFP4 and self.four_over_six is FourOverSix.NONE

    def scheme_of(self, operand: Operand | str) -> Scheme:
        """The scheme that an operand of a layer's products is quantized with.

        >>> recipe = Recipe.from_config({"base": "sr", "four_over_six": "weights"})
        >>> [recipe.scheme_of(operand).name for operand in Operand]
        ['NVFP4', 'FOUR_OVER_SIX', 'NVFP4']
        """
        if self.format is Format.MXFP4:
            return Scheme.MXFP4
        if self.four_over_six in _ADAPTIVE[_member(Operand, operand, "operand")]:
            return Scheme.FOUR_OVER_SIX
        return Scheme.NVFP4

    def precision_of(self, layer: str) -> Precision:
        """The precision of the layer with that full module name: the first matching override, else ``forward``."""
        for override in self.overrides:
            if fnmatchcase(layer, override.pattern):
                return override.precision
        return self.forward

    def runs_in_bf16(self, *, step: int, steps: int) -> bool:
        """Whether the precision schedule has switched to BF16.

        Args:
            step: steps already taken, from 0.
            steps: steps of the whole training.
        """
        # The number of BF16 steps is rounded first: 100 * (1 - 0.1) is 90.00000000000001 or 89.99999999999999 by luck.
        return step >= steps - round(steps * self.bf16_last_share)

    @classmethod
    def from_config(cls, config: str | Mapping[str, Any] | Recipe) -> Recipe:
        """Read a recipe from a config.

        Args:
            config: a name of :data:`RECIPES`; or a mapping of fields, which start from the recipe named by ``"base"``
                where there is one and from the defaults otherwise; or a recipe, returned as it is.

        Returns:
            The recipe. A mapping that changes its base and gives no ``name`` is ``<base>_custom``, or ``custom``.

        Raises:
            ConfigError: an unknown name (with the nearest ones), or fields that do not fit.
        """
        if isinstance(config, Recipe):
            return config
        if isinstance(config, str):
            if config not in RECIPES:
                raise unknown_name("recipe", config, RECIPES)
            return RECIPES[config]
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"recipe expected a name or a mapping of fields, found {config!r}: write one of {list(RECIPES)}"
            )
        known = [field.name for field in fields(cls)]
        for key in config:
            if key not in (*known, "base"):
                raise unknown_name("recipe field", key, [*known, "base"])
        # On a command line, JSON's true and false arrive as texts.
        texts = {"true": True, "false": False}
        values: dict[str, Any] = {
            key: texts.get(value, value) if key in _FLAGS and isinstance(value, str) else value
            for key, value in config.items()
        }
        if "base" not in values:
            return cls(**{"name": "custom", **values})
        base = cls.from_config(values.pop("base"))
        changed = replace(base, **values)
        return changed if "name" in values or changed == base else replace(changed, name=f"{base.name}_custom")

    def to_config(self) -> dict[str, Any]:
        """Every field as JSON values, which :meth:`from_config` reads back."""
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        config |= {key: str(value) for key, value in config.items() if isinstance(value, StrEnum)}
        config["overrides"] = [{"pattern": item.pattern, "precision": str(item.precision)} for item in self.overrides]
        return config

    def _check_types(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"recipe field 'name' expected a name, found {self.name!r}: write a string")
        for field in _FLAGS:
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(
                    f"recipe field {field!r} expected true or false, found {getattr(self, field)!r}: write one of them"
                )
        share = self.bf16_last_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ConfigError(
                f"recipe field 'bf16_last_share' expected a number from 0 to 1, found {share!r}: write such a share"
            )
        object.__setattr__(self, "bf16_last_share", float(share))

    def _check_contradictions(self) -> None:
        if self.forward is Precision.BF16:
            if self.backward is not Backward.HIGH_PRECISION:
                raise self._contradiction(
                    "backward", self.backward, "forward", self.forward, "set backward to 'high_precision'"
                )
            for field in ("two_d_weights", "attention", "format", "four_over_six"):
                value = getattr(self, field)
                if value is True or value in (AttentionPrecision.FP4, Format.MXFP4, *_SCALED_ADAPTIVELY):
                    raise self._contradiction(
                        field, value, "forward", self.forward, f"set forward to 'fp4' or leave {field} out"
                    )
            for item in self.overrides:
                if item.precision is Precision.FP4:
                    raise self._contradiction(
                        f"overrides[{item.pattern!r}]", item.precision, "forward", self.forward,
                        "set forward to 'fp4' and override the other layers to 'bf16'",
                    )  # fmt: skip
        if self.backward is not Backward.FP4:
            for field in ("stochastic_rounding", "hadamard"):
                if getattr(self, field):
                    raise self._contradiction(
                        field, True, "backward", self.backward, f"set backward to 'fp4' or leave {field} out"
                    )

        if self.four_over_six is not FourOverSix.NONE:
            if self.format is not Format.NVFP4:
                raise self._contradiction(
                    "four_over_six", self.four_over_six, "format", self.format, "set format to 'nvfp4' or leave it out"
                )
            if self.hadamard and self.scheme_of(Operand.INPUT) is Scheme.FOUR_OVER_SIX:
                raise self._contradiction(
                    "four_over_six", self.four_over_six, "hadamard", True,
                    "set four_over_six to 'weights', which are never rotated, or leave hadamard out",
                )  # fmt: skip

    def _contradiction(self, field: str, value: object, other: str, other_value: object, remedy: str) -> ConfigError:
        return ConfigError(
            f"recipe {self.name!r} contradicts itself: {field} = {value!s} does not go with {other} = {other_value!s};"
            f" {remedy}"
        )


_SCALED_ADAPTIVELY = (FourOverSix.WEIGHTS, FourOverSix.ACTIVATIONS, FourOverSix.ALL)
_ADAPTIVE: Mapping[Operand, tuple[FourOverSix, ...]] = MappingProxyType(
    {
        Operand.INPUT: (FourOverSix.ACTIVATIONS, FourOverSix.ALL),
        Operand.WEIGHT: (FourOverSix.WEIGHTS, FourOverSix.ALL),
        Operand.GRADIENT: (),
    }
)


def _member(kind: type[_Enum], value: object, field: str) -> _Enum:
    try:
        return kind(value)  # type: ignore[arg-type]
    except ValueError:
        raise unknown_name(f"value of recipe field {field!r}", value, [str(member) for member in kind]) from None


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(name="bf16", forward=Precision.BF16, backward=Backward.HIGH_PRECISION),
            Recipe(name="full"),
            Recipe(name="forward_only", backward=Backward.HIGH_PRECISION),
            Recipe(name="chain_rule", backward=Backward.DEQUANTIZED),
            Recipe(name="sr", stochastic_rounding=True),
            Recipe(name="rht", hadamard=True),
            Recipe(name="2d", two_d_weights=True),
            Recipe(name="sr_rht", stochastic_rounding=True, hadamard=True),
            Recipe(name="sr_2d", stochastic_rounding=True, two_d_weights=True),
            Recipe(name="rht_2d", hadamard=True, two_d_weights=True),
            Recipe(name="sr_rht_2d", stochastic_rounding=True, hadamard=True, two_d_weights=True),
        )
    }
)
"""The eleven recipes of the study by name, from the baseline to all aids at once."""
