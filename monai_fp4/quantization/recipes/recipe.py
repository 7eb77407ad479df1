"""A recipe's fields, how a config writes them, and the table of the eleven recipes.

>>> RECIPES["sr_rht_2d"].hadamard, Recipe.from_config({"base": "sr_rht_2d", "hadamard": False}).name
(True, 'sr_rht_2d_custom')
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any

from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.quantization.formats.scheme import Scheme
from monai_fp4.quantization.recipes.choices import (
    AttentionPrecision,
    Backward,
    Format,
    FourOverSix,
    Operand,
    Override,
    Precision,
    matches,
    member,
)
from monai_fp4.quantization.recipes.consistency import FLAGS, check_consistency, check_types
from monai_fp4.quantization.recipes.encodings import Encoding, Encodings

__all__ = ["FURTHER_RECIPES", "PAPER_RECIPES", "RECIPES", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train in FP4.

    Attributes:
        name: how reports and run folders call it.
        forward: precision of the forward product.
        backward: operands of the two backward products.
        stochastic_rounding: round the FP4 gradients stochastically; needs ``backward="fp4"``.
        hadamard: rotate both operands of the weight gradient, which a backward pass in high precision then multiplies
            without rounding them to FP4; does not go with ``backward="dequantized"``.
        two_d_weights: scale weights in 16 x 16 blocks; needs ``forward="fp4"``.
        attention: precision of the products inside attention; ``"fp4"`` needs ``forward="fp4"``.
        overrides: precisions of single layers, the first matching pattern wins.
        bf16_last_share: share of the training steps, at the end, that run in BF16, from 0 to 1.
        format: of the four-bit numbers; ``"mxfp4"`` needs ``forward="fp4"``.
        four_over_six: which tensors are scaled adaptively; needs ``forward="fp4"`` and ``format="nvfp4"``, and
            ``"activations"`` and ``"all"`` do not go with ``hadamard`` and ``backward="fp4"``, which rotate them.

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
        set_field(self, "forward", member(Precision, self.forward, "forward"))
        set_field(self, "backward", member(Backward, self.backward, "backward"))
        set_field(self, "attention", member(AttentionPrecision, self.attention, "attention"))
        set_field(self, "format", member(Format, self.format, "format"))
        set_field(self, "four_over_six", member(FourOverSix, self.four_over_six, "four_over_six"))
        if isinstance(self.overrides, str | Mapping) or not isinstance(self.overrides, Sequence):
            raise ConfigError(
                f"recipe field 'overrides' expected a list, found {self.overrides!r}: put the entries in a list"
            )
        set_field(self, "overrides", tuple(Override.from_config(entry) for entry in self.overrides))
        check_types(self)
        set_field(self, "bf16_last_share", float(self.bf16_last_share))
        check_consistency(self)
        set_field(self, "_text", json.dumps(self.to_config()))  # a compiler that traces a layer can read it, not write

    @property
    def quantizes(self) -> bool:
        """Whether any layer is quantized under this recipe."""
        return self.forward is Precision.FP4

    @property
    def standard_format(self) -> bool:
        """Whether every tensor has the standard scheme, the only one that the fast kernels know."""
        return self.format is Format.NVFP4 and self.four_over_six is FourOverSix.NONE

    @property
    def text(self) -> str:
        """The recipe as JSON: an argument for operators of torch, from which `from_config` gives it back."""
        text: str = self._text  # type: ignore[attr-defined]
        return text

    def scheme_of(self, operand: Operand | str) -> Scheme:
        """The scheme that an operand of a layer's products is quantized with.

        >>> recipe = Recipe.from_config({"base": "sr", "four_over_six": "weights"})
        >>> [recipe.scheme_of(operand).name for operand in Operand]
        ['NVFP4', 'FOUR_OVER_SIX', 'NVFP4']
        """
        if self.format is not Format.NVFP4:
            return Scheme[self.format.name]
        adaptive = self.four_over_six.covers(member(Operand, operand, "operand"))
        return Scheme.FOUR_OVER_SIX if adaptive else Scheme.NVFP4

    @cached_property
    def encodings(self) -> Encodings:
        """How the operands of a layer's products are quantized."""
        x, weight, dy = (self.scheme_of(operand) for operand in Operand)
        rht, stochastic = self.hadamard, self.stochastic_rounding
        return Encodings(
            input=Encoding(x),
            weight=Encoding(weight, two_d=self.two_d_weights),
            gradient=Encoding(dy, stochastic=stochastic),
            input_columns=Encoding(x, rht=rht),
            gradient_columns=Encoding(dy, rht=rht, stochastic=stochastic),
        )

    def precision_of(self, layer: str) -> Precision:
        """The precision of the layer with that full module name: the first matching override, else ``forward``."""
        for override in self.overrides:
            if matches(layer, override.pattern):
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
            config: a name of :data:`RECIPES` or :data:`FURTHER_RECIPES`; or a mapping of fields, which start from the
                recipe named by ``"base"`` where there is one and from the defaults otherwise; or a recipe, returned as
                it is.

        Returns:
            The recipe. A mapping that changes its base and gives no ``name`` is ``<base>_custom``, or ``custom``.

        Raises:
            ConfigError: an unknown name (with the nearest ones), or fields that do not fit.
        """
        if isinstance(config, Recipe):
            return config
        if isinstance(config, str):
            named = {**RECIPES, **FURTHER_RECIPES}
            if config not in named:
                raise unknown_name("recipe", config, named)
            return named[config]
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
            key: texts.get(value, value) if key in FLAGS and isinstance(value, str) else value
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
"""The eleven recipes of the study by name, from the baseline to all techniques at once."""

FURTHER_RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(name="forward_rht", backward=Backward.HIGH_PRECISION, hadamard=True),
            Recipe(name="forward_rht_2d", backward=Backward.HIGH_PRECISION, hadamard=True, two_d_weights=True),
        )
    }
)
"""Recipes with a name and no bundles: the two readings of the paper's recipe 7."""

PAPER_RECIPES: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        0: ("bf16",),
        1: ("full",),
        2: ("forward_only",),
        3: ("chain_rule",),
        4: ("rht_2d",),
        5: ("sr_rht_2d",),
        6: ("sr",),
        7: ("forward_rht", "forward_rht_2d"),
    }
)
"""Number of a recipe in the code of arXiv 2605.27616 -> our names: two where its text and its flags differ."""
