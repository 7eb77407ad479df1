"""The paper's soft scores: its reference values, and what is peculiar to them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from monai_fp4.errors import DataError, NumericsError
from monai_fp4.metrics import SOFT_SCORES, ScoreHistogram, SoftScores

REFERENCE = json.loads((Path(__file__).parents[1] / "paper_reference.json").read_text())["loss_and_metrics"]


def reference_slices() -> tuple[Tensor, Tensor]:
    """Probabilities and labels of the reference: 2 slices of 256 x 256, the second without tumour."""
    k = torch.arange(2 * 256 * 256, dtype=torch.int64)
    logits = 4 * (2 * ((7 * k * k + 13 * k + 5) % 1013).double() / 1012 - 1).float()
    labels = torch.zeros(2, 1, 256, 256, dtype=torch.uint8)
    labels[0, 0, 50:90, 60:130] = 1
    return logits.view(2, 1, 256, 256).sigmoid(), labels


def summary(probabilities: Tensor, labels: Tensor, batch_size: int = 32) -> dict[str, float]:
    scores = SoftScores(batch_size)
    scores.add("a", probabilities, labels)
    return dict(scores.summary(ScoreHistogram().add(probabilities, labels)))


def test_reference_values() -> None:
    found, expected = summary(*reference_slices()), REFERENCE["probabilities_unclipped"]
    assert tuple(found) == SOFT_SCORES
    for name in ("soft_recall", "soft_precision", "soft_f2", "soft_iou", "roc_auc", "ece_15"):
        assert found[name] == pytest.approx(expected[name], rel=2e-6), name
    assert found["dice_paper"] == pytest.approx(expected["dice_per_image_mean"], rel=1e-6)


def test_dice_averages_batches_whatever_their_size() -> None:
    probabilities, labels = torch.zeros(33, 1, 2, 2), torch.zeros(33, 1, 2, 2)
    probabilities[32], labels[32] = 1.0, 1.0  # perfect, and alone in the last batch
    probabilities[:32] = 0.5  # nothing there, so about 0
    assert summary(probabilities, labels)["dice_paper"] == pytest.approx(0.5, abs=1e-6)
    assert summary(probabilities, labels, batch_size=33)["dice_paper"] == pytest.approx(1 / 33, abs=1e-6)


def test_patients_count_in_the_order_of_their_ids_and_ranks_add_up() -> None:
    torch.manual_seed(0)
    data = {name: (torch.rand(20, 4, 4), torch.rand(20, 4, 4) > 0.7) for name in ("c", "a", "b")}
    one, ranks = SoftScores(), (SoftScores(), SoftScores())
    for number, (name, pair) in enumerate(data.items()):
        one.add(name, *pair)
        ranks[number % 2].add(name, *pair)
    ordered = summary(*(torch.cat([data[name][part] for name in "abc"]) for part in (0, 1)))
    for found in (one.summary(), ranks[0].merge(ranks[1]).summary()):
        assert found == pytest.approx({name: ordered[name] for name in found}, rel=1e-12)


def test_calibration_error_has_fifteen_bins() -> None:
    labels = torch.cat([torch.ones(1, 10), torch.zeros(1, 10)])
    for high, bins in ((0.066, 1), (0.067, 2)):  # 1/15 is 0.0667
        found = summary(torch.cat([torch.full((1, 10), high), torch.full((1, 10), 0.05)]), labels)
        gap = (0.5 - (high + 0.05) / 2) if bins == 1 else ((1 - high) + 0.05) / 2
        assert found["ece_15"] == pytest.approx(gap, abs=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_roc_auc_is_the_share_of_ordered_pairs(ties: bool) -> None:
    torch.manual_seed(1)
    scores, labels = torch.rand(300), torch.rand(300) < 0.2
    if ties:
        scores = (scores * 5).round() / 5
    wins = scores[labels][:, None] - scores[~labels]
    share = ((wins > 0).double() + 0.5 * (wins == 0).double()).mean().item()
    assert ScoreHistogram().add(scores, labels).roc_auc() == pytest.approx(share, rel=1e-12)
    assert math.isnan(ScoreHistogram().add(scores, torch.zeros(300)).roc_auc())


def test_pixels_that_are_to_be_ignored_count_nowhere() -> None:
    torch.manual_seed(2)
    probabilities, labels = torch.rand(3, 8), (torch.rand(3, 8) > 0.5).to(torch.uint8)
    whole, half = SoftScores(), SoftScores()
    half.add("a", probabilities[:, :5], labels[:, :5])
    labels[:, 5:] = 255
    whole.add("a", probabilities, labels)
    assert whole.summary() == pytest.approx(half.summary(), rel=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    scores = SoftScores()
    scores.add("a", torch.rand(2, 3), torch.zeros(2, 3))
    with pytest.raises(DataError, match="each patient once"):
        scores.add("a", torch.rand(2, 3), torch.zeros(2, 3))
    with pytest.raises(DataError, match=r"shape \(2, 3\), found \(2, 4\)"):
        scores.add("b", torch.rand(2, 3), torch.zeros(2, 4))
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(NumericsError, match="probabilities from 0 to 1"):
            scores.add("b", torch.full((2, 3), wrong), torch.zeros(2, 3))
    assert math.isnan(SoftScores().summary()["dice_paper"])
