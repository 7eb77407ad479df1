"""Reliability from counts, against the scores themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_fp4.handlers.tensorboard import pr_curve_rows
from monai_fp4.metrics.histogram import ScoreHistogram
from monai_fp4.report.tables.calibration import COARSE, bin_width, reliability, score_bins


def counts(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What a run writes and `events` reads: `[tp, fp, tn, fn]` x thresholds."""
    rows = pr_curve_rows(ScoreHistogram().add(scores, labels))
    names = ("true_positive", "false_positive", "true_negative", "false_negative")
    return np.stack([rows[f"{name}_counts"] for name in names])


def mostly_background(seed: int, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which `power` 1 is calibrated; above it, tumour is rarer than predicted."""
    random = np.random.default_rng(seed)
    scores = random.beta(0.1, 2.0, 200_000).astype(np.float32)
    return scores, (random.random(scores.size) < scores**power).astype(np.uint8)


def direct_error(scores: np.ndarray, labels: np.ndarray, least: int = 0) -> float:
    at = np.minimum((scores * COARSE).astype(int), COARSE - 1)
    total = error = 0.0
    for number in range(least, COARSE):
        chosen = at == number
        if chosen.any():
            total += chosen.sum()
            error += chosen.sum() * abs(scores[chosen].mean() - labels[chosen].mean())
    return error / total


@pytest.mark.parametrize("power", [1.0, 1.5, 3.0])
def test_errors_are_those_of_the_scores(power: float) -> None:
    scores, labels = mostly_background(0, power)
    curve = counts(scores, labels)
    bins = np.array(score_bins(curve))
    result = reliability(bins[:, 1], bins[:, 2], bin_width(curve), float(scores.mean()))
    assert result.ece == pytest.approx(direct_error(scores, labels), abs=3e-4)
    assert result.ece_above == pytest.approx(direct_error(scores, labels, least=1), abs=2e-3)


def test_calibrated_scores_lie_on_the_diagonal_and_others_below() -> None:
    calibrated = np.array(score_bins(counts(*mostly_background(1, 1.0))))
    result = reliability(calibrated[:, 1], calibrated[:, 2], 1 / 126)
    assert np.abs(result.observed - result.predicted)[result.count > 500].max() < 0.03
    sure = np.array(score_bins(counts(*mostly_background(1, 2.0))))
    result = reliability(sure[:, 1], sure[:, 2], 1 / 126)
    assert (result.observed < result.predicted)[result.count > 500][1:].all()


def test_the_known_mean_places_the_lowest_bin() -> None:
    """Nearly all voxels are close to 0: taken at the middle of the bin they would seem miscalibrated."""
    scores = np.full(10_000, 1e-5, np.float32)
    labels = np.zeros(10_000, np.uint8)
    bins = np.array(score_bins(counts(scores, labels)))
    assert reliability(bins[:, 1], bins[:, 2], 1 / 126).ece == pytest.approx(0.5 / 126)
    assert reliability(bins[:, 1], bins[:, 2], 1 / 126, 1e-5).ece == pytest.approx(1e-5, abs=1e-7)


def test_every_voxel_is_in_one_bin() -> None:
    scores = np.array([0.0, 0.5, 1.0, 1.0, 0.999], np.float32)
    bins = score_bins(counts(scores, np.array([0, 1, 1, 0, 1], np.uint8)))
    assert len(bins) == 126
    assert sum(b[1] for b in bins) == 3 and sum(b[2] for b in bins) == 2
    assert bins[-1][1:] == (2.0, 1.0), "scores of exactly 1 belong to the last bin"


def test_no_voxels_have_no_error() -> None:
    result = reliability(np.zeros(126), np.zeros(126), 1 / 126, math.nan)
    assert math.isnan(result.ece) and math.isnan(result.ece_above) and result.predicted.size == 0
