"""Counts at one threshold, and the curve of them over all: Dice, recall and precision follow from the four counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Confusion", "PRCurve"]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Voxels called tumour or background, rightly or wrongly.

    Attributes:
        tp: tumour called tumour.
        fp: background called tumour.
        fn: tumour called background.
        tn: background called background.

    Example:
        >>> counts = Confusion(tp=6, fp=2, fn=4, tn=88) + Confusion(tp=0, fp=0, fn=0, tn=100)
        >>> round(counts.dice, 4), counts.recall, counts.precision
        (0.6667, 0.6, 0.75)
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Confusion) -> Confusion:
        """Pool the counts of two scans."""
        return Confusion(tp=self.tp + other.tp, fp=self.fp + other.fp, fn=self.fn + other.fn, tn=self.tn + other.tn)

    @property
    def dice(self) -> float:
        """`2 tp / (2 tp + fp + fn)`; NaN when there is no tumour, neither real nor predicted."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def recall(self) -> float:
        """`tp / (tp + fn)`, the share of the tumour that was found; NaN without tumour."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def precision(self) -> float:
        """`tp / (tp + fp)`, the share of the alarms that were right; NaN without alarms."""
        return _ratio(self.tp, self.tp + self.fp)


@dataclass(frozen=True, kw_only=True, eq=False)
class PRCurve:
    """Counts at every threshold, from the highest down.

    Attributes:
        thresholds: `[n]`, float32; a score at or above it is called tumour.
        tp: `[n]`, true positives.
        fp: `[n]`, false positives.
        positives: tumour voxels.
        negatives: background voxels.
    """

    thresholds: NDArray[np.float32]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    positives: int
    negatives: int

    @property
    def recall(self) -> NDArray[np.float64]:
        """`[n]`; NaN without tumour."""
        return self.tp / self.positives if self.positives else np.full(self.tp.shape, math.nan)

    @property
    def precision(self) -> NDArray[np.float64]:
        """`[n]`, never undefined, since every threshold is a score and calls at least one voxel."""
        return self.tp / (self.tp + self.fp)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
