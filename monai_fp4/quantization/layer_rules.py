"""Rules of which layers stay in high precision, and why, in the order in which `convert` asks them.

1. The recipe quantizes nothing.
2. The name matches a pattern of ``skip``.
3. The recipe's overrides name the layer: kept in BF16, or quantized although rules 5 and 6 would keep it.
4. The module is no layer that FP4 has a product for: norms, embeddings, parameters held directly, unknown classes.
5. It has fewer than 16 input or output channels (per group), less than one block: the image stem, and heads for few
   classes.
6. It is the output head: what the network names in its attribute ``head_names`` (patterns, relative to the network),
   or the last layer in module order where it has no such attribute. ``stem_names`` works likewise, and has no default
   beyond rule 5.

Every rule answers with the reason in words, or with None for "quantize it".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from monai_fp4.quantization.layers import LAYER_TYPES
from monai_fp4.quantization.numerics import BLOCK_SIZE
from monai_fp4.quantization.recipes import Precision, Recipe

__all__ = ["channels", "reason_by_channels", "reason_by_class", "reason_by_name", "special_names"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_NO_PRODUCT: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (_NORMS, "normalisation stays in high precision"),
    ((nn.Embedding, nn.EmbeddingBag), "a table look-up has no product to quantize"),
    ((nn.PReLU,), "the slope of an activation, no product to quantize"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent layers have no FP4 counterpart here"),
    ((nn.MultiheadAttention,), "torch's fused attention reads its weights directly; use MONAI's SABlock for FP4"),
)


def channels(layer: nn.Module) -> tuple[int, int, int] | None:
    """Input channels, output channels and groups of a linear layer or convolution, else None."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, 1
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.in_channels, layer.out_channels, layer.groups
    return None


def reason_by_class(module: nn.Module) -> str | None:
    """Why a module of this class cannot be quantized, or None if it can."""
    if type(module) in LAYER_TYPES:
        if not isinstance(module._parameters.get("weight"), nn.Parameter):
            return "its weight is computed from other parameters (weight_norm and the like)"
        return None
    for classes, reason in _NO_PRODUCT:
        if isinstance(module, classes):
            return reason
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "not initialised yet: run one forward pass before convert"
    kind = type(module).__name__
    for known in LAYER_TYPES:
        if isinstance(module, known):
            return f"{kind} is a subclass of {known.__name__} and may compute something else"
    held = ", ".join(name for name, parameter in module._parameters.items() if parameter is not None)
    return f"{kind} holds {held} itself, and is no layer that this package knows"


def reason_by_name(name: str, recipe: Recipe, skip: Sequence[str]) -> str | None:
    """Why the options leave the layer of this name out, or None."""
    if not recipe.quantizes:
        return f"recipe {recipe.name} keeps every layer in high precision"
    for pattern in skip:
        if fnmatchcase(name, pattern):
            return f"skip pattern {pattern!r}"
    override = _override(name, recipe)
    if override is not None and recipe.precision_of(name) is Precision.BF16:
        return f"override {override!r} of the recipe keeps it in BF16"
    return None


def reason_by_channels(name: str, layer: nn.Module, recipe: Recipe, heads: set[str], stems: set[str]) -> str | None:
    """Why a layer of a known class is left all the same, or None; an override of the recipe has the last word."""
    if _override(name, recipe) is not None:
        return None
    if name in stems:
        return "the stem: named in stem_names of the network"
    if name in heads:
        return "the output head (named in head_names, or the last layer): logits stay in high precision"
    sizes = channels(layer)
    if sizes is None:
        return None
    inputs, outputs, groups = sizes
    per_group = "" if groups == 1 else f" per group ({groups} groups)"
    for size, side, usual in ((inputs, "input", "the image stem"), (outputs, "output", "an output head")):
        if size // groups < BLOCK_SIZE:
            hint = f"; usually {usual}" if groups == 1 else ""
            return f"{size // groups} {side} channels{per_group}, less than one block of {BLOCK_SIZE}{hint}"
    return None


def special_names(model: nn.Module, layers: Iterable[str]) -> tuple[set[str], set[str]]:
    """Find the output heads and the stems among the names of the layers.

    Args:
        model: the network; any of its modules may carry ``head_names`` and ``stem_names``, patterns relative to that
            module.
        layers: names of every linear layer and convolution, in module order.

    Returns:
        Names of the heads and of the stems.
    """
    layers = list(layers)
    found: dict[str, set[str]] = {"head_names": set(), "stem_names": set()}
    named = False
    for prefix, module in model.named_modules():
        for attribute, names in found.items():
            patterns = getattr(module, attribute, None)
            if patterns is None:
                continue
            named = named or attribute == "head_names"
            for pattern in patterns:
                full = f"{prefix}.{pattern}" if prefix else pattern
                names.update(name for name in layers if fnmatchcase(name, full) or fnmatchcase(name, f"{full}.*"))
    if not named and len(layers) > 1:  # a single layer is what the caller wants quantized, not a head
        found["head_names"].add(layers[-1])
    return found["head_names"], found["stem_names"]


def _override(name: str, recipe: Recipe) -> str | None:
    return next((item.pattern for item in recipe.overrides if fnmatchcase(name, item.pattern)), None)
