"""What an FP4 layer remembers of its own calls: how often it ran, and where it stands in its stream of random bits.

It lies beside parameters and buffers and in no ``state_dict``, so checkpoints are those of the float layer.

**Stochastic rounding has a stream of its own.** It draws nothing from torch's generators, so that a training under
recipe ``sr`` shuffles and drops out as one under ``full`` with the same seed. A key follows from four numbers: the
seed, the rank of the process, the number of the layer, and how many keys the layer has drawn under that seed. Ranks
that were seeded alike thus round independently, and an average over them averages the rounding out.

The seed is torch's own, ``torch.initial_seed()``, which ``torch.manual_seed`` sets: whoever seeds every epoch resumes
at the start of any epoch with the same bits. :func:`seed_rounding` sets another, and begins the stream anew.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["LayerHistory", "history_of", "seed_rounding"]


class LayerHistory:
    """The passes and the draws of one layer.

    Attributes:
        number: of the layer in its model; part of every key.
        passes: how many forward passes it computed in FP4.
        observer: called with the layer at each of these passes that autograd records; None for nobody.
    """

    def __init__(self, number: int = 0) -> None:
        self.number, self.passes = number, 0
        self.observer: Callable[[nn.Module], None] | None = None
        self._seed: tuple[int, ...] | None = None
        self._draws: Counter[tuple[int, ...]] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"observer": None}  # a copy is another model, which nobody observes

    def record(self, layer: nn.Module) -> None:
        """Note a forward pass in FP4."""
        self.passes += 1
        if self.observer is not None and torch.is_grad_enabled():
            self.observer(layer)

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
