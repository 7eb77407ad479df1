"""What a recipe does, in a sentence for a reader who knows segmentation and not number formats."""

from __future__ import annotations

from monai_fp4.quantization.recipes import AttentionPrecision, Backward, Format, FourOverSix, Recipe

__all__ = ["describe_recipe"]

_BACKWARD = {
    Backward.FP4: "Forward and backward products in FP4",
    Backward.HIGH_PRECISION: "Forward products in FP4, backward products in high precision on the original values",
    Backward.DEQUANTIZED: "Forward products in FP4, backward products in high precision on the decoded FP4 values",
}


def describe_recipe(recipe: Recipe) -> str:
    """Describe a recipe in one sentence.

    >>> describe_recipe(Recipe.from_config("bf16"))
    'Nothing is quantized: the baseline.'
    >>> describe_recipe(Recipe.from_config("sr_2d"))
    'Forward and backward products in FP4; gradients rounded stochastically; weights scaled in 16 x 16 blocks.'
    """
    if not recipe.quantizes and not recipe.overrides:
        return "Nothing is quantized: the baseline."
    parts = [_BACKWARD[recipe.backward]] if recipe.quantizes else ["BF16"]
    if recipe.stochastic_rounding:
        parts.append("gradients rounded stochastically")
    if recipe.hadamard:
        parts.append("operands of the weight gradient rotated by a random Hadamard transform")
    if recipe.two_d_weights:
        parts.append("weights scaled in 16 x 16 blocks")
    if recipe.attention is AttentionPrecision.FP4:
        parts.append("products inside attention in FP4 as well")
    if recipe.format is not Format.NVFP4:
        parts.append(f"number format {recipe.format.upper()}")
    if recipe.four_over_six is not FourOverSix.NONE:
        parts.append(f"adaptive scales (4 or 6) of {recipe.four_over_six.replace('all', 'weights and activations')}")
    if recipe.overrides:
        parts.append("layers " + ", ".join(f"{item.pattern} in {item.precision.upper()}" for item in recipe.overrides))
    if recipe.bf16_last_share:
        parts.append(f"the last {100 * recipe.bf16_last_share:g} % of the steps in BF16")
    return "; ".join(parts) + "."
