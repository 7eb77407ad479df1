"""Counts of tumour and background voxels by score: everything that a ranking metric needs, in constant memory.

A float32 score maps to an unsigned 32-bit key of the same order (flip the sign bit of positive numbers, every bit of negative
ones), so counting by key loses nothing, for any range of scores, and keeps the full resolution next to 1, where a
saturated sigmoid crowds its values and equal-width bins would see one. The counts are sparse: one *cell* a distinct score.

When there are more cells than `capacity`, neighbours are merged into dyadic intervals of keys (the top bits in common),
lowest resolution first where it matters least: a merged cell may hold at most a small share of the voxels ranked at or
above it. The head of the ranking, where precision moves fast, stays exact; the long tail of background is what is merged. Within a
merged cell the order is unknown and taken as evenly mixed. The worst that this can do is `auprc_bounds`; what it does
on continuous scores, at the default capacity, is below 1e-7. Dyadic intervals nest or are disjoint, so that histograms of different patients or
ranks add up whatever each has merged.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_fp4.confusion import Confusion, PRCurve
from monai_fp4.errors import ConfigError, DataError, NumericsError

__all__ = ["DEFAULT_CAPACITY", "NoPositivesWarning", "ScoreHistogram"]

DEFAULT_CAPACITY = 2**21  # cells of 24 bytes: 50 MB, and three times that while folding
_FOLD = 2**22  # voxels that wait, unsorted, for the next fold
_LEVEL_BITS = 6  # a cell's code: lowest key << 6 | (63 - level); sorts by key, and a wide cell before those inside it
_SIGN = np.uint32(0x80000000)

Keys = NDArray[np.uint32]
Codes = NDArray[np.uint64]
Counts = NDArray[np.int64]


class NoPositivesWarning(UserWarning):
    """A ranking metric was asked of scores without one positive label: it is undefined, and the value is NaN."""


def score_keys(scores: NDArray[np.float32]) -> Keys:
    """Map float32 scores to unsigned integers of the same order; equal scores (-0.0 and 0.0 too) have equal keys.

    >>> keys = score_keys(np.array([-np.inf, -1.5, -0.0, 0.0, 1e-40, 1.0, np.inf], dtype=np.float32))
    >>> bool((np.diff(keys.astype(np.int64)) >= 0).all()), int(keys[2]) == int(keys[3])
    (True, True)
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # -0.0 + 0.0 is 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def key_scores(keys: Keys) -> NDArray[np.float32]:
    """Invert `score_keys`; keys below -inf's or above +inf's, which no score has, become the infinity."""
    inf = score_keys(np.array([-np.inf, np.inf], dtype=np.float32))
    keys = np.clip(keys, inf[0], inf[1])
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32).view(np.float32)


class ScoreHistogram:
    """Counts of positives and negatives by score, added to piece by piece.

    Args:
        capacity: the most cells kept, at least 16; None keeps one for every distinct score and is always exact.

    Raises:
        ConfigError: the capacity is below 16.

    Example:
        >>> histogram = ScoreHistogram().add([0.9, 0.8, 0.8, 0.1], [1, 0, 1, 0])
        >>> round(histogram.auprc(), 6), histogram.distinct, histogram.positives, histogram.total
        (0.833333, 3, 2, 4)
        >>> (histogram + ScoreHistogram().add([0.7], [1])).positives
        3
    """

    def __init__(self, capacity: int | None = DEFAULT_CAPACITY) -> None:
        if capacity is not None and capacity < 16:
            raise ConfigError(
                f"ScoreHistogram expects a capacity of 16 cells or more, found {capacity}; raise it or give None"
            )
        self.capacity = capacity
        self._codes: Codes = np.empty(0, np.uint64)
        self._pos: Counts = np.empty(0, np.int64)
        self._neg: Counts = np.empty(0, np.int64)
        self._pending: tuple[list[Keys], list[Keys]] = ([], [])  # of negatives, of positives
        self._waiting = 0

    # ---- filling -------------------------------------------------------------------------------------------------

    def add(self, scores: Any, labels: Any) -> ScoreHistogram:
        """Count scores.

        Args:
            scores: tensor, array or list of any shape; probabilities or logits. Counted as float32.
            labels: as many, 0 or 1 (or bool).

        Returns:
            The histogram itself.

        Raises:
            NumericsError: a score is NaN.
            DataError: the sizes differ, or a label is neither 0 nor 1.
        """
        values, truth = _as_array(scores), _as_array(labels)
        if values.size != truth.size:
            raise DataError(
                f"a metric expects as many labels as scores, found {truth.size} labels for {values.size} scores"
            )
        if truth.dtype != np.bool_:
            positive = truth == 1
            if np.count_nonzero(positive) + np.count_nonzero(truth == 0) != truth.size:
                odd = truth[~positive & (truth != 0)][0]
                raise DataError(f"a metric expects labels that are 0 or 1, found {odd!s}; binarise the mask")
            truth = positive
        for start in range(0, values.size, _FOLD):
            part = values[start : start + _FOLD].astype(np.float32)
            if np.isnan(part).any():
                count = int(np.isnan(part).sum())
                raise NumericsError(f"a metric expects numbers as scores, found NaN in {count} of {part.size}; look at the "
                                    "network's output for this input")  # fmt: skip
            keys, mask = score_keys(part), truth[start : start + _FOLD]
            self._pending[0].append(keys[~mask])
            self._pending[1].append(keys[mask])
            self._waiting += keys.size
            if self._waiting >= _FOLD:
                self._fold()
        return self

    def merge(self, other: ScoreHistogram) -> ScoreHistogram:
        """Add the counts of another histogram to this one, in place; returns itself."""
        self._fold()
        other._fold()
        self._absorb(other._codes, other._pos, other._neg)
        return self

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """The counts of both, in a new histogram with this one's capacity."""
        return self.copy().merge(other)

    def copy(self, capacity: int | None = -1) -> ScoreHistogram:
        """A copy, merged down to another capacity if one is given (None: unlimited)."""
        self._fold()
        new = ScoreHistogram(self.capacity if capacity == -1 else capacity)
        new._absorb(self._codes, self._pos, self._neg)
        return new

    def _fold(self) -> None:
        if not self._waiting:
            return
        none = np.empty(0, np.int64)
        for keys, positive in ((self._pending[0], False), (self._pending[1], True)):
            codes, counts = _count(np.concatenate(keys)) if keys else (np.empty(0, np.uint64), none)
            zeros = np.zeros_like(counts)
            self._absorb(codes, *((counts, zeros) if positive else (zeros, counts)), coarsen=positive)
        self._pending, self._waiting = ([], []), 0

    def _absorb(self, codes: Codes, pos: Counts, neg: Counts, coarsen: bool = True) -> None:
        if not codes.size:
            return
        if not self._codes.size:
            self._codes, self._pos, self._neg = codes.copy(), pos.copy(), neg.copy()
        else:
            at = np.searchsorted(self._codes, codes) + np.arange(codes.size)
            own = np.ones(self._codes.size + codes.size, bool)
            own[at] = False
            merged = np.empty(own.size, np.uint64)
            merged[own], merged[at] = self._codes, codes
            # A cell opens where its key lies beyond every cell so far; the rest lies inside the (wider) one before it.
            low, high = _bounds(merged)
            opens = np.ones(merged.size, bool)
            opens[1:] = low[1:] > np.maximum.accumulate(high)[:-1]
            starts = np.flatnonzero(opens)
            sums = []
            for mine, theirs in ((self._pos, pos), (self._neg, neg)):
                both = np.empty(own.size, np.int64)
                both[own], both[at] = mine, theirs
                sums.append(np.add.reduceat(both, starts))
            self._codes, (self._pos, self._neg) = merged[starts], sums
        if coarsen and self.capacity is not None and self._codes.size > self.capacity:
            self._codes, self._pos, self._neg = _coarsen(self._codes, self._pos, self._neg, self.capacity)

    # ---- totals --------------------------------------------------------------------------------------------------

    @property
    def positives(self) -> int:
        """Number of positive labels."""
        self._fold()
        return int(self._pos.sum())

    @property
    def negatives(self) -> int:
        """Number of negative labels."""
        self._fold()
        return int(self._neg.sum())

    @property
    def total(self) -> int:
        """Number of scores."""
        return self.positives + self.negatives

    @property
    def distinct(self) -> int:
        """Number of distinct scores; once neighbours were merged (`exact` is False), the number of cells: a lower bound."""
        self._fold()
        return int(self._codes.size)

    @property
    def exact(self) -> bool:
        """True as long as every cell is one score, so that every result is that of the scores themselves."""
        self._fold()
        return not (self._levels() > 0).any()

    def _levels(self) -> NDArray[np.uint64]:
        return 63 - (self._codes & np.uint64(63))

    def cells(self) -> tuple[NDArray[np.float32], NDArray[np.float32], Counts, Counts]:
        """Lowest and highest score, positives and negatives of each cell, from the lowest score up."""
        self._fold()
        low, high = _bounds(self._codes)
        return key_scores(low.astype(np.uint32)), key_scores(high.astype(np.uint32)), self._pos.copy(), self._neg.copy()

    # ---- ranking metrics -----------------------------------------------------------------------------------------

    def auprc(self) -> float:
        """Area under the precision-recall curve: step-wise average precision, `sum_k (R_k - R_(k-1)) P_k` over distinct scores.

        Returns:
            A value in (0, 1]; NaN, with a `NoPositivesWarning`, when no label is positive.
        """
        if not self._has_positives("AUPRC"):
            return math.nan
        return average_precision(self._pos[None], self._neg[None], self._levels() > 0)[0]

    def auprc_bounds(self) -> tuple[float, float]:
        """The lowest and highest AUPRC that any order within the merged cells could give; equal when `exact`."""
        if not self._has_positives("AUPRC"):
            return math.nan, math.nan
        pos, neg = self._pos[::-1], self._neg[::-1]
        merged = self._levels()[::-1] > 0
        tp, fp = np.cumsum(pos), np.cumsum(neg)
        best = np.where(merged, tp / np.maximum(tp + fp - neg, 1), tp / (tp + fp))
        worst = np.where(merged, (tp - pos + 1) / (tp - pos + 1 + fp), tp / (tp + fp))
        return float(pos @ worst) / int(tp[-1]), float(pos @ best) / int(tp[-1])

    def pr_curve(self, points: int | None = None) -> PRCurve:
        """The precision-recall curve, from the highest threshold (a score at or above it counts as tumour) down.

        Args:
            points: thin the curve to at most about so many thresholds, evenly in recall; None keeps all.

        Returns:
            The curve; recall and precision are NaN where they are undefined.
        """
        self._fold()
        tp, fp = np.cumsum(self._pos[::-1]), np.cumsum(self._neg[::-1])
        thresholds = key_scores((_bounds(self._codes)[0]).astype(np.uint32))[::-1]
        positives, negatives = (int(tp[-1]), int(fp[-1])) if tp.size else (0, 0)
        if points is not None and tp.size > points:
            wanted = np.searchsorted(tp, np.linspace(0, positives, points // 2))
            wanted = np.concatenate([wanted, np.linspace(0, tp.size - 1, points - points // 2).astype(np.int64)])
            keep = np.unique(np.minimum(wanted, tp.size - 1))
            thresholds, tp, fp = thresholds[keep], tp[keep], fp[keep]
        return PRCurve(thresholds=thresholds, tp=tp, fp=fp, positives=positives, negatives=negatives)

    def choose_threshold(self, beta: float = 2.0) -> float:
        """The score at or above which a voxel is called tumour, for the highest F-beta; of equals the highest score.

        Args:
            beta: how many times recall counts as much as precision; 2 by default, since missing a tumour costs more than a
                false alarm, and 1 gives the highest Dice.

        Returns:
            One of the scores; NaN, with a `NoPositivesWarning`, when no label is positive.
        """
        if not self._has_positives("a threshold"):
            return math.nan
        curve = self.pr_curve()
        weighted = (1 + beta**2) * curve.tp
        return float(
            curve.thresholds[np.argmax(weighted / (weighted + beta**2 * (curve.positives - curve.tp) + curve.fp))]
        )

    def confusion(self, threshold: float) -> Confusion:
        """Counts when every score at or above the threshold is called tumour; exact for thresholds from `choose_threshold`."""
        self._fold()
        key = np.uint64(score_keys(np.array([threshold], np.float32))[0])
        first = int(np.searchsorted(_bounds(self._codes)[0], key))
        tp, fp = int(self._pos[first:].sum()), int(self._neg[first:].sum())
        return Confusion(tp=tp, fp=fp, fn=self.positives - tp, tn=self.negatives - fp)

    def binned(self, edges: NDArray[np.float64]) -> tuple[Counts, Counts]:
        """Positives and negatives between edges, for a plot; a merged cell falls where its middle does, outliers at the ends."""
        low, high, pos, neg = self.cells()
        middle = np.where(low == high, low, low.astype(np.float64) / 2 + high.astype(np.float64) / 2)
        at = np.clip(np.searchsorted(edges, middle, side="right") - 1, 0, len(edges) - 2)
        size = len(edges) - 1
        return tuple(np.bincount(at, weights=w, minlength=size).astype(np.int64) for w in (pos, neg))  # type: ignore[return-value]

    def _has_positives(self, what: str) -> bool:
        if self.positives:
            return True
        warnings.warn(f"{what} is undefined without positive labels, found {self.total} negative; NaN is returned",
                      NoPositivesWarning, stacklevel=3)  # fmt: skip
        return False


def average_precision(pos: NDArray[Any], neg: NDArray[Any], merged: NDArray[np.bool_]) -> list[float]:
    """Average precision of rows of counts `[rows, cells]`, from the lowest score up.

    A cell of one score is one step of the curve, at its far end. In a merged cell the order is unknown: with positives evenly
    among negatives, the mean over its positives is the precision halfway through it.

    Args:
        pos: positives, each row with one or more.
        neg: negatives.
        merged: `[cells]`, True where a cell holds several scores.
    """
    pos, neg = pos[:, ::-1], neg[:, ::-1]
    tp = np.cumsum(pos, axis=1, dtype=np.float64)
    rank = tp + np.cumsum(neg, axis=1, dtype=np.float64)
    half = merged[::-1] / 2
    precision = (tp - half * np.maximum(pos - 1, 0)) / np.maximum(rank - half * np.maximum(pos + neg - 1, 0), 1)
    return [float(value) for value in (pos * precision).sum(axis=1) / tp[:, -1]]


def _count(keys: Keys) -> tuple[Codes, Counts]:
    keys = np.sort(keys)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if keys.size else np.empty(0, np.int64)
    counts = np.diff(np.append(starts, keys.size))
    return (keys[starts].astype(np.uint64) << np.uint64(_LEVEL_BITS)) | np.uint64(63), counts


def _bounds(codes: Codes) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    low = codes >> np.uint64(_LEVEL_BITS)
    return low, low + (np.uint64(1) << (63 - (codes & np.uint64(63)))) - np.uint64(1)


def _coarsen(codes: Codes, pos: Counts, neg: Counts, capacity: int) -> tuple[Codes, Counts, Counts]:
    """Merge neighbouring cells until half the capacity is free again."""
    share = 1 / capacity
    while True:
        for level in range(1, 33):
            parent = codes >> np.uint64(_LEVEL_BITS + level)
            opens = np.concatenate([[True], parent[1:] != parent[:-1]])
            starts = np.flatnonzero(opens)
            if starts.size == codes.size:
                continue
            size = np.diff(np.append(starts, codes.size))
            mass = np.add.reduceat(pos + neg, starts)
            above = np.cumsum(mass[::-1])[::-1]  # voxels ranked at or above the end of the group
            merge = (size > 1) & (mass <= share * above)
            keep = opens | ~np.repeat(merge, size)
            at = np.flatnonzero(keep)
            wide = np.repeat(merge, size)[at]
            wide_codes = (parent[at] << np.uint64(_LEVEL_BITS + level)) | np.uint64(63 - level)
            codes, pos, neg = np.where(wide, wide_codes, codes[at]), np.add.reduceat(pos, at), np.add.reduceat(neg, at)
            if codes.size <= capacity // 2:
                return codes, pos, neg
        share *= 2


def _as_array(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach()
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values).reshape(-1)
