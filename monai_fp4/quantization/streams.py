"""Which stream of random bits a converted model draws from, so that no two models round alike.

The key of a stochastic rounding follows from the seed, the rank, the layer's number and its draws (see
`monai_fp4.quantization.layers.history`). Layers are numbered within a model, so two models that train at once, a
generator and a discriminator or two halves converted one by one, would draw the same bits. Hence a model has a stream
of its own, a number that is part of every layer's:

* the first that no other living model holds. A program that converts one model at a time, however often, always gets
  stream 0, and its bits do not depend on what it did before;
* or the one that ``convert(..., stream=...)`` names, whatever else lives.

A model holds its stream as long as it exists and is not converted back. Copies keep the stream of the original.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.layers.history import LayerHistory, history_of

__all__ = ["check_stream", "number_layers"]

_BITS = 24  # of a layer's number, for its place in the model; the stream stands above them
_LARGEST = 2**32

# Which layers draw from each stream, and the history that each of them had then: one that was converted back since has
# none, and one that was converted again has another.
_holders: dict[int, WeakKeyDictionary[nn.Module, LayerHistory]] = {}


def check_stream(stream: object) -> None:
    """Refuse, with a ConfigError, what is no number of a stream."""
    if stream is not None and (type(stream) is not int or not 0 <= stream < _LARGEST):
        raise ConfigError(
            f"stream expected a number from 0 to {_LARGEST - 1}, or None for the next one, found {stream!r}"
        )


def number_layers(layers: Iterable[nn.Module], stream: int | None) -> int:
    """Give each layer of a converted model its number, part of the keys of its rounding.

    Args:
        layers: every FP4 layer and attention block, in module order.
        stream: the stream of the model, or None for the first that no other living model holds.

    Returns:
        The stream.
    """
    layers = list(layers)
    taken = _taken()
    if stream is None:
        if taken:
            gc.collect()  # models in circles of references, which are gone as far as their owner knows
            taken = _taken()
        stream = next(number for number in range(len(taken) + 1) if number not in taken)
    holders = _holders.setdefault(stream, WeakKeyDictionary())
    for place, layer in enumerate(layers):
        holders[layer] = history_of(layer)
        holders[layer].number = stream << _BITS | place
    return stream


def _taken() -> set[int]:
    """The streams of living models; those that nobody holds any more are forgotten."""
    for stream, holders in list(_holders.items()):
        if not any(layer.__dict__.get("history") is history for layer, history in list(holders.items())):
            del _holders[stream]
    return set(_holders)
