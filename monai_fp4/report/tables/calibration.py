"""Calibration: how far a predicted probability is from the share of tumour among the voxels that got it.

A run keeps counts of voxels at or above equally spaced thresholds; their differences are a fine histogram, and a
reliability curve is that histogram in coarser bins. Nearly all voxels are background with a probability near zero, so
the expected calibration error over all voxels says little about the few that matter: it is given a second time over
the voxels above the lowest coarse bin.

>>> import numpy as np
>>> edges = np.linspace(0, 1, 5)[:-1]
>>> result = reliability(positives=np.array([1, 3, 5, 7]), negatives=np.array([7, 5, 3, 1]), width=0.25, coarse=4)
>>> result.observed.tolist(), result.ece
([0.125, 0.375, 0.625, 0.875], 0.0)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["COARSE", "Reliability", "reliability"]

COARSE = 14
"""Coarse bins: the 126 fine ones of a run in nines."""


@dataclass(frozen=True)
class Reliability:
    """A reliability curve; bins without a voxel are left out.

    Attributes:
        predicted: mean predicted probability of each coarse bin.
        observed: share of tumour in it.
        count: voxels in it.
        ece: expected calibration error over all voxels; NaN without any.
        ece_above: the same over the voxels above the lowest coarse bin.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    count: NDArray[np.float64]
    ece: float
    ece_above: float


def reliability(
    positives: ArrayLike, negatives: ArrayLike, width: float, mean_probability: float = math.nan, coarse: int = COARSE
) -> Reliability:
    """The reliability curve of a fine histogram.

    Args:
        positives: tumour voxels in each fine bin, from 0 up.
        negatives: background voxels in each.
        width: of the fine bins.
        mean_probability: mean over all voxels, where it is known. Within a bin the scores are taken to lie at its
            middle, which for the lowest, with nearly all voxels close to 0, would be far off; the known mean gives it.
        coarse: number of coarse bins.
    """
    pos, neg = np.asarray(positives, np.float64), np.asarray(negatives, np.float64)
    middle = (np.arange(pos.size) + 0.5) * width
    count = pos + neg
    if math.isfinite(mean_probability) and count[0]:
        rest = float(middle[1:] @ count[1:])
        middle[0] = np.clip((mean_probability * count.sum() - rest) / count[0], 0, width)
    at = np.minimum((np.arange(pos.size) * coarse) // pos.size, coarse - 1)
    n, p, s = (np.bincount(at, weights=w, minlength=coarse).astype(np.float64) for w in (count, pos, middle * count))
    known = n > 0
    predicted, observed = s[known] / n[known], p[known] / n[known]
    gap = np.abs(predicted - observed)
    above = np.flatnonzero(known) > 0
    return Reliability(predicted, observed, n[known], _mean(gap, n[known]), _mean(gap[above], n[known][above]))


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float(values @ weights / weights.sum()) if weights.sum() else math.nan
