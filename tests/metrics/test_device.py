"""Scores that stay on a device, a GPU where there is one and else the CPU: the same numbers as on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from triton_setup import DEVICE

from monai_fp4.errors import DataError, NumericsError
from monai_fp4.metrics import AUPRCMetric, Cohort, ScoreHistogram, compute_auprc
from monai_fp4.metrics import keys as score_keys
from monai_fp4.metrics.device import on_device, split_on_device, to_host
from monai_fp4.metrics.keys import SortedScores, split_keys


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every tensor for one on a CUDA device."""
    monkeypatch.setattr(score_keys, "on_device", lambda scores: isinstance(scores, torch.Tensor))


def scored(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, generator=generator) < 0.03
    scores = torch.sigmoid(torch.randn(count, generator=generator) * 2 - 4 + 4 * labels)
    scores[::7] = scores[::7].round(decimals=2)  # ties
    return scores, labels.to(torch.uint8)


def there_is(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on the device."""
    return scores.to(DEVICE), labels.to(DEVICE)


def test_the_host_counts_its_own_tensors() -> None:
    assert not on_device(torch.zeros(1)) and not on_device([0.5])


def test_keys_are_those_of_the_host() -> None:
    scores = torch.tensor([-np.inf, -1.5, -0.0, 0.0, 1e-40, -1e-40, 1.0, np.inf])
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    for got, wanted in zip(split_on_device(*there_is(scores, labels)), split_keys(scores, labels), strict=True):
        np.testing.assert_array_equal(to_host(got), wanted)


def test_complex_scores_are_refused() -> None:
    with pytest.raises(DataError, match="real numbers as scores"):
        split_on_device(torch.tensor([1j, 0.5]), torch.tensor([0, 1]))


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("count", [1, 50, 40_000])
def test_exact_numbers_are_those_of_the_host(count: int) -> None:
    scores, labels = scored(count)
    here, there = SortedScores.of(scores.numpy(), labels), SortedScores.of(*there_is(scores, labels))
    assert isinstance(there.positives, torch.Tensor)
    assert (there.size, there.distinct) == (here.size, here.distinct)
    for threshold in (0.0, 0.02, 0.5, float(scores[0]), 1.5):
        assert there.at_or_above(threshold) == here.at_or_above(threshold)
    if labels.any():
        assert there.auprc() == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        assert compute_auprc(*there_is(scores, labels)) == there.auprc()
    else:
        assert np.isnan(there.auprc())


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("capacity", [256, 4096, None])
def test_cells_are_those_of_the_host(capacity: int | None) -> None:
    here, there = ScoreHistogram(capacity), ScoreHistogram(capacity)
    for seed in range(3):
        scores, labels = scored(20_000, seed)
        here.add(scores.numpy(), labels.numpy()).fold()
        scores, labels = there_is(scores, labels)
        there.add(scores[:9000], labels[:9000]).add(scores[9000:], labels[9000:]).fold()
    for field in ("low", "level", "positives", "negatives"):
        np.testing.assert_array_equal(getattr(there.cells, field), getattr(here.cells, field))


@pytest.mark.usefixtures("device")
def test_scores_of_the_host_and_of_a_device_add_up() -> None:
    scores, labels = scored(5000)
    mixed = ScoreHistogram().add(*there_is(scores[:2000], labels[:2000])).add(scores[2000:].numpy(), labels[2000:])
    assert mixed.auprc() == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


@pytest.mark.usefixtures("device")
def test_metric_and_cohort_take_them() -> None:
    scores, labels = scored(3000)
    metric = AUPRCMetric()
    metric(*there_is(scores.reshape(3, 1, 1000), labels.reshape(3, 1, 1000)))
    assert float(metric.aggregate()) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    cohort = Cohort(threshold=0.3)
    patient = cohort.add("anna", *there_is(scores, labels))
    assert patient.positives == int(labels.sum()) and patient.confusion is not None
    assert patient.confusion.tp == int(((scores >= 0.3) & (labels == 1)).sum())


@pytest.mark.usefixtures("device")
def test_what_is_wrong_is_said() -> None:
    with pytest.raises(NumericsError, match="NaN in 1 of 2"):
        compute_auprc(torch.tensor([0.5, float("nan")], device=DEVICE), [0, 1])
    with pytest.raises(DataError, match="found 2;"):
        compute_auprc(torch.tensor([0.5, 0.1], device=DEVICE), [2, 1])
    with pytest.raises(DataError, match="found 1 for 2"):
        compute_auprc(torch.tensor([0.5, 0.1], device=DEVICE), [1])
