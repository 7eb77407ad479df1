from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, fbeta_score, precision_recall_curve

from monai_fp4.errors import ConfigError, NumericsError
from monai_fp4.metrics import Confusion, NoPositivesWarning, ScoreHistogram
from monai_fp4.metrics import histogram as histograms
from monai_fp4.metrics.keys import SortedScores

SHAPES = {
    "logits": lambda z: z,
    "probabilities": lambda z: 1 / (1 + np.exp(-z)),
    "saturated": lambda z: 1 / (1 + np.exp(-8 * z)),
    "crowded at 1": lambda z: 1 / (1 + np.exp(-(z + 14))),
    "crowded at 0": lambda z: 1 / (1 + np.exp(-(z - 25))),
    "tied": lambda z: np.round(1 / (1 + np.exp(-z)), 2),
    "discrete": lambda z: np.clip(np.round(z), -6, 6) / 6,
}


def scored(kind: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.02
    return SHAPES[kind](rng.normal(size=count) * 2 - 4 + 4 * labels).astype(np.float32), labels


@pytest.mark.parametrize("kind", SHAPES)
def test_within_1e_6_of_scikit_learn_with_more_scores_than_cells(kind):
    scores, labels = scored(kind, 600_000)
    expected = average_precision_score(labels, scores)
    histogram = ScoreHistogram()
    for part in np.array_split(np.arange(labels.size), 3):
        histogram.add(scores[part], labels[part]).fold()
    assert histogram.distinct <= histogram.capacity
    assert abs(histogram.auprc() - expected) < 1e-6
    low, high = histogram.auprc_bounds()
    assert low - 1e-12 <= expected <= high + 1e-12
    assert abs(SortedScores.of(scores, labels).auprc() - expected) < 1e-12


@pytest.mark.parametrize("kind", ["probabilities", "saturated"])
def test_a_distribution_that_drifts_between_patients_stays_within_its_bounds(kind):
    histogram, parts = ScoreHistogram(4096), []
    for patient in range(8):
        scores, labels = scored(kind, 20_000, seed=patient)
        parts.append((scores ** (1 + patient / 2), labels))
        histogram.add(*parts[-1]).fold()
        assert histogram.distinct <= 4096
    scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    expected = average_precision_score(labels, scores)
    low, high = histogram.auprc_bounds()
    assert low <= expected <= high and high - low < 0.01
    assert abs(histogram.auprc() - expected) < 1e-4


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60), st.integers(0, 60))
def test_pieces_and_sums_equal_the_whole(pairs, cut):
    scores, labels = np.array([p[0] / 12 for p in pairs]), np.array([p[1] for p in pairs])
    whole = ScoreHistogram().add(scores, labels)
    first = ScoreHistogram().add(scores[:cut], labels[:cut])
    second = ScoreHistogram().add(scores[cut:], labels[cut:])
    total = first + second
    assert (total.positives, total.total, total.distinct) == (labels.sum(), labels.size, np.unique(scores).size)
    np.testing.assert_array_equal(total.cells.positives, whole.cells.positives)
    assert first.total + second.total == total.total, "a sum must not change its parts"
    if labels.any():
        assert total.auprc() == pytest.approx(average_precision_score(labels, scores.astype(np.float32)), abs=1e-12)


def test_pr_curve_is_scikit_learns():
    scores, labels = scored("tied", 5000)
    curve = ScoreHistogram().add(scores, labels).pr_curve()
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(curve.precision[::-1], precision[:-1])
    np.testing.assert_allclose(curve.recall[::-1], recall[:-1])
    np.testing.assert_array_equal(curve.thresholds[::-1], thresholds)


def test_a_thinned_curve_is_a_part_of_the_whole_with_both_ends():
    histogram = ScoreHistogram().add(*scored("probabilities", 50_000))
    whole, thin = histogram.pr_curve(), histogram.pr_curve(points=200)
    assert thin.tp.size <= 200 and np.isin(thin.thresholds, whole.thresholds).all()
    assert thin.recall[-1] == 1 and thin.thresholds[0] == whole.thresholds[0]
    assert np.diff(thin.recall).max() < 0.02


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_threshold_has_the_highest_f_beta_of_all_scores(beta):
    rng = np.random.default_rng(0)
    for _ in range(25):
        labels = rng.random(60) < 0.3
        scores = (rng.random(60) + 0.2 * labels).astype(np.float32)
        chosen = ScoreHistogram().add(scores, labels).choose_threshold(beta)
        best = max(fbeta_score(labels, scores >= t, beta=beta) for t in scores)
        assert fbeta_score(labels, scores >= np.float32(chosen), beta=beta) == pytest.approx(best)


def test_default_threshold_prefers_recall():
    histogram = ScoreHistogram().add(*scored("probabilities", 50_000))
    preferring, dice = (
        histogram.confusion(histogram.choose_threshold()),
        histogram.confusion(histogram.choose_threshold(1)),
    )
    assert preferring.recall > dice.recall and preferring.precision < dice.precision and preferring.dice < dice.dice


def test_confusion_counts_scores_at_the_threshold_as_tumour():
    counts = ScoreHistogram().add([0.1, 0.5, 0.5, 0.9], [0, 1, 0, 1]).confusion(0.5)
    assert counts == Confusion(tp=2, fp=1, fn=0, tn=1)
    assert (counts.dice, counts.recall, counts.precision) == (0.8, 1.0, pytest.approx(2 / 3))


def test_without_tumour_every_ranking_metric_is_nan_and_says_so():
    histogram = ScoreHistogram().add([0.1, 0.2], [0, 0])
    for ask in (histogram.auprc, histogram.choose_threshold, lambda: histogram.auprc_bounds()[0]):
        with pytest.warns(NoPositivesWarning, match="without positive labels, found 2 negative"):
            assert math.isnan(ask())
    assert np.isnan(histogram.pr_curve().recall).all() and math.isnan(histogram.confusion(0.5).dice)


def test_an_empty_histogram_answers():
    histogram = ScoreHistogram()
    assert (histogram.total, histogram.distinct, histogram.exact) == (0, 0, True)
    assert histogram.confusion(0.5) == Confusion(tp=0, fp=0, fn=0, tn=0)


def test_nan_is_refused_and_nothing_of_it_counted():
    histogram = ScoreHistogram().add([0.5], [1])
    with pytest.raises(NumericsError):
        histogram.add([0.1, float("nan")], [0, 1])
    assert histogram.total == 1


def test_distinct_counts_values_and_admits_when_it_cannot():
    exact = ScoreHistogram(1000).add(np.tile(np.linspace(0, 1, 1000), 3), np.zeros(3000, bool))
    assert exact.exact and exact.distinct == 1000
    merged = ScoreHistogram(1000).add(np.linspace(0, 1, 5000), np.zeros(5000, bool))
    assert not merged.exact and merged.distinct <= 1000


def test_binned_counts_every_voxel_once():
    scores, labels = scored("probabilities", 20_000)
    scores[:4] = [0, 0.1, 0.5, 1]  # on the edges
    edges = np.linspace(0, 1, 11).astype(np.float32).astype(np.float64)
    positives, negatives = ScoreHistogram(None).add(scores, labels).binned(edges)
    np.testing.assert_array_equal(positives, np.histogram(scores[labels], edges)[0])
    np.testing.assert_array_equal(negatives, np.histogram(scores[~labels], edges)[0])


def test_scores_wait_until_they_are_many(monkeypatch):
    monkeypatch.setattr(histograms, "_WAITING", 5)
    made = ScoreHistogram().add([0.1, 0.2], [0, 1]).add([0.3, 0.3], [0, 1])
    assert len(made._pending) == 2
    made.add([0.4], [1])
    assert not made._pending and made.total == 5 and made.distinct == 4


@pytest.mark.parametrize("wrong", [lambda: ScoreHistogram(10), lambda: ScoreHistogram().choose_threshold(0)])
def test_refuses_options_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match="expects"):
        wrong()
