"""Reliability from counts, against the scores themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_fp4.handlers.health import score_bins
from monai_fp4.metrics import ScoreHistogram
from monai_fp4.report.tables import COARSE, reliability


def counts(scores: np.ndarray, labels: np.ndarray) -> tuple[list[int], list[int]]:
    """Lesion and background voxels in each of the bins that a run writes."""
    bins = score_bins(ScoreHistogram().add(scores, labels))
    return bins["positives"], bins["negatives"]


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
    result = reliability(*counts(scores, labels), 1 / 126, float(scores.mean()))
    assert result.ece == pytest.approx(direct_error(scores, labels), abs=3e-4)
    assert result.ece_above == pytest.approx(direct_error(scores, labels, least=1), abs=2e-3)


def test_calibrated_scores_lie_on_the_diagonal_and_others_below() -> None:
    result = reliability(*counts(*mostly_background(1, 1.0)), 1 / 126)
    assert np.abs(result.observed - result.predicted)[result.count > 500].max() < 0.03
    result = reliability(*counts(*mostly_background(1, 2.0)), 1 / 126)
    assert (result.observed < result.predicted)[result.count > 500][1:].all()


def test_the_known_mean_places_the_lowest_bin() -> None:
    """Nearly all voxels are close to 0: taken at the middle of the bin they would seem miscalibrated."""
    scores = np.full(10_000, 1e-5, np.float32)
    labels = np.zeros(10_000, np.uint8)
    bins = counts(scores, labels)
    assert reliability(*bins, 1 / 126).ece == pytest.approx(0.5 / 126)
    assert reliability(*bins, 1 / 126, 1e-5).ece == pytest.approx(1e-5, abs=1e-7)


def test_no_voxels_have_no_error() -> None:
    result = reliability(np.zeros(126), np.zeros(126), 1 / 126, math.nan)
    assert math.isnan(result.ece) and math.isnan(result.ece_above) and result.predicted.size == 0
