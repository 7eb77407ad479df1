"""A recipe in Transformer Engine's words.

The defaults of ``NVFP4BlockScaling`` come from environment variables, so every flag that changes numbers is given.
"""

from __future__ import annotations

from typing import Any

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.recipes import Backward, Format, Recipe

__all__ = ["te_flags", "te_recipe"]

_BACKWARD_OVERRIDES = {
    Backward.FP4: None,
    Backward.HIGH_PRECISION: "high_precision",
    Backward.DEQUANTIZED: "dequantized",
}


def te_flags(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as arguments of ``transformer_engine.common.recipe.NVFP4BlockScaling``.

    >>> from monai_fp4.quantization.recipes import RECIPES
    >>> te_flags(RECIPES["chain_rule"])["backward_override"]
    'dequantized'

    Attention products in FP4 are no part of it: Transformer Engine has none, and
    `monai_fp4.quantization.layers.attention` emulates them.

    Raises:
        ConfigError: the recipe quantizes nothing, or to another format than NVFP4.
    """
    if not recipe.quantizes:
        raise ConfigError(
            f"recipe {recipe.name!r} quantizes nothing, so it has no Transformer Engine recipe: do not convert"
        )
    if recipe.format is not Format.NVFP4:
        raise ConfigError(
            f"recipe {recipe.name!r} has format {str(recipe.format)!r} and Transformer Engine trains in 'nvfp4' alone:"
            " use the backend 'emulated'"
        )
    return {
        "disable_rht": not recipe.hadamard or recipe.backward is not Backward.FP4,
        "disable_stochastic_rounding": not recipe.stochastic_rounding,
        "disable_2d_quantization": not recipe.two_d_weights,
        "backward_override": _BACKWARD_OVERRIDES[recipe.backward],
        "nvfp4_4over6": str(recipe.four_over_six),
        "nvfp4_4over6_e4m3_use_256": str(recipe.four_over_six),
        "nvfp4_4over6_err_mode": "MAE",
        # A variant that no recipe of ours uses, and that an environment variable could switch on.
        "row_scaled_activation": False,
    }


def te_recipe(recipe: Recipe) -> Any:
    """Build the ``NVFP4BlockScaling`` of a recipe; imports Transformer Engine."""
    from transformer_engine.common.recipe import NVFP4BlockScaling

    return NVFP4BlockScaling(**te_flags(recipe))
