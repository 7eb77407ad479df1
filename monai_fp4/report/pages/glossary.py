"""The words of the report, for a reader who knows one of its two fields: what each recipe does, what a metric is."""

from __future__ import annotations

from monai_fp4.quantization.recipes import AttentionPrecision, Backward, Format, FourOverSix, Recipe

__all__ = ["WORDS", "describe_recipe"]

_BACKWARD = {
    Backward.FP4: "Forward and backward products in FP4",
    Backward.HIGH_PRECISION: "Forward products in FP4, backward products in high precision on the original values",
    Backward.DEQUANTIZED: "Forward products in FP4, backward products in high precision on the decoded FP4 values",
}

WORDS = {
    "AUPRC": (
        "area under the precision-recall curve over the voxels of all validation patients, 0 to 1: how well lesion and"
        " background are told apart, whatever the threshold"
    ),
    "recall": "share of the lesion voxels that were found (sensitivity), 0 to 1",
    "precision": "share of the voxels called lesion that are lesion (positive predictive value), 0 to 1",
    "Dice": "overlap of prediction and reference, 2 TP / (2 TP + FP + FN), 0 to 1",
    "F2": "mean of recall and precision that weighs recall more; the threshold with the best F2 is the one in use",
    "BF16": "16-bit floating point, the baseline that every recipe is compared with",
    "FP4, NVFP4": "four-bit floating point: 16 values share one 8-bit scale, a tensor one 32-bit scale",
    "recipe": "which products of a training step run in FP4, and with which techniques",
    "model": "an architecture at a scale (its number of parameters)",
    "cell": "one training: a model, a recipe, a fold and a seed",
    "seed": "what fixes initial weights, order of the data and augmentation; the same under every recipe",
    "fold": "a fixed part of the patients that a training is validated on and not trained on",
    "pair": "a cell and the BF16 cell of the same model, fold and seed",
    "margin": "the loss of recall or AUPRC that is taken not to matter",
    "Holm": "correction of p for the number of comparisons: the chance of even one false finding stays below 5 %",
}
"""Word -> what it means, in the order that they are read."""


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
