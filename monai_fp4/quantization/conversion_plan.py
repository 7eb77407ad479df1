"""Decide for every layer of a network what becomes of it, and build the FP4 layers; nothing is changed yet.

Why a layer stays in high precision is for `monai_fp4.quantization.layer_rules` to say, or for the FP4 layer itself,
which refuses sizes that blocks do not allow. What a backend does not take, the emulation computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.backends import BACKENDS, Backend
from monai_fp4.quantization.conversion_report import Action, LayerReport
from monai_fp4.quantization.heads import SpecialLayers
from monai_fp4.quantization.layer_rules import attends, reason_to_stay
from monai_fp4.quantization.layers import channels
from monai_fp4.quantization.layers.attention import fp4_attention
from monai_fp4.quantization.recipes import AttentionPrecision, Operand, Recipe

__all__ = ["plan"]

_IN_FP4 = {"action": Action.SWAPPED, "reason": "products of attention in FP4, softmax high", "backend": "emulated"}


def plan(
    model: nn.Module, recipe: Recipe, skip: Sequence[str], special: SpecialLayers, backend: Backend
) -> tuple[dict[nn.Module, nn.Module], list[LayerReport]]:
    """The FP4 twin of each layer and attention block that becomes one, and what is reported of all of them."""
    twins: dict[nn.Module, nn.Module] = {}
    layers: list[LayerReport] = []
    counted: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        attention = fp4_attention(type(module))
        unknown = recipe.attention is AttentionPrecision.FP4 and not own and attends(module)
        if not own and attention is None and not unknown:
            continue
        twin, block = None, attention is not None or unknown
        reason = reason_to_stay(name, module, recipe, skip, special, block=block)
        if reason is not None:
            outcome: dict[str, Any] = {"action": Action.LEFT, "reason": reason}
        elif attention is not None:
            twin, outcome = attention.from_float(module, recipe), _IN_FP4
        else:
            twin, outcome = _layer(module, recipe, backend)
        if twin is not None:
            twins[module] = twin
        sizes = channels(module) or (None, None)
        layers.append(
            LayerReport(
                name=name,
                kind=type(module).__name__,
                in_channels=sizes[0],
                out_channels=sizes[1],
                parameters=sum(p.numel() for p in own if p not in counted and not nn.parameter.is_lazy(p)),
                **outcome,
            )
        )
        counted.update(own)
    return twins, layers


def _layer(module: nn.Module, recipe: Recipe, backend: Backend) -> tuple[nn.Module | None, dict[str, Any]]:
    """Build the FP4 layer, or say why not."""
    refused = backend.refuses(module, recipe)
    builder = BACKENDS["emulated"] if refused else backend
    try:
        replacement = builder.build(module, recipe)
    except ConfigError as error:  # sizes that blocks do not allow; nothing is skipped silently, so the sentence is kept
        return None, {"action": Action.LEFT, "reason": str(error)}
    padding = _padding(module, recipe)
    outcome = {
        "action": Action.PADDED if padding else Action.SWAPPED,
        "reason": "; ".join(filter(None, [padding, refused])) or "whole blocks",
        "backend": builder.name,
    }
    return replacement, outcome


def _padding(module: nn.Module, recipe: Recipe) -> str:
    sizes = channels(module)
    if sizes is None:
        return ""
    inputs, outputs, groups = sizes
    block = recipe.scheme_of(Operand.WEIGHT).block_size
    padded = [
        f"{side} channels {size // groups} -> {size // groups + missing}"
        for side, size in (("input", inputs), ("output", outputs))
        if (missing := -(size // groups) % block)
    ]
    return ", ".join(padded) + (" per group" if padded and groups > 1 else "")
