"""Intervals, tests and corrections, against SciPy and against their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_fp4.report.statistics.intervals import holm, mean_interval, paired_test, patient_bootstrap, sign_flip

stats = pytest.importorskip("scipy.stats")

small = st.floats(-0.1, 0.1, allow_nan=False)
samples = st.lists(small, min_size=3, max_size=9).filter(lambda values: np.std(values) > 1e-4)


@settings(deadline=None, max_examples=50)
@given(samples)
def test_the_interval_of_a_mean_is_scipys(values: list[float]) -> None:
    interval = mean_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert interval.n == len(values)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((np.mean(values), low, high), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(samples, st.floats(0.001, 0.05))
def test_paired_tests_are_scipys(values: list[float], margin: float) -> None:
    found = paired_test(values, margin)
    two_sided = stats.ttest_1samp(values, 0.0)
    one_sided = stats.ttest_1samp(values, -margin, alternative="greater")
    low, high = two_sided.confidence_interval(0.95)
    assert found.p == pytest.approx(two_sided.pvalue, abs=1e-10)
    assert found.p_margin == pytest.approx(one_sided.pvalue, abs=1e-10)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-10)


@pytest.mark.parametrize("values", [[0.01, -0.02, 0.03, 0.015], [0.01, 0.02, 0.03], [-0.02, -0.01, 0.0, 0.002, -0.03]])
def test_sign_flips_are_scipys_exact_permutations(values: list[float]) -> None:
    oracle = stats.permutation_test(
        (values,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert sign_flip(values) == pytest.approx(oracle.pvalue)


def test_many_sign_flips_are_drawn_and_agree_with_the_t_test() -> None:
    values = np.random.default_rng(0).normal(0.004, 0.01, 40)
    assert sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert sign_flip(np.full(40, 0.01)) == 1 / 20_001


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(values: list[float]) -> None:
    """By closure a hypothesis is rejected if every intersection that contains it is, at Bonferroni's |S| min p."""
    indices = range(len(values))
    sets = [s for k in range(1, len(values) + 1) for s in itertools.combinations(indices, k)]
    expected = [max(min(1.0, len(s) * min(values[j] for j in s)) for s in sets if i in s) for i in indices]
    assert holm(values) == pytest.approx(expected)


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([0.02, math.nan, 0.03])[0::2] == [0.04, 0.04]
    assert math.isnan(holm([0.02, math.nan, 0.03])[1])
    assert holm([]) == []


def test_folds_widen_the_interval_as_nadeau_and_bengio_say() -> None:
    values = [0.01, 0.03, 0.02, 0.0, 0.04]
    plain, folds = paired_test(values, 0.01), paired_test(values, 0.01, overlap=0.25)
    # 1/5 becomes 1/5 + 1/4.
    assert (folds.high - folds.low) / (plain.high - plain.low) == pytest.approx(math.sqrt(0.45 / 0.2))
    statistic = np.mean(values) / (np.std(values, ddof=1) * math.sqrt(0.45))
    assert folds.p == pytest.approx(2 * stats.t.sf(statistic, 4))


def test_false_alarms_come_as_often_as_they_may() -> None:
    random = np.random.default_rng(1)
    alarms = [paired_test(random.normal(0, 0.01, 5), 0.01).p < 0.05 for _ in range(2000)]
    assert 0.035 < np.mean(alarms) < 0.065
    # A true loss of exactly the margin is taken for less than it at most so often.
    missed = [paired_test(random.normal(-0.01, 0.01, 5), 0.01).p_margin < 0.05 for _ in range(2000)]
    assert 0.035 < np.mean(missed) < 0.065


@pytest.mark.parametrize("values", [[], [0.3], [math.nan, 0.3], [0.1, 0.1, 0.1], [0.0, 0.0]])
def test_nothing_is_concluded_without_a_spread(values: list[float]) -> None:
    found = paired_test(values, 0.01)
    assert math.isnan(found.p) and math.isnan(found.p_margin) and math.isnan(found.low)
    assert found.n == len([v for v in values if not math.isnan(v)])


def test_a_single_value_has_no_interval() -> None:
    interval = mean_interval([0.8, math.nan])
    assert (interval.n, interval.mean) == (1, 0.8)
    assert math.isnan(interval.low) and math.isnan(interval.high)
    assert mean_interval([]).n == 0 and math.isnan(mean_interval([]).mean)


def test_the_bootstrap_over_patients_is_about_the_t_interval_of_many() -> None:
    values = np.append(np.random.default_rng(2).normal(0.01, 0.05, 200), math.nan)
    drawn, exact = patient_bootstrap(values), mean_interval(values)
    assert drawn.n == 200 and drawn.mean == exact.mean
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.001)
    assert patient_bootstrap(values) == drawn, "the same seed gives the same interval"
    assert math.isnan(patient_bootstrap([0.1]).low)
