"""Which layers are output heads and stems, and stay in high precision for it.

A head makes the logits, and rounding them to four bits costs more than it saves. In this order one asks

1. the user: ``convert(..., heads=["decoder.out", "*.seg_layers.*"])``, or ``heads=[]`` for none;
2. the network: its attribute ``head_names``, as that of any of its modules, holds patterns relative to that module;
3. a forward pass: with ``convert(..., example=image)`` the heads are the layers whose result reaches an output of the
   network and no other layer, and is neither normalized on the way nor added to a stream of features;
4. the widths, see `monai_fp4.quantization.head_guess`: a head's number of output channels is what no other layer takes
   in. Where that finds nothing, it is the last layer, unless the network ends in a norm or in the projection to
   queries, keys and values: then it has none. Further heads of the same width, of deep supervision say, are known by
   their names.

The last is a guess, and the report says so. Heads of fewer than 16 channels, the usual ones, stay in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from monai_fp4.quantization.head_guess import guess_heads, with_their_like
from monai_fp4.quantization.head_search import reached_last
from monai_fp4.quantization.layers import channels
from monai_fp4.quantization.patterns import are_patterns, named_by, names_part

__all__ = ["SpecialLayers", "find_special_layers"]


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
    sizes = {name: channels(module) for name, module in model.named_modules()}
    layers = {name: size[:2] for name, size in sizes.items() if size is not None}
    declared, notes = _declared(model, "head_names", layers)
    stems, more = _declared(model, "stem_names", layers)
    notes += more
    found: Iterable[str]
    if heads is not None:
        found, how = named_by("heads", heads, layers, model), "named in heads"
    elif declared is not None:
        found, how = declared, "named in head_names of the network"
    elif example is not None:
        found, how = with_their_like(reached_last(model, layers, example), layers), "found by running the example"
    elif len(layers) < 2:  # a single layer is what the caller wants quantized, not a head
        found, how = (), "none"
    else:
        found, how = guess_heads(model, layers)
    return SpecialLayers(frozenset(found), frozenset(stems or ()), how, notes)


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
            whole = f"{prefix}.{pattern}" if prefix else pattern
            names |= {name for name in layers if names_part(name, whole)}
        if names or (texts and not patterns):
            declared = (declared or set()) | names
        else:
            notes.append(
                f"{attribute} of {prefix or type(model).__name__} names no layer ({patterns!r:.60}) and was passed over"
            )
    return declared, tuple(notes)
