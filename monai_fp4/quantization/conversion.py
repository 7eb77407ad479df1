"""Swap a model's layers for their FP4 counterparts, and report what became of every one of them.

The model is converted **in place** and returned, with its report. Every layer stays the object that it is and changes
its class, so whatever refers to it sees the FP4 layer: another module, a list, a hook's handle, a sharding wrapper.
Layers keep their names, parameters and ``state_dict`` keys, so an optimizer that already holds the parameters stays
valid, and checkpoints load into the unconverted network and back.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 48), nn.Linear(48, 1))
>>> model, report = convert(model, "full")
>>> [f"{layer.name} {layer.kind}: {layer.action}" for layer in report.layers]
['0 Linear: swapped', '1 LayerNorm: left', '2 Linear: swapped', '3 Linear: left']
>>> report.layers[3].reason
'an output head (guessed: nothing takes its channels in): logits stay in high precision'
>>> set_active(model, False)  # the precision schedule: the last steps in high precision
2

What stays in high precision is decided by `monai_fp4.quantization.layer_rules`; what computes the rest by
`monai_fp4.quantization.backends`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.backends import AUTO, select_backend
from monai_fp4.quantization.class_swap import (
    become,
    become_float,
    float_type_of,
    has_own_forward,
    leave_fused_paths,
    rebind_methods,
    restore_fused_paths,
)
from monai_fp4.quantization.conversion_plan import plan
from monai_fp4.quantization.conversion_report import Action, ConversionReport, LayerReport
from monai_fp4.quantization.coverage import Coverage
from monai_fp4.quantization.heads import find_special_layers
from monai_fp4.quantization.layer_rules import KNOWN_ATTENTION
from monai_fp4.quantization.layers.attention import FP4Attention
from monai_fp4.quantization.patterns import named_by
from monai_fp4.quantization.recipes import AttentionPrecision, Recipe, matches
from monai_fp4.quantization.streams import check_stream, number_layers

__all__ = ["Action", "ConversionReport", "LayerReport", "convert", "quantized_layers", "set_active", "unconvert"]


def convert(
    model: nn.Module,
    recipe: str | Mapping[str, Any] | Recipe,
    backend: str = AUTO,
    skip: Sequence[str] = (),
    *,
    heads: Sequence[str] | None = None,
    example: Any | None = None,
    dtype: torch.dtype | None = None,
    stream: int | None = None,
) -> tuple[nn.Module, ConversionReport]:
    """Convert a model to a recipe, in place.

    A model that was converted before is taken back to high precision first, so the result depends on the last call
    only.

    Args:
        model: any network; its hooks, training mode, devices and dtypes are kept. Its attributes ``head_names`` and
            ``stem_names``, if it has them, name layers that stay in high precision.
        recipe: a name, the fields of a recipe, or a recipe.
        backend: a name of :data:`monai_fp4.quantization.backends.BACKENDS`, or ``"auto"``.
        skip: patterns over full module names of layers and attention blocks to leave alone, see
            `monai_fp4.quantization.patterns`.
        heads: patterns of the output heads, which stay in high precision; an empty list for none. By default they are
            found, see `monai_fp4.quantization.heads`.
        example: an input of the model (a tuple or mapping of arguments) to find the heads with, by running it once.
        dtype: what the layers will compute in, for choosing the backend: give BF16 if the model will train under BF16
            autocast. By default the dtype of the autocast that is on now, else that of the parameters.
        stream: number of the stream that stochastic rounding draws its bits from. By default the first that no other
            converted model holds, see `monai_fp4.quantization.streams`.

    Returns:
        The model, which is the same object, and the report.

    Raises:
        ConfigError: the model is no module, the recipe or the backend is unknown or cannot be used here, another option
            is no value for it, or a pattern of ``skip`` or ``heads`` matches nothing. The model is unchanged then.
    """
    _check_module(model)
    recipe = Recipe.from_config(recipe)
    named_by("skip", skip, [name for name, _ in model.named_modules()], model)
    check_stream(stream)
    chosen = select_backend(backend, *_where(model, dtype))
    special = find_special_layers(model, heads, example)
    unconvert(model)
    twins, layers = plan(model, recipe, skip, special, chosen)
    before = {module: type(module) for module in twins}
    for module, twin in twins.items():
        become(module, twin)
    rebind_methods(model, before)
    drawn = number_layers(twins, stream) if recipe.stochastic_rounding and twins else None
    notes = (
        *special.notes,
        *leave_fused_paths(model),
        *_notes(model, recipe, layers, drawn if stream is None else None),
    )
    return model, ConversionReport(
        recipe.name, chosen.name, tuple(layers), notes, Coverage(dict(quantized_layers(model)))
    )


def unconvert(model: nn.Module) -> nn.Module:
    """Take every FP4 layer of a model back to high precision, in place; parameters, hooks and names stay.

    Returns:
        The model, which is the same object.

    Raises:
        ConfigError: the model is no module, or the ``forward`` of an FP4 layer was replaced since the conversion. The
            model is unchanged then.
    """
    _check_module(model)
    layers = list(quantized_layers(model))
    for name, module in layers:
        if has_own_forward(module):  # and it may call the FP4 layer's
            raise ConfigError(
                f"unconvert expected layers as convert left them, found that the forward of {name or 'the model'!r} was"
                " replaced since: undo that first (accelerate: remove_hook_from_module)"
            )
    before = {module: type(module) for _, module in layers}
    for module in before:
        become_float(module)
    rebind_methods(model, before)
    restore_fused_paths(model)
    return model


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every FP4 layer and FP4 attention block of a converted model, in module order."""
    for name, module in model.named_modules():
        if float_type_of(module) is not None:
            yield name, module


def set_active(model: nn.Module, active: bool) -> int:
    """Switch all FP4 layers of a converted model on, or to high precision, as the precision schedule does.

    Returns:
        The number of FP4 layers and attention blocks switched (those that already were as asked included).

    Raises:
        ConfigError: the model is no module.
    """
    _check_module(model)
    layers = [module for _, module in quantized_layers(model)]
    for module in layers:
        module.active = active  # type: ignore[assignment]
    return len(layers)


def _where(model: nn.Module, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Device of the model, and the dtype that its layers will compute in as far as it is known."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype expected one that layers compute in, such as torch.bfloat16, found {dtype!r}")
    parameter = next(model.parameters(), torch.empty(0))
    device = parameter.device
    if dtype is None and device.type == "meta":  # autocast does not know it
        dtype = parameter.dtype
    if dtype is None:
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else parameter.dtype
    return device, dtype


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"expected a network, which is a torch.nn.Module, found {model!r:.80}: build it first, and put several in"
            " an nn.ModuleList"
        )


def _notes(model: nn.Module, recipe: Recipe, layers: Sequence[LayerReport], stream: int | None) -> tuple[str, ...]:
    notes = []
    if stream:
        notes.append(
            f"stochastic rounding draws from stream {stream}; alone, a model draws from stream 0: for bits that depend"
            " on no other model give convert the number of its stream"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        notes.append(
            "parameters are on device meta, where no backend can be asked: the emulation was chosen; convert again on"
            " the device that will compute"
        )
    if recipe.quantizes and not any(layer.quantized for layer in layers):
        notes.append("no layer computes in FP4: this model trains exactly as under recipe bf16")
    attends = any(isinstance(module, FP4Attention) for module in model.modules())
    if recipe.attention is AttentionPrecision.FP4 and not attends:
        notes.append(f"attention in FP4 was asked for and no block was swapped; known are {KNOWN_ATTENTION}")
    for override in recipe.overrides:  # a note, not an error: one recipe may serve networks with different names
        if not any(matches(layer.name, override.pattern) for layer in layers):
            notes.append(f"override {override.pattern!r} of recipe {recipe.name} matches no layer of this model")
    return tuple(notes)
