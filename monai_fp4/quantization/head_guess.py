"""Guess the output heads of a network from the widths and the names of its layers, without running it.

A head's number of output channels is what no other layer takes in. The exceptions each come from a network that showed
them: a width that is taken in parts (queries, keys and values; a shuffle; the shifts and scales that a diffusion
transformer computes), a vector that becomes an image (the first layer of a generator), a weight that is tied to a table
look-up. Where nothing is found, the head is the last layer; of an autoencoder, the last layer of the part that answers
in the channels of the input.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from monai_fp4.quantization.numerics import BLOCK_SIZE

__all__ = ["guess_heads", "with_their_like"]

Widths = Mapping[str, tuple[int, int]]
"""Input and output channels of every layer that multiplies, by name, in module order."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_HEAD_NAME = re.compile(r"head|classif|logit|output|final|seg|supervis|aux|^(fc|out|pred)", re.IGNORECASE)
_PARTS, _COPIES = (1, 2, 3, 4, 6, 8, 9), (1, 2, 3, 4)


def guess_heads(model: nn.Module, layers: Widths) -> tuple[set[str], str]:
    """The names of the heads, and how they were guessed, in words."""
    taken = {inputs for inputs, _ in layers.values()}
    tables: list[Tensor] = []
    ending: nn.Module | None = None
    for module in model.modules():
        if isinstance(module, _NORMS):
            taken.add(_norm_width(module))
        elif isinstance(module, nn.Embedding):
            tables.append(module.weight)
        ending = module if next(module.parameters(recurse=False), None) is not None else ending
    tied = {name for name in layers if any(model.get_submodule(name)._parameters.get("weight") is t for t in tables)}
    if tied:
        return with_their_like(tied, layers), "guessed: its weight is that of a table look-up"
    found = {
        name
        for name, (_, outputs) in layers.items()
        if not (_is_projection(model, name, layers) or _is_taken(outputs, taken))
    }
    found -= _images(model, layers)
    last = list(layers)[-1]
    closes = not isinstance(ending, _NORMS) and not _is_projection(model, last, layers)
    if found:
        found |= {last} if closes and _HEAD_NAME.search(last) else set()
        return with_their_like(found, layers), "guessed: nothing takes its channels in"
    if not closes:
        return set(), "none"
    answering = _answering(layers)
    if answering and last not in answering:
        return with_their_like(answering, layers), "guessed: it answers in the channels of the input"
    return with_their_like({last}, layers), "guessed: the last layer in module order"


def with_their_like(found: Iterable[str], layers: Widths) -> set[str]:
    """Some heads, and those that are called heads and have as many channels: of deep supervision, auxiliary ones."""
    widths = {layers[name][1] for name in found}
    return set(found) | {name for name, (_, outputs) in layers.items() if outputs in widths and _HEAD_NAME.search(name)}


def _norm_width(norm: nn.Module) -> int:
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    shape = getattr(norm, "normalized_shape", None)
    return int(shape[-1]) if shape else int(getattr(norm, "num_features", 0))


def _is_projection(model: nn.Module, name: str, layers: Widths) -> bool:
    """Whether a layer looks like a projection to queries, keys and values, or to keys and values."""
    inputs, outputs = layers[name]
    return isinstance(model.get_submodule(name), nn.Linear) and outputs in (2 * inputs, 3 * inputs)


def _is_taken(outputs: int, taken: set[int]) -> bool:
    """Whether something takes that many channels in: all of them, in parts (a shuffle), or beside as many others."""
    whole = any(outputs == width * count for width in taken if width >= BLOCK_SIZE for count in _PARTS)
    return whole or any(outputs * count in taken for count in _COPIES)


def _images(model: nn.Module, layers: Widths) -> set[str]:
    """Linear layers whose result is the image, channels times pixels, that the convolution after them takes in."""
    return {
        name
        for name, after in itertools.pairwise(layers)
        if isinstance(model.get_submodule(name), nn.Linear)
        and isinstance(model.get_submodule(after), nn.modules.conv._ConvNd)
        and layers[after][0] >= BLOCK_SIZE
        and layers[name][1] % layers[after][0] == 0
    }


def _answering(layers: Widths) -> set[str]:
    """The last layers of the network's parts that turn features into as few channels as the first layer takes in."""
    ends = {name.partition(".")[0]: name for name in layers}.values()
    image = next(iter(layers.values()))[0]
    return {name for name in ends if layers[name][1] == image < BLOCK_SIZE <= layers[name][0]}
