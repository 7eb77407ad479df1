"""Rules of which layers stay in high precision, and why, in the order in which `convert` asks them.

1. The recipe quantizes nothing.
2. The name matches a pattern of ``skip``.
3. The recipe's overrides name the layer: kept in BF16, or quantized although rules 5 and 6 would keep it.
4. The module is no layer that FP4 has a product for: norms, embeddings, parameters held directly, unknown classes; or
   it is one whose ``forward`` somebody replaced, or whose weight is in another dtype or no plain tensor.
5. It has fewer than 16 input or output channels (per group), less than one block: the image stem, and heads for few
   classes.
6. It is an output head or a stem, see `monai_fp4.quantization.heads`.

Every rule answers with the reason in words, or with None for "quantize it".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from monai_fp4.quantization.class_swap import has_own_forward
from monai_fp4.quantization.formats.rounding import dtype_names
from monai_fp4.quantization.heads import SpecialLayers
from monai_fp4.quantization.layers import LAYER_TYPES, channels, fp4_layer, overridden
from monai_fp4.quantization.layers.attention import ATTENTION_TYPES, fp4_attention
from monai_fp4.quantization.layers.base import ADDED_ATTRIBUTES
from monai_fp4.quantization.numerics import BLOCK_SIZE, SUPPORTED_DTYPES
from monai_fp4.quantization.patterns import names_part
from monai_fp4.quantization.recipes import AttentionPrecision, Precision, Recipe, matches

__all__ = ["KNOWN_ATTENTION", "attends", "reason_to_stay"]

KNOWN_ATTENTION = f"MONAI's {', '.join(kind.__name__ for kind in ATTENTION_TYPES)}, and classes that declare `fp4_type`"
"""The attention blocks whose products can be in FP4, in words."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_FEW = 4  # channels of an image, classes of a small task; a bottleneck may have five to fifteen as well
_NO_PRODUCT: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (_NORMS, "normalisation stays in high precision"),
    ((nn.Embedding, nn.EmbeddingBag), "a table look-up has no product to quantize"),
    ((nn.PReLU,), "the slope of an activation, no product to quantize"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent layers have no FP4 counterpart here"),
    ((torch.jit.ScriptModule,), "compiled by torch.jit, which fixed what it computes: convert before that"),
    (
        (nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear),
        "torch's fused attention reads its weights directly; use MONAI's SABlock for FP4",
    ),
)


def reason_to_stay(
    name: str, module: nn.Module, recipe: Recipe, skip: Sequence[str], special: SpecialLayers, *, block: bool
) -> str | None:
    """Why a layer, or an attention ``block``, stays in high precision by the first rule that says so, or None."""
    reason = _reason_by_name(name, recipe, skip)
    if block:
        return reason or _reason_by_attention(module, recipe) or _reason_by_attributes(module)
    return reason or _reason_by_class(module) or _reason_by_channels(name, module, recipe, special)


def _reason_by_attention(module: nn.Module, recipe: Recipe) -> str | None:
    """Why the products of an attention block stay; its projections are layers of their own."""
    if recipe.attention is not AttentionPrecision.FP4:
        return f"recipe {recipe.name} keeps the products of attention in high precision"
    if fp4_attention(type(module)) is None:
        return f"its products of attention stay in high precision: FP4 ones are known for {KNOWN_ATTENTION}"
    return "its forward was replaced on this instance: convert before that" if has_own_forward(module) else None


def _reason_by_class(module: nn.Module) -> str | None:
    """Why a module of this class cannot be quantized, or None if it can."""
    for classes, reason in _NO_PRODUCT:
        if isinstance(module, classes):
            return reason
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "not initialised yet: run one forward pass before convert"
    if fp4_layer(type(module)) is not None:
        return _reason_by_state(module)
    kind = type(module).__name__
    for known in LAYER_TYPES:
        if isinstance(module, known):
            return (
                f"{kind} is a subclass of {known.__name__} with its own {', '.join(overridden(type(module)))}, and may"
                " compute something else: if it does not, say so with register_layer"
            )
    held = ", ".join(name for name, parameter in module._parameters.items() if parameter is not None)
    return f"{kind} holds {held} itself, and is no layer that this package knows"


def _reason_by_state(module: nn.Module) -> str | None:
    """Why a layer of a known class would not compute as its class says, or None."""
    weight = module._parameters.get("weight")
    if not isinstance(weight, nn.Parameter) or "parametrizations" in module._modules:
        return "its weight or bias is computed from other parameters (weight_norm and the like)"
    if has_own_forward(module):
        return "its forward was replaced on this instance (by a hook of accelerate, say): convert before that"
    if channels(module) is None:
        return f"{type(module).__name__} does not say how many channels it has, as the class that it derives from does"
    if weight.dtype not in SUPPORTED_DTYPES:
        return f"its weight is {weight.dtype}, and FP4 is rounded from {dtype_names(SUPPORTED_DTYPES)}"
    if is_traceable_wrapper_subclass(weight) and not hasattr(weight, "full_tensor"):  # fully_shard gathers a DTensor
        return f"its weight is a {type(weight).__name__}, which is no tensor in plain memory"
    return _reason_by_attributes(module)


def _reason_by_attributes(module: nn.Module) -> str | None:
    """Why a layer or attention block has no room for what its FP4 counterpart keeps beside its parameters, or None."""
    taken = [name for name in ADDED_ATTRIBUTES if hasattr(module, name)]
    return (
        f"it has attributes of its own called {', '.join(taken)}, which FP4 layers have too: rename them"
        if taken
        else None
    )


def attends(module: nn.Module) -> bool:
    """Whether a module looks like one that multiplies queries with keys itself, by its class's name.

    >>> attends(nn.Linear(2, 2)), attends(type("CrossAttentionBlock", (nn.Module,), {})())
    (False, True)
    """
    return not any(map(_named_attention, list(module.modules())[1:])) and _named_attention(module)


def _named_attention(module: nn.Module) -> bool:
    return re.search("attention|attn|SABlock", type(module).__name__, re.IGNORECASE) is not None


def _reason_by_name(name: str, recipe: Recipe, skip: Sequence[str]) -> str | None:
    """Why the options leave the layer of this name out, or None."""
    if not recipe.quantizes:
        return f"recipe {recipe.name} keeps every layer in high precision"
    for pattern in skip:
        if names_part(name, pattern):
            return f"skip pattern {pattern!r}"
    override = _override(name, recipe)
    if override is not None and recipe.precision_of(name) is Precision.BF16:
        return f"override {override!r} of the recipe keeps it in BF16"
    return None


def _reason_by_channels(name: str, layer: nn.Module, recipe: Recipe, special: SpecialLayers) -> str | None:
    """Why a layer of a known class is left all the same, or None; an override of the recipe has the last word."""
    if _override(name, recipe) is not None:
        return None
    if name in special.stems:
        return "named in stem_names of the network: its stem, or a layer that it never quantizes"
    if name in special.heads:
        return f"an output head ({special.how}): logits stay in high precision"
    sizes = channels(layer)
    if sizes is None:
        return None
    inputs, outputs, groups = sizes
    per_group = "" if groups == 1 else f" per group ({groups} groups)"
    for size, side, usual in ((inputs, "input", "the image stem"), (outputs, "output", "an output head")):
        if size // groups < BLOCK_SIZE:
            hint = f"; usually {usual}" if groups == 1 and size <= _FEW else ""
            return f"{size // groups} {side} channels{per_group}, less than one block of {BLOCK_SIZE}{hint}"
    return None


def _override(name: str, recipe: Recipe) -> str | None:
    return next((item.pattern for item in recipe.overrides if matches(name, item.pattern)), None)
