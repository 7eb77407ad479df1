"""Recipes, which say what is quantized, and how: a recipe is data, and the eleven recipes of the study are one table.

A linear layer or a convolution computes three products in a training step: its output (forward), the gradient of its
input and the gradient of its weight (backward). A recipe says which of them run in FP4 and with which techniques:

* **stochastic rounding** keeps rounded gradients unbiased;
* the **random Hadamard transform** spreads outliers in the two operands of the weight gradient;
* **2D weights** share scales over 16 x 16 blocks, so that forward and backward see the same quantized weight.

Two more fields change the **number format**: ``four_over_six`` the scales of NVFP4 blocks, for weights, activations or
both, and ``format`` the whole format, to MXFP4 (see :mod:`monai_fp4.quantization.formats.scheme`). The eleven have
neither.

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

Where to read on: `choices` has the values that fields take, `recipe` the fields and the table of the eleven,
`consistency` which of them contradict each other, `encodings` how the operands of a layer's products follow from them.
"""

from monai_fp4.quantization.recipes.choices import (
    AttentionPrecision,
    Backward,
    Format,
    FourOverSix,
    Operand,
    Override,
    Precision,
    matches,
)
from monai_fp4.quantization.recipes.encodings import Encoding, Encodings
from monai_fp4.quantization.recipes.recipe import FURTHER_RECIPES, PAPER_RECIPES, RECIPES, Recipe

__all__ = [
    "FURTHER_RECIPES",
    "PAPER_RECIPES",
    "RECIPES",
    "AttentionPrecision",
    "Backward",
    "Encoding",
    "Encodings",
    "Format",
    "FourOverSix",
    "Operand",
    "Override",
    "Precision",
    "Recipe",
    "matches",
]
