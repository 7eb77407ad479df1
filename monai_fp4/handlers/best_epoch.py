"""Which epoch of a run is the best, and when a better one is no longer waited for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BestEpoch"]


@dataclass(frozen=True)
class BestEpoch:
    """A choice among the entries of a run's history, each with its ``"epoch"`` from 1.

    Args:
        key_metric: name of the score in an entry; None where none says which epoch is better.
        lower_is_better: whether it is one of those, such as ``val_loss``.
        min_gain: by how much an epoch has to be better than the best before it.
        patience: wait for so many epochs for a better one; None waits for ever.
        warm_up: but at least until this epoch has passed; those before it count as waited.

    >>> history = [{"epoch": 1, "auprc": 0.2}, {"epoch": 2, "auprc": 0.5}, {"epoch": 3, "auprc": 0.5}, {"epoch": 4}]
    >>> BestEpoch("auprc").of(history)["epoch"], BestEpoch("auprc", patience=2).has_waited(history)
    (2, True)
    """

    key_metric: str | None
    lower_is_better: bool = False
    min_gain: float = 0.0
    patience: int | None = None
    warm_up: int = 0

    def of(self, history: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The first of the best that have a score, or the latest where none has."""
        scores = [(entry.get(self.key_metric), entry) for entry in history] if self.key_metric is not None else []
        known = [(score, entry) for score, entry in scores if score is not None and not math.isnan(score)]
        if not known:
            return history[-1]
        sign = -1 if self.lower_is_better else 1
        best, chosen = known[0]
        for score, entry in known:
            if sign * score > sign * best + self.min_gain:
                best, chosen = score, entry
        return chosen

    def has_waited(self, history: Sequence[dict[str, Any]]) -> bool:
        """Whether no better epoch is waited for after the latest."""
        epoch = history[-1]["epoch"]
        enough = self.patience is not None and epoch - self.of(history)["epoch"] >= self.patience
        return enough and epoch > self.warm_up
