"""Which layers are output heads and stems, and stay in high precision for it.

A head makes the logits, and rounding them to four bits costs more than it saves. In this order one asks

1. the user: ``convert(..., heads=["decoder.out", "*.seg_layers.*"])``, or ``heads=[]`` for none;
2. the network: its attribute ``head_names``, as that of any of its modules, holds patterns relative to that module;
3. a forward pass: with ``convert(..., example=image)`` the heads are the layers whose result reaches an output of the
   network and no other layer, and is neither normalized on the way nor added to a stream of features;
4. the widths: a head's number of output channels is what no other layer takes in. Where that finds nothing, it is the
   last layer, unless the network ends in a norm or in the projection to queries, keys and values: then it has none.
   Further heads of the same width, of deep supervision say, are known by their names.

The last is a guess, and the report says so. Heads of fewer than 16 channels, the usual ones, stay in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.numerics import BLOCK_SIZE

__all__ = ["SpecialLayers", "are_patterns", "find_special_layers", "multiplies"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_HEAD_NAME = re.compile(r"head|classif|logit|output|final|seg|supervis|aux|^(fc|out|pred)", re.IGNORECASE)


@dataclass(frozen=True)
class SpecialLayers:
    """The heads and stems of a network.

    Attributes:
        heads: names of the output heads.
        stems: names of the stems.
        how: how the heads were found, in words.
        notes: what was passed over.
    """

    heads: frozenset[str]
    stems: frozenset[str]
    how: str
    notes: tuple[str, ...] = ()


def multiplies(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution of torch's, or derived from one."""
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


def are_patterns(value: object) -> bool:
    """Whether a value is a list, a tuple or a set of strings."""
    return isinstance(value, list | tuple | set | frozenset) and all(isinstance(text, str) for text in value)


def find_special_layers(
    model: nn.Module, heads: Sequence[str] | None = None, example: Any | None = None
) -> SpecialLayers:
    """Find the output heads and the stems of a network.

    Args:
        model: the network.
        heads: patterns over module names, relative to the model, or None.
        example: an input of the network to find the heads with, a tuple or mapping of arguments, or None.

    Raises:
        ConfigError: ``heads`` is no list of patterns, one of them matches no layer, or the example fails.
    """
    layers = {name: module for name, module in model.named_modules() if multiplies(module)}
    declared, notes = _declared(model, "head_names", layers)
    stems, more = _declared(model, "stem_names", layers)
    notes += more
    found: Iterable[str]
    if heads is not None:
        found, how = _named(model, heads, layers), "named in heads"
    elif declared is not None:
        found, how = declared, "named in head_names of the network"
    elif example is not None:
        found, how = _like(_reached_last(model, layers, example), layers), "found by running the example"
    elif len(layers) < 2:  # a single layer is what the caller wants quantized, not a head
        found, how = (), "none"
    else:
        guessed, how = _guess(model, layers)
        found = _like(guessed, layers)
    return SpecialLayers(frozenset(found), frozenset(stems or ()), how, notes)


def _matching(layers: Iterable[str], pattern: str) -> set[str]:
    return {name for name in layers if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}


def _named(model: nn.Module, heads: Sequence[str], layers: Iterable[str]) -> set[str]:
    if not are_patterns(heads):
        raise ConfigError(f"heads expected a list of patterns over module names, found {heads!r}: put them in a list")
    found = set()
    for pattern in heads:
        matching = _matching(layers, pattern)
        if not matching:
            raise ConfigError(
                f"heads expected patterns that match a layer of {type(model).__name__}, found {pattern!r}, which"
                f" matches none: the last layers are {', '.join(map(repr, list(layers)[-3:]))}"
            )
        found |= matching
    return found


def _declared(model: nn.Module, attribute: str, layers: Iterable[str]) -> tuple[set[str] | None, tuple[str, ...]]:
    """The layers that modules name in an attribute; None if there is none that names layers."""
    declared: set[str] | None = None
    notes = []
    for prefix, module in model.named_modules():
        try:
            patterns = getattr(module, attribute, None)
        except Exception:  # a property of somebody else's, which means something else and fails
            continue
        if patterns is None:
            continue
        names: set[str] = set()
        texts = are_patterns(patterns)
        for pattern in patterns if texts else ():
            names |= _matching(layers, f"{prefix}.{pattern}" if prefix else pattern)
        if names or (texts and not patterns):
            declared = (declared or set()) | names
        else:
            notes.append(
                f"{attribute} of {prefix or type(model).__name__} names no layer ({patterns!r:.60}) and was passed over"
            )
    return declared, tuple(notes)


def _guess(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[set[str], str]:
    taken: set[int] = set()
    ending: nn.Module | None = None
    for module in model.modules():
        if multiplies(module):
            taken.add(_widths(module)[0])
        elif isinstance(module, _NORMS):
            taken.add(_norm_width(module))
        ending = module if next(module.parameters(recurse=False), None) is not None else ending
    found = {name for name, layer in layers.items() if not _is_projection(layer) and not _is_taken(layer, taken)}
    last = list(layers)[-1]
    closes = not isinstance(ending, _NORMS) and not _is_projection(layers[last])
    if found:
        return found | (
            {last} if closes and _HEAD_NAME.search(last) else set()
        ), "guessed: nothing takes its channels in"
    return ({last}, "guessed: the last layer in module order") if closes else (set(), "none")


def _like(found: set[str], layers: Mapping[str, nn.Module]) -> set[str]:
    """Some heads, and those that are called heads and have as many channels: of deep supervision, auxiliary ones."""
    widths = {_widths(layers[name])[1] for name in found}
    return found | {name for name in layers if _widths(layers[name])[1] in widths and _HEAD_NAME.search(name)}


def _widths(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.modules.conv._ConvNd)
    return layer.in_channels, layer.out_channels


def _norm_width(norm: nn.Module) -> int:
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    shape = getattr(norm, "normalized_shape", None)
    return int(shape[-1]) if shape else int(getattr(norm, "num_features", 0))


def _is_projection(layer: nn.Module) -> bool:
    """Whether a layer looks like a projection to queries, keys and values, or to keys and values."""
    inputs, outputs = _widths(layer)
    return isinstance(layer, nn.Linear) and outputs in (2 * inputs, 3 * inputs)


def _is_taken(layer: nn.Module, taken: set[int]) -> bool:
    """Whether something takes a layer's channels in: all of them, in parts (a shuffle), or beside as many others."""
    outputs = _widths(layer)[1]
    parts, copies = (1, 2, 3, 4, 8, 9), (1, 2, 3, 4)
    whole = any(outputs == width * count for width in taken if width >= BLOCK_SIZE for count in parts)
    return whole or any(outputs * count in taken for count in copies)


def _reached_last(model: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> set[str]:
    """The layers whose results reach an output along autograd's graph, past no norm and into no other layer."""
    made: dict[Any, str] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                made[output.grad_fn] = name

        return hook

    handles = [layer.register_forward_hook(remember(name)) for name, layer in layers.items()]
    training = {module: module.training for module in model.modules()}
    state = torch.get_rng_state()
    inputs = tree_map(
        lambda leaf: (
            leaf.detach().clone().requires_grad_() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        ),
        example,
    )
    try:
        model.eval()
        with torch.enable_grad():
            output = model(**inputs) if isinstance(inputs, Mapping) else model(*_tuple(inputs))
    except Exception as error:
        raise ConfigError(
            f"example expected an input that {type(model).__name__} runs on, found one that it failed on with"
            f" {type(error).__name__}: {error}; give a tensor, a tuple or a mapping of its arguments"
        ) from error
    finally:
        torch.set_rng_state(state)
        for module, mode in training.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    ends = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    fed = {name for node in made for name in _nearest([step for step, _ in node.next_functions], made)}
    groups = [_nearest([end], made, through_norms=False) for end in ends]
    # Where a layer that feeds others is added to the output too, the output is a stream of features and has no head.
    return {name for group in groups if not group & fed for name in group}


def _nearest(nodes: Iterable[Any], made: Mapping[Any, str], through_norms: bool = True) -> set[str]:
    """Walk back from some nodes of autograd's graph to the first layers on each way."""
    found, seen, queue = set(), set(), [node for node in nodes if node is not None]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in made:
            found.add(made[node])
        elif through_norms or "Norm" not in node.name():
            queue += [step for step, _ in node.next_functions if step is not None]
    return found


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
