"""Soft scores of an evaluator's run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Engine

from monai_fp4.handlers import AUPRC, SoftScoring
from monai_fp4.metrics import SOFT_SCORES, ScoreHistogram, SoftScores


def patient(name: str) -> dict[str, Any]:
    return {"pred": torch.rand(1, 6, 5, 4), "label": (torch.rand(1, 6, 5, 4) > 0.8).byte(), "patient": name}


def test_scores_of_all_slices_of_all_patients() -> None:
    torch.manual_seed(0)
    items = [patient("b"), patient("a")]
    engine = Engine(lambda _, item: [item])
    SoftScoring().attach(engine)  # before AUPRC: the order does not matter
    AUPRC().attach(engine, "auprc")
    metrics = dict(engine.run(items).metrics)
    expected, histogram = SoftScores(), ScoreHistogram()
    for item in items:
        expected.add(item["patient"], *(item[key][0].permute(2, 0, 1) for key in ("pred", "label")))
        histogram.add(item["pred"], item["label"])
    assert {name: metrics[name] for name in SOFT_SCORES} == pytest.approx(expected.summary(histogram), rel=1e-12)
    again = dict(engine.run(items).metrics)
    assert [again[name] for name in SOFT_SCORES] == [metrics[name] for name in SOFT_SCORES]


def test_without_auprc_there_is_no_roc_auc() -> None:
    engine = Engine(lambda _, item: [item])
    SoftScoring().attach(engine)
    assert set(engine.run([patient("a")]).metrics) == set(SOFT_SCORES) - {"roc_auc"}
