"""Intervals, tests and corrections, against their definitions written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_fp4.report.statistics import holm, mean_interval, paired_test, patient_bootstrap, sign_flip

stats = pytest.importorskip("scipy.stats")

small = st.floats(-0.1, 0.1, allow_nan=False)
samples = st.lists(small, min_size=2, max_size=9).filter(lambda values: np.std(values) > 1e-4)


def by_hand(values: list[float], margin: float, overlap: float, level: float) -> dict[str, float]:
    """Student's t, with Nadeau and Bengio's variance."""
    n, mean = len(values), float(np.mean(values))
    error = float(np.std(values, ddof=1)) * math.sqrt(1 / n + overlap)
    half = stats.t.ppf(0.5 + level / 2, n - 1) * error
    return {
        "low": mean - half,
        "high": mean + half,
        "p": 2 * stats.t.sf(abs(mean) / error, n - 1),
        "p_margin": stats.t.sf((mean + margin) / error, n - 1),
    }


@settings(deadline=None, max_examples=50)
@given(samples, st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_of_a_mean_is_students(values: list[float], level: float) -> None:
    interval, expected = mean_interval(values, level), by_hand(values, 0.01, 0.0, level)
    assert (interval.n, interval.mean) == (len(values), np.mean(values))
    assert (interval.low, interval.high) == pytest.approx((expected["low"], expected["high"]), abs=1e-12)
    assert mean_interval(values) == mean_interval(values, 0.95)


@settings(deadline=None, max_examples=50)
@given(samples, st.floats(0.001, 0.05), st.sampled_from([0.0, 0.25]), st.sampled_from([0.9, 0.95]))
def test_paired_tests_are_students(values: list[float], margin: float, overlap: float, level: float) -> None:
    found = paired_test(values, margin, overlap=overlap, level=level)
    for name, expected in by_hand(values, margin, overlap, level).items():
        assert getattr(found, name) == pytest.approx(expected, abs=1e-10), name
    assert paired_test(values, margin, overlap=overlap) == paired_test(values, margin, overlap=overlap, level=0.95)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-100, 100).map(lambda value: value / 1000), min_size=2, max_size=9))  # with ties
def test_sign_flips_are_all_permutations(values: list[float]) -> None:
    signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
    as_far = np.abs(signs @ values) >= abs(sum(values)) - 1e-9
    assert sign_flip(values) == pytest.approx(as_far.mean())


def test_fourteen_differences_are_flipped_in_every_way_and_more_are_drawn() -> None:
    assert sign_flip(np.full(14, 0.01)) == 2 / 2**14
    assert sign_flip(np.full(40, 0.01)) == 1 / 20_001
    values = np.random.default_rng(0).normal(0.004, 0.01, 40)
    assert sign_flip(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)
    assert sign_flip(values) == sign_flip(values) != sign_flip(values, seed=1), "the seed is passed on"
    assert sign_flip([0.3]) == 1 and math.isnan(sign_flip([]))


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
    known = [v for v in values if not math.isnan(v)]
    assert found.n == len(known) and (not known or found.mean == pytest.approx(np.mean(known)))
    assert math.isnan(found.p_sign_flip) == (len(known) < 2)


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
    alone = patient_bootstrap([0.1, math.nan])
    assert (alone.n, alone.mean) == (1, 0.1) and math.isnan(alone.low) and math.isnan(alone.high)


@pytest.mark.parametrize(
    ("seed", "resamples", "level"), [(0, 2000, 0.95), (1, 2000, 0.95), (0, 500, 0.95), (0, 2000, 0.8)]
)
def test_the_bootstrap_draws_patients_with_the_given_seed(seed: int, resamples: int, level: float) -> None:
    values = np.random.default_rng(3).normal(0.01, 0.05, 20)
    drawn = np.random.default_rng(seed).integers(20, size=(resamples, 20))
    expected = np.quantile(values[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    found = patient_bootstrap(values, seed=seed, resamples=resamples, level=level)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-12)


def test_values_without_a_spread_have_an_interval_of_no_width() -> None:
    for interval in (mean_interval([0.3, 0.3, 0.3]), patient_bootstrap([0.3, 0.3, 0.3])):
        assert (interval.low, interval.high) == pytest.approx((0.3, 0.3))
