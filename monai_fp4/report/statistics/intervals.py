"""Intervals and tests on paired differences, and the correction for making many of them.

A seed fixes initial weights, data order and augmentation, whatever the recipe; so recipes are compared seed by seed,
and what is tested is the mean of the differences. Three questions are kept apart:

- **Is there a difference?** Two-sided paired t-test, and beside it the exact sign-flip test, which supposes nothing of
  the distribution but cannot give less than 2 / 2^n.
- **Is it no worse than by a margin?** One-sided test of "the mean is at or below -margin" (non-inferiority). A test
  that finds no difference does not show that there is none.
- **Which of many differences are real?** Holm's procedure on each of the two, which keeps the chance of even one false
  claim below 5 %.

Folds share training patients, so that their differences vary less than those of independent experiments would. For
them the variance is raised by Nadeau and Bengio's correction (Machine Learning 52, 2003): 1/n becomes
1/n + validated / trained patients.

The tests themselves are SciPy's; this module says what they are asked.

>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["MeanInterval", "PairedTest", "holm", "mean_interval", "paired_test", "patient_bootstrap", "sign_flip"]

_DRAWS = 20_000
"""Sign flips tried: all of them up to 14 differences."""


@dataclass(frozen=True, kw_only=True)
class MeanInterval:
    """A mean with the bounds of its interval, which are NaN for fewer than two values."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedTest(MeanInterval):
    """Result of a paired test: the mean of the differences with its interval, and the tests.

    Attributes:
        p: of the two-sided t-test against 0.
        p_sign_flip: of the sign-flip test.
        p_margin: of the one-sided t-test against -margin: small where the loss is shown to be below the margin.
    """

    p: float
    p_sign_flip: float
    p_margin: float


def mean_interval(values: ArrayLike, level: float = 0.95) -> MeanInterval:
    """Mean and t interval of independent values; NaN values are left out.

    >>> mean_interval([1.0, 2.0, 3.0])
    MeanInterval(n=3, mean=2.0, low=-0.48..., high=4.48...)
    """
    known = _known(values)
    if known.size < 2:
        return _alone(known)
    low, high = _t_test(known).confidence_interval(level)
    return MeanInterval(n=known.size, mean=float(known.mean()), low=float(low), high=float(high))


def paired_test(differences: ArrayLike, margin: float, *, overlap: float = 0.0, level: float = 0.95) -> PairedTest:
    """Test the mean of paired differences.

    Args:
        differences: one a seed, or one a fold; NaN values are left out.
        margin: the loss that would not matter, above 0, in the unit of the differences.
        overlap: 0 for seeds; for folds, validated over trained patients (Nadeau and Bengio's correction).
        level: of the interval.

    Returns:
        Its numbers. Fewer than two differences, or differences without any spread, give NaN for what needs a spread.
    """
    known = _known(differences)
    n = int(known.size)
    mean = float(known.mean()) if n else math.nan
    spread = float(known.std(ddof=1)) if n > 1 else 0.0
    flip = sign_flip(known) if n > 1 else math.nan
    # Equal up to rounding is no spread: a t statistic of 1e15 would be a statement about floating point.
    if n < 2 or spread <= 1e-12 * max(1.0, abs(mean)):
        nan = math.nan
        return PairedTest(n=n, mean=mean, low=nan, high=nan, p=nan, p_sign_flip=flip, p_margin=nan)
    # The corrected variance is that of differences that lie farther from their mean.
    spread_out = mean + (known - mean) * math.sqrt(1 + n * overlap)
    test = _t_test(spread_out)
    low, high = test.confidence_interval(level)
    p_margin = _t_test(spread_out, -margin, "greater").pvalue
    return PairedTest(
        n=n, mean=mean, low=float(low), high=float(high), p=float(test.pvalue), p_sign_flip=flip,
        p_margin=float(p_margin),
    )  # fmt: skip


def sign_flip(differences: ArrayLike, seed: int = 0) -> float:
    """Two-sided sign-flip (permutation) test that differences are symmetric about 0.

    All 2^n signs are tried up to n = 14, else 20,000 drawn ones, with the observed signs counted in.

    >>> sign_flip([1.0, 2.0, 3.0])
    0.25
    """
    known = _known(differences)
    if not known.size:
        return math.nan
    if known.size == 1:  # which SciPy refuses to flip; either sign is as far from 0
        return 1.0
    test = stats.permutation_test(
        (known,), _distance_from_zero, permutation_type="samples", alternative="greater", n_resamples=_DRAWS,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(test.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment; NaN stays NaN and is not counted.

    Args:
        p: of the comparisons of one family.

    Returns:
        Adjusted values, in the same order: below 0.05 means shown, whatever the number of comparisons.
    """
    values = np.array(p, np.float64)
    order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]  # NaN sorts last
    steps = np.arange(order.size, 0, -1) * values[order]
    values[order] = np.maximum.accumulate(np.minimum(steps, 1.0))
    return [float(value) for value in values]


def patient_bootstrap(
    differences: ArrayLike, *, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> MeanInterval:
    """Mean of the differences of patients, with a percentile interval over resampled patients.

    Args:
        differences: one a patient, the mean over seeds; NaN values (patients without tumour) are left out.
        resamples: how often to draw as many patients with replacement.
        seed: of the draws.
        level: share of the resamples within the interval.
    """
    known = _known(differences)
    if known.size < 2:
        return _alone(known)
    found = stats.bootstrap(
        (known,), np.mean, n_resamples=resamples, confidence_level=level, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = found.confidence_interval
    return MeanInterval(n=known.size, mean=float(known.mean()), low=float(low), high=float(high))


def _t_test(values: NDArray[np.float64], of: float = 0.0, alternative: str = "two-sided") -> Any:
    with warnings.catch_warnings():  # values without any spread are an answer too: an interval of no width
        warnings.simplefilter("ignore", RuntimeWarning)
        return stats.ttest_1samp(values, of, alternative=alternative)


def _distance_from_zero(values: NDArray[np.float64], axis: int = -1) -> Any:
    return np.abs(values.sum(axis=axis))


def _alone(known: NDArray[np.float64]) -> MeanInterval:
    mean = float(known.mean()) if known.size else math.nan
    return MeanInterval(n=known.size, mean=mean, low=math.nan, high=math.nan)


def _known(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64).ravel()
    return array[~np.isnan(array)]
