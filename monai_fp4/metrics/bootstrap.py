"""Bound how far the numbers could differ with other patients: percentile intervals of a bootstrap over patients.

Patients are drawn and not voxels, since voxels of one scan are anything but independent: an interval over voxels
would be far too narrow. A resample is a vector of how often each patient was drawn, and pooled counts are that
vector times the patients' counts, so that a thousand resamples are a few matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_fp4.errors import ConfigError, DataError
from monai_fp4.metrics.cells import average_precision
from monai_fp4.metrics.confusion import Confusion
from monai_fp4.metrics.histogram import ScoreHistogram

__all__ = ["Interval", "bootstrap", "known_mean"]

_CELLS = 2**13  # of the histograms that are resampled; AUPRC is within 1e-4
_AT_ONCE = 100  # resamples in memory


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the bounds of its bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    histograms: Sequence[ScoreHistogram],
    patient_auprc: Sequence[float],
    pooled_auprc: float,
    confusions: Sequence[Confusion] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile intervals over resampled patients.

    Args:
        histograms: counts by score, of each patient.
        patient_auprc: AUPRC of each patient; NaN is left out of the mean over patients.
        pooled_auprc: AUPRC over all voxels.
        confusions: counts of each patient at the threshold; adds Dice, recall and precision.
        resamples: how many times to draw as many patients with replacement.
        seed: of the draws; the same seed gives the same intervals.
        level: share of the resamples within the interval. Resamples that leave a number undefined are left out.

    Returns:
        `auprc`, and with confusions `dice`, `recall`, `precision`, pooled and each with `_per_patient`.

    Raises:
        ConfigError: resamples below 1, or a level not between 0 and 1.
        DataError: no patients.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ConfigError(
            f"bootstrap expects 1 resample or more and a level in (0, 1), found {resamples}, {level}; change them"
        )
    if not histograms:
        raise DataError("bootstrap expects at least one patient, found none; add patients first")
    n = len(histograms)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    samples = {
        "auprc": _resampled_auprc(histograms, weights),
        "auprc_per_patient": _weighted_means(weights, patient_auprc),
    }
    values = {
        "auprc": pooled_auprc,
        "auprc_per_patient": known_mean(patient_auprc),
    }
    if confusions is not None:
        counts = weights @ np.array([[c.tp, c.fp, c.fn] for c in confusions], dtype=np.float64)
        tp, fp, fn = counts.T
        total = sum(confusions[1:], confusions[0])
        for name, top, bottom in (
            ("dice", 2 * tp, 2 * tp + fp + fn),
            ("recall", tp, tp + fn),
            ("precision", tp, tp + fp),
        ):
            samples[name] = np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
            values[name] = getattr(total, name)
            each = [getattr(c, name) for c in confusions]
            samples[f"{name}_per_patient"], values[f"{name}_per_patient"] = (
                _weighted_means(weights, each),
                known_mean(each),
            )
    tail = (1 - level) / 2
    return {name: _interval(values[name], samples[name], tail) for name in values}


def known_mean(values: Sequence[float]) -> float:
    """The mean of those that are not NaN; NaN if there is none."""
    known = [v for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known else math.nan


def _resampled_auprc(histograms: Sequence[ScoreHistogram], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    shared = ScoreHistogram(None).merge(*histograms).with_capacity(_CELLS).cells
    counts = np.zeros((2, len(histograms), shared.low.size))
    for row, histogram in enumerate(histograms):
        own = histogram.cells
        at = np.searchsorted(shared.low, own.low, side="right") - 1
        for kind, numbers in enumerate((own.positives, own.negatives)):
            counts[kind, row] = np.bincount(at, weights=numbers, minlength=shared.low.size)
    result = np.full(len(weights), np.nan)
    has = (weights @ counts[0].sum(axis=1)) > 0
    for part in np.array_split(np.flatnonzero(has), max(1, len(weights) // _AT_ONCE)):
        if part.size:
            drawn = weights[part] @ counts[0], weights[part] @ counts[1]
            result[part] = average_precision(*drawn, shared.merged)
    return result


def _weighted_means(weights: NDArray[np.float64], values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values)
    known = ~np.isnan(array)
    total = weights[:, known].sum(axis=1)
    return np.divide(weights[:, known] @ array[known], total, out=np.full(len(weights), np.nan), where=total > 0)


def _interval(value: float, samples: NDArray[np.float64], tail: float) -> Interval:
    known = samples[~np.isnan(samples)]
    if not known.size:
        return Interval(value=value, low=math.nan, high=math.nan)
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))
