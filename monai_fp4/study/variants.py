"""The recipes of a grid: the eleven of the table, variants of them, and recipes of the user's own.

On a command line a recipe is a name, and a variant is a name and what is added to it, such as ``sr+attention`` or
``sr_rht_2d+ends+last10``. ``all`` stands for the eleven, ``all+attention`` for that variant of each that quantizes.

>>> list(grid_recipes("bf16,sr+last10"))
['bf16', 'sr+last10']
>>> grid_recipes("sr+last10")["sr+last10"]
{'base': 'sr', 'name': 'sr+last10', 'bf16_last_share': 0.1}

What a recipe means may depend on the network: the last block has another name in each. So a grid keeps the recipe as it
was given, and `recipe_of` says what the bundle of one network is told.

>>> recipe_of(grid_recipes("sr+ends")["sr+ends"], "vit", "500k")["overrides"][-1]
{'pattern': 'encoder.blocks.2.*', 'precision': 'bf16'}
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.networks import find_cell
from monai_fp4.quantization.recipes import FURTHER_RECIPES, RECIPES, Precision, Recipe

__all__ = ["ADDITIONS", "grid_recipes", "recipe_of"]

FIRST_AND_LAST = "first_and_last"
"""In place of a list of overrides: the first and the last block of whichever network the recipe is given to."""

ADDITIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "attention": {"attention": "fp4"},
        "ends": {"overrides": FIRST_AND_LAST},
        "last10": {"bf16_last_share": 0.1},
        "four_over_six": {"four_over_six": "weights"},  # goes with every recipe that quantizes
        "four_over_six_all": {"four_over_six": "all"},  # not with the Hadamard transform
        "mxfp4": {"format": "mxfp4"},
    }
)
"""What may stand behind a ``+``: the recipe's fields that it changes."""


def grid_recipes(text: str, own: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Read the recipes of a command line.

    Args:
        text: names separated by commas.
        own: the user's own recipes: name -> mapping of fields, or name of another recipe.

    Returns:
        Name -> what a bundle's option ``recipe`` is given, but for `FIRST_AND_LAST`.

    Raises:
        ConfigError: an unknown name, an addition to a recipe that does not quantize, or fields that do not fit.
    """
    known = {**{name: name for name in (*RECIPES, *FURTHER_RECIPES)}, **own}
    chosen: dict[str, Any] = {}
    for word in (part.strip() for part in text.split(",")):
        name, *additions = word.split("+")
        for addition in additions:
            if addition not in ADDITIONS:
                raise unknown_name(f"addition to recipe {name!r}", addition, ADDITIONS)
        if name == "all":
            # A recipe without FP4 has no such variant; it is in the grid once, as "bf16".
            bases = [base for base, recipe in RECIPES.items() if recipe.quantizes or not additions]
        elif name in known:
            bases = [name]
        else:
            raise unknown_name("recipe", name, [*known, "all"])
        for base in bases:
            full_name = "+".join([base, *additions])
            chosen[full_name] = _variant(full_name, known[base], additions)
            _check(full_name, chosen[full_name])
    return chosen


def _variant(name: str, base: Any, additions: list[str]) -> Any:
    if not additions:
        return {**base, "name": name} if isinstance(base, Mapping) else base
    start = dict(base) if isinstance(base, Mapping) else {"base": base}
    for addition in additions:
        start |= {"name": name, **ADDITIONS[addition]}
    return start


def _check(name: str, config: Any) -> None:
    if isinstance(config, Mapping) and config.get("overrides") == FIRST_AND_LAST:
        config = {**config, "overrides": [{"pattern": "*", "precision": "bf16"}]}
    if not Recipe.from_config(config).quantizes and "+" in name:
        raise ConfigError(
            f"recipe {name!r} must quantize for anything to be added to it, but its forward pass is in BF16; name it"
            " without the addition"
        )


def recipe_of(config: Any, arch: str, scale: str) -> Any:
    """Compute the option ``recipe`` of one network's bundle.

    Args:
        config: a value of `grid_recipes`.
        arch: architecture.
        scale: scale.
    """
    if not isinstance(config, Mapping) or config.get("overrides") != FIRST_AND_LAST:
        return config
    patterns = find_cell(arch, scale).config.first_and_last
    return {**config, "overrides": [{"pattern": pattern, "precision": str(Precision.BF16)} for pattern in patterns]}
