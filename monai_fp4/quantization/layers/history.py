"""What an FP4 layer remembers of its own calls: how often it ran, and where it stands in its stream of random bits.

It lies beside parameters and buffers and in no ``state_dict``, so checkpoints are those of the float layer.

**Stochastic rounding has a stream of its own.** It draws nothing from torch's generators, so that a training under
recipe ``sr`` shuffles and drops out as one under ``full`` with the same seed. A key follows from four numbers: the
seed, the rank of the process, the number of the layer, and how many keys the layer has drawn under that seed. Ranks
that were seeded alike thus round independently, and an average over them averages the rounding out.

The seed is torch's own, ``torch.initial_seed()``, which ``torch.manual_seed`` sets: whoever seeds every epoch resumes
at the start of any epoch with the same bits. :func:`seed_rounding` sets another, and begins the stream anew.

A graph that a compiler or an exporter made holds no Python objects, so there the layer's operators get
:attr:`LayerHistory.stream`, a tensor, and find the history by its number when they run. Compiled steps thus draw the
next keys of the same stream, and layers that differ in nothing else share one graph.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

__all__ = ["LayerHistory", "history_of", "history_of_stream", "seed_rounding"]


_by_stream: WeakValueDictionary[int, LayerHistory] = WeakValueDictionary()
_loaded: list[LayerHistory] = []  # of programs, which have no layer to keep them


class LayerHistory:
    """The passes and the draws of one layer.

    Attributes:
        number: of the layer in its model; part of every key.
        passes: how many forward passes it computed in FP4 (of an attention block's operators: products).
        observer: called at each pass of a training; None for nobody.
        stream: int64, one number in the CPU's memory, by which `history_of_stream` finds the history.
    """

    def __init__(self, number: int = 0) -> None:
        self.number, self.passes = number, 0
        self.observer: Callable[[], None] | None = None
        self._seed: tuple[int, ...] | None = None
        self._draws: Counter[tuple[int, ...]] = Counter()
        self._name(secrets.randbits(63))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"observer": None}  # a copy is another model, which nobody observes
        del state["stream"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._name(secrets.randbits(63))

    def _name(self, number: int) -> None:
        with torch.inference_mode(False):  # it will be saved for a backward pass
            self.stream = torch.tensor(number, device="cpu")
        _by_stream[number] = self

    def record(self) -> None:
        """Note a forward pass in FP4, and tell who observes if autograd records it."""
        self.passes += 1
        if self.observer is not None and torch.is_grad_enabled():
            self.observer()

    def record_gradients(self) -> None:
        """Tell who observes of a backward pass whose forward pass could not tell, in a compiled graph."""
        if self.observer is not None:
            self.observer()

    def next_key(self) -> int:
        """The next key of the layer's stream, a number from ``-2^63`` to ``2^63 - 1``."""
        seed = self._seed or (torch.initial_seed(),)
        draw = self._draws[seed]
        self._draws[seed] += 1
        digest = hashlib.blake2b(repr((seed, _rank(), self.number, draw)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    def seed(self, *numbers: int) -> None:
        """Begin the stream of these numbers; of torch's own seed if there are none."""
        self._seed = numbers or None
        self._draws.clear()


def history_of(layer: nn.Module) -> LayerHistory:
    """The history of an FP4 layer or attention block."""
    history = layer.__dict__["history"]
    assert isinstance(history, LayerHistory)
    return history


def history_of_stream(stream: Tensor | None) -> LayerHistory | None:
    """The history whose `LayerHistory.stream` this is; None where there is no stream.

    A program that was exported, saved and loaded in another process brings a number that no layer of this process has.
    It begins a stream of its own, which follows from that number and the seed.
    """
    if stream is None:
        return None
    number = int(stream)
    history = _by_stream.get(number)
    if history is None:
        history = LayerHistory(number)
        history._name(number)
        _loaded.append(history)
    return history


def seed_rounding(model: nn.Module, *numbers: int) -> None:
    """Seed the stochastic rounding of a converted model, without touching torch's generators.

    Args:
        model: the model.
        numbers: a seed, and whatever else names the place in the training: ``seed_rounding(model, seed, epoch)`` at the
            start of each epoch makes every epoch repeatable and resumable. Without numbers the seed is again that of
            ``torch.manual_seed``. The stream begins anew either way.
    """
    for module in model.modules():
        history = module.__dict__.get("history")
        if isinstance(history, LayerHistory):
            history.seed(*numbers)


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
