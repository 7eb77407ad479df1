"""A histogram of scores and labels: everything that a ranking metric needs, streaming and in constant memory.

Up to `capacity` distinct scores, each has its own cell and every result is that of the scores themselves. Beyond,
cells are merged where it matters least (`monai_fp4.metrics.cells`); `auprc_bounds` says what that can have done at
worst. On ten million continuous scores and at the default capacity, AUPRC is within 1e-7 of scikit-learn's. Scores on
a CUDA device are sorted and searched there, and only counts leave it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.metrics.cells import Cells, average_precision, average_precision_bounds, combine
from monai_fp4.metrics.confusion import Confusion, PRCurve
from monai_fp4.metrics.keys import SortedScores, key_scores, score_keys, sort_keys, split_keys

__all__ = ["DEFAULT_CAPACITY", "NoPositivesWarning", "ScoreHistogram"]

DEFAULT_CAPACITY = 2**18  # cells of 21 bytes, 5.5 MB
"""Cells that a histogram keeps: 21 bytes each, 5.5 MB."""
_WAITING = 2**22  # keys kept unsorted until the next fold, 16 MB


class NoPositivesWarning(UserWarning):
    """A ranking metric was asked of scores without one positive label: it is undefined, and the value is NaN."""


class ScoreHistogram:
    """Counts of positives and negatives by score, added to piece by piece.

    Args:
        capacity: the most cells, at least 256; None keeps one for every distinct score.

    Raises:
        ConfigError: the capacity is below 256.

    Example:
        >>> histogram = ScoreHistogram().add([0.9, 0.8, 0.8, 0.1], [1, 0, 1, 0])
        >>> round(histogram.auprc(), 6), histogram.distinct, histogram.positives, histogram.total
        (0.833333, 3, 2, 4)
        >>> (histogram + ScoreHistogram().add([0.7], [1])).positives
        3
    """

    def __init__(self, capacity: int | None = DEFAULT_CAPACITY) -> None:
        if capacity is not None and capacity < 256:
            raise ConfigError(
                f"ScoreHistogram expects a capacity of 256 or more, found {capacity}; raise it or give None"
            )
        self.capacity = capacity
        self._cells = Cells.empty()
        self._pending: list[tuple[Any, Any]] = []  # keys of negatives and of positives, all on one device
        self._waiting = 0

    def add(self, scores: Any, labels: Any) -> ScoreHistogram:
        """Count scores.

        Args:
            scores: tensor, array or list of any shape; probabilities or logits. Counted as float32.
            labels: as many, 0 or 1 (or bool).

        Returns:
            The histogram itself.

        Raises:
            NumericsError: a score is NaN; nothing is counted.
            DataError: the sizes differ, or a label is neither 0 nor 1.
        """
        self._wait(*split_keys(scores, labels))
        return self

    def add_sorted(self, scores: SortedScores) -> ScoreHistogram:
        """Count scores that are checked and sorted already; returns itself."""
        self._wait(scores.negatives, scores.positives)
        return self

    def merge(self, *others: ScoreHistogram) -> ScoreHistogram:
        """Add the counts of other histograms to this one, in place; returns itself."""
        self._cells = combine([self.cells, *(other.cells for other in others)], *_NO_KEYS, self.capacity)
        return self

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """The counts of both, in a new histogram with this one's capacity."""
        return self.with_capacity(self.capacity).merge(other)

    def with_capacity(self, capacity: int | None) -> ScoreHistogram:
        """A copy, merged further if the capacity is smaller; what is merged already stays so."""
        new = ScoreHistogram(capacity)
        new._cells = combine([self.cells], *_NO_KEYS, capacity)
        return new

    def _wait(self, negatives: Any, positives: Any) -> None:
        if self._pending and getattr(self._pending[0][0], "device", None) != getattr(negatives, "device", None):
            self.fold()
        self._pending.append((negatives, positives))
        self._waiting += len(negatives) + len(positives)
        if self._waiting >= _WAITING:
            self.fold()

    def fold(self) -> ScoreHistogram:
        """Count what waits now, and free its memory; otherwise done when enough waits or a result is asked for."""
        if self._waiting:
            negatives, positives = (sort_keys(_joined(kept)) for kept in zip(*self._pending, strict=True))
            self._cells = combine([self._cells], negatives, positives, self.capacity)
            self._pending, self._waiting = [], 0
        return self

    @property
    def cells(self) -> Cells:
        """The counts, from the lowest score up."""
        return self.fold()._cells

    @property
    def positives(self) -> int:
        """Number of positive labels."""
        return int(self.cells.positives.sum())

    @property
    def negatives(self) -> int:
        """Number of negative labels."""
        return int(self.cells.negatives.sum())

    @property
    def total(self) -> int:
        """Number of scores."""
        return self.positives + self.negatives

    @property
    def distinct(self) -> int:
        """Number of distinct scores; once some were merged (`exact` is False), the number of cells, a lower bound."""
        return int(self.cells.low.size)

    @property
    def exact(self) -> bool:
        """True as long as every cell is one score."""
        return not bool(self.cells.merged.any())

    def auprc(self) -> float:
        """Area under the precision-recall curve, as step-wise average precision.

        That is `sum_k (R_k - R_(k-1)) P_k` over the distinct scores from the highest down, scikit-learn's definition.

        Returns:
            A value in (0, 1]; NaN, with a `NoPositivesWarning`, when no label is positive.
        """
        if not self._has_positives("AUPRC"):
            return math.nan
        cells = self.cells
        return float(average_precision(cells.positives[None], cells.negatives[None], cells.merged)[0])

    def auprc_bounds(self) -> tuple[float, float]:
        """The lowest and highest AUPRC that any order within the merged cells could give; equal when `exact`."""
        return average_precision_bounds(self.cells) if self._has_positives("AUPRC") else (math.nan, math.nan)

    def roc_auc(self) -> float:
        """Area under the ROC curve: the share of pairs in which the positive has the higher score, ties counting half.

        Returns:
            A value from 0 to 1, exact while `exact`; NaN when all labels are alike.
        """
        cells = self.cells
        below = np.cumsum(cells.negatives) - cells.negatives / 2
        pairs = self.positives * self.negatives
        return float((cells.positives * below).sum() / pairs) if pairs else math.nan

    def pr_curve(self, points: int | None = None) -> PRCurve:
        """The precision-recall curve, from the highest threshold down.

        Args:
            points: thin the curve to at most so many thresholds, spread over recall and over rank; None keeps all.
        """
        cells = self.cells
        tp, fp = np.cumsum(cells.positives[::-1]), np.cumsum(cells.negatives[::-1])
        thresholds = key_scores(cells.low[::-1])
        positives, negatives = self.positives, self.negatives
        if points is not None and tp.size > points:
            by_recall = np.searchsorted(tp, np.linspace(0, positives, points // 2))
            by_rank = np.linspace(0, tp.size - 1, points - points // 2).astype(np.int64)
            keep = np.unique(np.concatenate([by_recall, by_rank]))
            thresholds, tp, fp = thresholds[keep], tp[keep], fp[keep]
        return PRCurve(thresholds=thresholds, tp=tp, fp=fp, positives=positives, negatives=negatives)

    def choose_threshold(self, beta: float = 2.0) -> float:
        """The score, at or above which a voxel is called tumour, with the highest F-beta; the highest of equal ones.

        Args:
            beta: how many times recall counts as much as precision; 2 by default, since missing a tumour costs more
                than a false alarm, and 1 gives the highest Dice.

        Returns:
            The lowest score of a cell; NaN, with a `NoPositivesWarning`, when no label is positive.

        Raises:
            ConfigError: beta is not above 0.
        """
        if not beta > 0:
            raise ConfigError(f"choose_threshold expects beta above 0, found {beta}; 1 is Dice, 2 prefers recall")
        if not self._has_positives("a threshold"):
            return math.nan
        curve = self.pr_curve()
        hits = (1 + beta**2) * curve.tp
        return float(curve.thresholds[np.argmax(hits / (hits + beta**2 * (curve.positives - curve.tp) + curve.fp))])

    def confusion(self, threshold: float) -> Confusion:
        """Counts when every score at or above a threshold is called tumour.

        Exact for this histogram's own thresholds; another one may fall inside a merged cell, which is then left out.
        """
        cells = self.cells
        first = int(np.searchsorted(cells.low, score_keys(np.array([threshold], np.float32))[0]))
        tp, fp = int(cells.positives[first:].sum()), int(cells.negatives[first:].sum())
        return Confusion(tp=tp, fp=fp, fn=self.positives - tp, tn=self.negatives - fp)

    def binned(self, edges: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positives and negatives between rising edges, for a plot; a cell counts at its middle."""
        cells, middle = self.cells, self.middles()
        at = np.clip(np.searchsorted(edges, middle, side="right") - 1, 0, len(edges) - 2)
        pos, neg = (np.bincount(at, weights=w, minlength=len(edges) - 1) for w in (cells.positives, cells.negatives))
        return pos.astype(np.int64), neg.astype(np.int64)

    def middles(self) -> NDArray[np.float64]:
        """The score in the middle of each cell, from the lowest up."""
        low, high = (key_scores(keys).astype(np.float64) for keys in (self.cells.low, self.cells.high))
        return np.where(low == high, low, low / 2 + high / 2)

    def _has_positives(self, what: str) -> bool:
        if self.positives:
            return True
        message = f"{what} is undefined without positive labels, found {self.total} negative ones; NaN is returned"
        warnings.warn(message, NoPositivesWarning, stacklevel=3)
        return False


def _joined(keys: Sequence[Any]) -> Any:
    if len(keys) == 1:
        return keys[0]
    return torch.cat(list(keys)) if isinstance(keys[0], Tensor) else np.concatenate(keys)


_NO_KEYS = (np.empty(0, np.uint32), np.empty(0, np.uint32))
