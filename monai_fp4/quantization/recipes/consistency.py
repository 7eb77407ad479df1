"""Check the types of a recipe's fields, and that none contradicts another.

A recipe is checked when it is made, so that no code further in meets one that means nothing: stochastic rounding of
gradients that are not rounded, or a format for products that are not quantized. A contradiction names both fields and
says which to change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.recipes.choices import AttentionPrecision, Backward, Format, FourOverSix, Operand, Precision

if TYPE_CHECKING:
    from monai_fp4.quantization.recipes.recipe import Recipe

__all__ = ["FLAGS", "check_consistency", "check_types"]

FLAGS = ("stochastic_rounding", "hadamard", "two_d_weights")
"""The fields that are true or false."""


def check_types(recipe: Recipe) -> None:
    """Check the fields that are not enums.

    Raises:
        ConfigError: naming the first that is wrong.
    """
    if not isinstance(recipe.name, str) or not recipe.name:
        raise ConfigError(f"recipe field 'name' expected a name, found {recipe.name!r}: write a string")
    for field in FLAGS:
        if not isinstance(getattr(recipe, field), bool):
            raise ConfigError(
                f"recipe field {field!r} expected true or false, found {getattr(recipe, field)!r}: write one of them"
            )
    share = recipe.bf16_last_share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigError(
            f"recipe field 'bf16_last_share' expected a number from 0 to 1, found {share!r}: write such a share"
        )


def check_consistency(recipe: Recipe) -> None:
    """Check that the fields mean something together.

    Raises:
        ConfigError: naming the first two that do not.
    """
    for field, value, other, remedy in _contradictions(recipe):
        raise ConfigError(
            f"recipe {recipe.name!r} contradicts itself: {field} = {value!s} does not go with"
            f" {other} = {getattr(recipe, other)!s}; {remedy}"
        )


def _contradictions(recipe: Recipe) -> Iterator[tuple[str, object, str, str]]:
    """Field, its value, the field that it does not go with, and what to do."""
    if recipe.forward is Precision.BF16:
        if recipe.hadamard:
            yield "hadamard", True, "forward", "set forward to 'fp4' or leave hadamard out"
        if recipe.backward is not Backward.HIGH_PRECISION:
            yield "backward", recipe.backward, "forward", "set backward to 'high_precision'"
        needs_fp4 = {
            "two_d_weights": recipe.two_d_weights,
            "attention": recipe.attention is AttentionPrecision.FP4,
            "format": recipe.format is not Format.NVFP4,
            "four_over_six": recipe.four_over_six is not FourOverSix.NONE,
        }
        for field, chosen in needs_fp4.items():
            if chosen:
                yield field, getattr(recipe, field), "forward", f"set forward to 'fp4' or leave {field} out"
        for item in recipe.overrides:
            if item.precision is Precision.FP4:
                remedy = "set forward to 'fp4' and override the other layers to 'bf16'"
                yield f"overrides[{item.pattern!r}]", item.precision, "forward", remedy
    if recipe.stochastic_rounding and recipe.backward is not Backward.FP4:
        yield "stochastic_rounding", True, "backward", "set backward to 'fp4' or leave stochastic_rounding out"
    if recipe.hadamard and recipe.backward is Backward.DEQUANTIZED:
        yield "hadamard", True, "backward", "set backward to 'fp4' or 'high_precision', or leave hadamard out"
    if recipe.four_over_six is not FourOverSix.NONE and recipe.format is not Format.NVFP4:
        yield "four_over_six", recipe.four_over_six, "format", "set format to 'nvfp4' or leave it out"
    rotates_fp4 = recipe.hadamard and recipe.backward is Backward.FP4
    if rotates_fp4 and recipe.four_over_six.covers(Operand.INPUT):
        remedy = "set four_over_six to 'weights', which are never rotated, or leave hadamard out"
        yield "four_over_six", recipe.four_over_six, "hadamard", remedy
