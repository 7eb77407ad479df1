"""Sources of cells: earlier cells, or sorted scores on the host or on a device, all searched alike.

`monai_fp4.metrics.cells` asks a source only where a few hundred thousand keys fall, so that the scores themselves need
neither be copied nor come to the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_fp4.metrics.device import from_host, to_host
from monai_fp4.metrics.keys import Keys, runs

__all__ = ["Source", "cell_source", "score_source"]

Index = NDArray[np.int64]
_PIECE = 2**20


class Source(ABC):
    """Keys in rising order, each with counts.

    Attributes:
        size: number of keys.
        level: of each key's interval; None where every key is a single score.
    """

    size: int
    level: NDArray[np.uint8] | None = None

    @abstractmethod
    def search(self, keys: Keys, side: Any = "left") -> Index:
        """Count the keys that lie below each of the given ones; with `side` "right", at or below."""

    @abstractmethod
    def low(self, at: Index) -> Keys:
        """The lowest key at each position."""

    def high(self, at: Index) -> Keys:
        """The highest key at each position."""
        return self.low(at)

    @abstractmethod
    def below(self, at: Index) -> tuple[Index | None, Index | None]:
        """Positives and negatives before each position; None where the source has none of them."""

    @abstractmethod
    def distinct(self, limit: int) -> Keys | None:
        """The distinct keys, or None if there are more than `limit`."""


class _CellSource(Source):
    def __init__(self, low: Keys, high: Keys, level: NDArray[np.uint8], positives: Index, negatives: Index) -> None:
        self.size, self.level = low.size, level
        self._low, self._high = low, high
        self._below = [np.concatenate([[0], np.cumsum(counts)]) for counts in (positives, negatives)]

    def search(self, keys: Keys, side: Any = "left") -> Index:
        return np.searchsorted(self._low, keys, side)

    def low(self, at: Index) -> Keys:
        return self._low[at]

    def high(self, at: Index) -> Keys:
        return self._high[at]

    def below(self, at: Index) -> tuple[Index | None, Index | None]:
        return self._below[0][at], self._below[1][at]

    def distinct(self, limit: int) -> Keys | None:
        return self._low if self.size <= limit else None


class _Scores(Source):
    """Sorted keys of scores with one label: each is a place of its own."""

    def __init__(self, keys: Any, positive: bool) -> None:
        self.size, self.positive, self._keys = len(keys), positive, keys

    def below(self, at: Index) -> tuple[Index | None, Index | None]:
        return (at, None) if self.positive else (None, at)


class _HostScores(_Scores):
    def search(self, keys: Keys, side: Any = "left") -> Index:
        return np.searchsorted(self._keys, keys, side)

    def low(self, at: Index) -> Keys:
        return self._keys[at]

    def distinct(self, limit: int) -> Keys | None:
        count = min(self.size, 1)
        for start in range(0, self.size, _PIECE):  # so that many scores are soon known to be too many
            piece = self._keys[start : start + _PIECE + 1]
            count += int(np.count_nonzero(piece[1:] != piece[:-1]))
            if count > limit:
                return None
        return self._keys[runs(self._keys)]


class _DeviceScores(_Scores):
    """Signed keys, on a device (`monai_fp4.metrics.device`)."""

    def search(self, keys: Keys, side: Any = "left") -> Index:
        wanted = from_host(np.ascontiguousarray(keys), self._keys.device)
        return torch.searchsorted(self._keys, wanted, side=side).cpu().numpy()

    def low(self, at: Index) -> Keys:
        return to_host(self._keys[torch.from_numpy(at).to(self._keys.device)])

    def distinct(self, limit: int) -> Keys | None:
        own = torch.unique_consecutive(self._keys)
        return to_host(own) if len(own) <= limit else None


def cell_source(low: Keys, high: Keys, level: NDArray[np.uint8], positives: Index, negatives: Index) -> Source:
    """The source of earlier cells: the lowest and highest key and the level of each, and its counts."""
    return _CellSource(low, high, level, positives, negatives)


def score_source(keys: Keys | Tensor, positive: bool) -> Source:
    """The source of sorted scores of one label, wherever they are."""
    return _DeviceScores(keys, positive) if isinstance(keys, Tensor) else _HostScores(keys, positive)
