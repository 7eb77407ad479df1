"""Swap a model's layers for their FP4 counterparts, and report what became of every one of them.

The model is converted **in place** and returned, with its report. Layers keep their names, parameters and
``state_dict`` keys, so an optimizer that already holds the parameters stays valid, and checkpoints load into the
unconverted network and back.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 48), nn.Linear(48, 1))
>>> model, report = convert(model, "full")
>>> [f"{layer.name} {layer.kind}: {layer.action}" for layer in report.layers]
['0 Linear: swapped', '1 LayerNorm: left', '2 Linear: swapped', '3 Linear: left']
>>> report.layers[3].reason
'the output head (named in head_names, or the last layer): logits stay in high precision'
>>> set_active(model, False)  # the precision schedule: the last steps in high precision
2

What stays in high precision is decided by `monai_fp4.quantization.layer_rules`; what computes the rest by
`monai_fp4.quantization.backends`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.backends import AUTO, BACKENDS, Backend, select_backend
from monai_fp4.quantization.conversion_report import Action, ConversionReport, LayerReport
from monai_fp4.quantization.layer_rules import (
    channels,
    reason_by_channels,
    reason_by_class,
    reason_by_name,
    special_names,
)
from monai_fp4.quantization.layers import LAYER_TYPES, NVFP4Layer
from monai_fp4.quantization.layers.attention import ATTENTION_TYPES, FP4Attention, fp4_attention
from monai_fp4.quantization.recipes import AttentionPrecision, Operand, Recipe

__all__ = ["Action", "ConversionReport", "LayerReport", "convert", "quantized_layers", "set_active", "unconvert"]


def convert(
    model: nn.Module,
    recipe: str | Mapping[str, Any] | Recipe,
    backend: str = AUTO,
    skip: Sequence[str] = (),
    *,
    dtype: torch.dtype | None = None,
) -> tuple[nn.Module, ConversionReport]:
    """Convert a model to a recipe, in place.

    A model that was converted before is taken back to high precision first, so the result depends on the last call
    only.

    Args:
        model: any network; its hooks, training mode, devices and dtypes are kept. Its attributes ``head_names`` and
            ``stem_names``, if it has them, name layers that stay in high precision.
        recipe: a name, the fields of a recipe, or a recipe.
        backend: a name of :data:`monai_fp4.quantization.backends.BACKENDS`, or ``"auto"``.
        skip: patterns over full module names (:mod:`fnmatch`) of layers and attention blocks to leave alone.
        dtype: what the layers will compute in, for choosing the backend: give BF16 if the model will train under BF16
            autocast. By default the dtype of the autocast that is on now, else that of the parameters.

    Returns:
        The model (the same object, unless the model is itself a single layer) and the report.

    Raises:
        ConfigError: the recipe or the backend is unknown or cannot be used here, or a ``skip`` pattern matches no
            module. The model is unchanged then.
    """
    recipe = Recipe.from_config(recipe)
    _check_skip(model, skip)
    chosen = select_backend(backend, *_where(model, dtype))
    model = unconvert(model)
    heads, stems = special_names(model, [name for name, module in model.named_modules() if type(module) in LAYER_TYPES])
    replacements: dict[nn.Module, nn.Module] = {}
    layers: list[LayerReport] = []
    counted: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None]
        attention = fp4_attention(type(module))
        if not own and attention is None:
            continue
        reason = reason_by_name(name, recipe, skip)
        if attention is not None:
            replacement, outcome = _attention(module, attention, recipe, reason)
        else:
            reason = reason or reason_by_class(module) or reason_by_channels(name, module, recipe, heads, stems)
            replacement, outcome = _layer(module, recipe, chosen, reason)
        if replacement is not None:
            replacements[module] = replacement
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
    model = _replace(model, replacements)
    attends = any(isinstance(replacement, FP4Attention) for replacement in replacements.values())
    return model, ConversionReport(recipe.name, chosen.name, tuple(layers), _notes(recipe, layers, attends))


def unconvert(model: nn.Module) -> nn.Module:
    """Take every FP4 layer of a model back to high precision, in place; parameters, hooks and names stay.

    Returns:
        The model: the same object, unless it is itself a single FP4 layer.
    """
    plain = {module: _to_float(module) for _, module in quantized_layers(model)}
    return _replace(model, plain)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every FP4 layer and FP4 attention block of a converted model, in module order."""
    for name, module in model.named_modules():
        if _float_type(module) is not None:
            yield name, module


def set_active(model: nn.Module, active: bool) -> int:
    """Switch all FP4 layers of a converted model on, or to high precision, as the precision schedule does.

    Returns:
        The number of FP4 layers and attention blocks switched (those that already were as asked included).
    """
    layers = [module for _, module in quantized_layers(model)]
    for module in layers:
        module.active = active  # type: ignore[assignment]
    return len(layers)


def _layer(
    module: nn.Module, recipe: Recipe, backend: Backend, reason: str | None
) -> tuple[nn.Module | None, dict[str, Any]]:
    """Build the FP4 layer, or say why not."""
    if reason is not None:
        return None, {"action": Action.LEFT, "reason": reason}
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


def _attention(
    module: nn.Module, kind: type[FP4Attention], recipe: Recipe, reason: str | None
) -> tuple[nn.Module | None, dict[str, Any]]:
    """Swap the block around the attention products; its projections are layers of their own."""
    if reason is None and recipe.attention is not AttentionPrecision.FP4:
        reason = f"recipe {recipe.name} keeps the products of attention in high precision"
    if reason is not None:
        return None, {"action": Action.LEFT, "reason": reason}
    outcome = {"action": Action.SWAPPED, "reason": "products of attention in FP4, softmax high", "backend": "emulated"}
    return kind.from_float(module, recipe), outcome


def _padding(module: nn.Module, recipe: Recipe) -> str:
    sizes = channels(module)
    assert sizes is not None, "every class of LAYER_TYPES has channels"
    inputs, outputs, groups = sizes
    block = recipe.scheme_of(Operand.WEIGHT).block_size
    padded = [
        f"{side} channels {size // groups} -> {size // groups + missing}"
        for side, size in (("input", inputs), ("output", outputs))
        if (missing := -(size // groups) % block)
    ]
    return ", ".join(padded) + (" per group" if padded and groups > 1 else "")


def _float_type(module: nn.Module) -> type[nn.Module] | None:
    """The high-precision class behind an FP4 module (a backend may subclass the emulated layer), else None."""
    return module.float_type if isinstance(module, (NVFP4Layer, FP4Attention)) else None


def _to_float(module: nn.Module) -> nn.Module:
    """Undo ``from_float``: the plain class around the same state."""
    plain_type = _float_type(module)
    assert plain_type is not None, "quantized_layers yields FP4 modules only"
    plain = plain_type.__new__(plain_type)
    plain.__dict__.update(
        {key: value for key, value in module.__dict__.items() if key not in ("recipe", "active", "_te")}
    )
    return plain


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put the new modules wherever the old ones stand: in every parent that shares them, at every depth."""
    parents = [*model.modules(), *replacements.values()]
    for parent in parents:
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(model, model)


def _where(model: nn.Module, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Device of the model, and the dtype that its layers will compute in as far as it is known."""
    parameter = next(model.parameters(), torch.empty(0))
    device = parameter.device
    if dtype is None:
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else parameter.dtype
    return device, dtype


def _check_skip(model: nn.Module, skip: Sequence[str]) -> None:
    if isinstance(skip, str):
        raise ConfigError(f"skip expected a list of patterns over module names, found {skip!r}: put it in a list")
    names = [name for name, _ in model.named_modules()]
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"skip expected patterns that match a module of {type(model).__name__}, found {pattern!r}, which"
                f" matches none: the names look like {', '.join(map(repr, names[1:4]))}"
            )


def _notes(recipe: Recipe, layers: Sequence[LayerReport], attends: bool) -> tuple[str, ...]:
    notes = []
    if recipe.quantizes and not any(layer.quantized for layer in layers):
        notes.append("no layer computes in FP4: this model trains exactly as under recipe bf16")
    if recipe.attention is AttentionPrecision.FP4 and not attends:
        known = ", ".join(kind.__name__ for kind in ATTENTION_TYPES)
        notes.append(
            f"attention in FP4 was asked for and no block was swapped; known are MONAI's {known}, and classes that"
            " declare `fp4_type`"
        )
    for override in recipe.overrides:  # a note, not an error: one recipe may serve networks with different names
        if not any(fnmatchcase(layer.name, override.pattern) for layer in layers):
            notes.append(f"override {override.pattern!r} of recipe {recipe.name} matches no layer of this model")
    return tuple(notes)
