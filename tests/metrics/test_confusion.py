"""Counts at one threshold, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from monai_fp4.metrics import Confusion, PRCurve


def test_scans_add_up_count_by_count() -> None:
    assert Confusion(tp=1, fp=2, fn=3, tn=4) + Confusion(tp=10, fp=20, fn=30, tn=40) == Confusion(
        tp=11, fp=22, fn=33, tn=44
    )


def test_ratios_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, called = rng.random(500) < 0.3, rng.random(500) < 0.4
    (tn, fp), (fn, tp) = confusion_matrix(truth, called).tolist()
    counts = Confusion(tp=tp, fp=fp, fn=fn, tn=tn)
    precision, recall, dice, _ = precision_recall_fscore_support(truth, called, average="binary")
    assert (counts.precision, counts.recall, counts.dice) == pytest.approx((precision, recall, dice))


@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        ({"tp": 0, "fp": 0, "fn": 0, "tn": 5}, {"dice", "recall", "precision"}),
        ({"tp": 0, "fp": 1, "fn": 0, "tn": 4}, {"recall"}),
        ({"tp": 0, "fp": 0, "fn": 1, "tn": 4}, {"precision"}),
    ],
)
def test_what_is_undefined_is_nan(counts: dict[str, int], undefined: set[str]) -> None:
    found = Confusion(**counts)
    values = {name: getattr(found, name) for name in ("dice", "recall", "precision")}
    assert {name for name, value in values.items() if math.isnan(value)} == undefined
    assert all(value == 0 for name, value in values.items() if name not in undefined)


def test_a_curve_without_tumour_has_no_recall() -> None:
    numbers = {"thresholds": np.array([0.5, 0.1], np.float32), "tp": np.array([0, 1]), "fp": np.array([1, 1])}
    curve = PRCurve(**numbers, positives=1, negatives=1)
    assert curve.recall.tolist() == [0, 1] and curve.precision.tolist() == [0, 0.5]
    assert np.isnan(PRCurve(**numbers, positives=0, negatives=2).recall).all()
