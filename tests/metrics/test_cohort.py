from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch.distributed as dist
from sklearn.metrics import average_precision_score, fbeta_score, precision_recall_fscore_support

from monai_fp4.errors import ConfigError, DataError
from monai_fp4.metrics import Cohort, Confusion, ScoreHistogram

COUNT = 6


def patients(size: int = 4000) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(7)
    result = []
    for index in range(COUNT):
        labels = rng.random(size) < 0.03 * index  # the first has no tumour
        result.append(((rng.normal(size=size) + index * 0.6 * labels).astype(np.float32), labels))
    return result


def cohort(**options) -> Cohort:
    result = Cohort(**options)
    for index, (scores, labels) in enumerate(patients()):
        result.add(f"p{index}", scores, labels, loss=index / 10)
    return result


def test_pooled_and_per_patient_are_scikit_learns():
    made, data = cohort(), patients()
    scores, labels = (np.concatenate(column) for column in zip(*data, strict=True))
    assert made.auprc == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    each = [average_precision_score(y, s) for s, y in data[1:]]
    assert [p.auprc for p in made.patients[1:]] == pytest.approx(each, abs=1e-12)
    assert made.auprc_per_patient == pytest.approx(np.mean(each))
    assert made.without_tumour == ("p0",) and math.isnan(made.patients[0].auprc)


@pytest.mark.parametrize("capacity", [None, 512])
def test_counts_of_patients_at_the_chosen_threshold_are_exact_and_sum_to_the_pooled(capacity):
    made, data = cohort(patient_capacity=capacity), patients()
    threshold = made.choose_threshold()
    counts = made.confusion(threshold)
    for index, (scores, labels) in enumerate(data):
        called = scores >= np.float32(threshold)
        assert counts[f"p{index}"] == Confusion(
            tp=int((called & labels).sum()), fp=int((called & ~labels).sum()),
            fn=int((~called & labels).sum()), tn=int((~called & ~labels).sum()),
        )  # fmt: skip


def test_a_threshold_given_beforehand_is_counted_exactly_whatever_the_cells():
    made = cohort(patient_capacity=256, threshold=0.123)
    for (scores, labels), counts in zip(patients(), made.confusion(0.123).values(), strict=True):
        called = scores >= np.float32(0.123)
        assert (counts.tp, counts.fp) == ((called & labels).sum(), (called & ~labels).sum())
        assert (counts.fn, counts.tn) == ((~called & labels).sum(), (~called & ~labels).sum())
    assert made.summary()["threshold"] == 0.123


def test_every_patient_has_a_row_and_what_is_undefined_is_none():
    made, data = cohort(), patients()
    threshold = made.choose_threshold()
    rows = made.per_patient(threshold)
    assert [row["patient"] for row in rows] == [f"p{index}" for index in range(COUNT)]
    assert rows[0]["auprc"] is rows[0]["recall"] is None and rows[0]["tumour_voxels"] == 0
    for row, (scores, labels) in zip(rows[1:], data[1:], strict=True):
        called = scores >= np.float32(threshold)
        precision, recall, dice, _ = precision_recall_fscore_support(labels, called, average="binary")
        assert (row["precision"], row["recall"], row["dice"]) == pytest.approx((precision, recall, dice))
        assert row["auprc"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        assert (row["voxels"], row["tumour_voxels"]) == (labels.size, labels.sum())
        assert row["missed_voxels"] == (labels & ~called).sum()
        assert row["false_alarm_voxels"] == (~labels & called).sum()


def test_summary_holds_every_number_of_a_validation():
    summary = cohort().summary("area")
    assert summary["val_loss"] == pytest.approx(0.25)
    assert summary["distinct_scores"] == np.unique(np.concatenate([s for s, _ in patients()])).size
    expected = {"dice", "recall", "precision", "area"}
    assert set(summary) == expected | {f"{n}_per_patient" for n in expected} | {
        "threshold",
        "distinct_scores",
        "val_loss",
    }


def test_summary_is_at_the_threshold_of_the_highest_f2_of_all_voxels():
    made, data = cohort(), patients()
    summary = made.summary()
    scores, labels = (np.concatenate(column) for column in zip(*data, strict=True))
    called = scores >= np.float32(summary["threshold"])
    precision, recall, dice, _ = precision_recall_fscore_support(labels, called, average="binary")
    assert (summary["precision"], summary["recall"], summary["dice"]) == pytest.approx((precision, recall, dice))
    highest = max(fbeta_score(labels, scores >= t, beta=2) for t in np.quantile(scores, np.linspace(0.5, 1, 200)))
    assert highest <= fbeta_score(labels, called, beta=2) < highest + 0.01
    with_tumour = made.per_patient(summary["threshold"])[1:]
    assert summary["recall_per_patient"] == pytest.approx(np.mean([row["recall"] for row in with_tumour]))
    assert made.summary(beta=0.5)["precision"] > summary["precision"] and made.summary(beta=0.5)["recall"] < recall


def test_summary_without_any_tumour_has_no_threshold():
    made = Cohort()
    made.add("healthy", [0.1, 0.2], [0, 0])
    summary = made.summary()
    assert math.isnan(summary["auprc"]) and math.isnan(summary["auprc_per_patient"]) and "threshold" not in summary


def test_bootstrap_is_that_of_the_resampled_voxels():
    made, data = cohort(), patients()
    threshold = 0.5
    counts = [Confusion(tp=int(((s >= threshold) & y).sum()), fp=int(((s >= threshold) & ~y).sum()),
                        fn=int(((s < threshold) & y).sum()), tn=0) for s, y in data]  # fmt: skip
    intervals = made.bootstrap(threshold, resamples=60, seed=3)
    draws = np.random.default_rng(3).multinomial(COUNT, np.full(COUNT, 1 / COUNT), size=60)
    areas, dices, means = [], [], []
    for draw in draws:
        rows = [data[i] for i, times in enumerate(draw) for _ in range(times)]
        scores, labels = (np.concatenate(column) for column in zip(*rows, strict=True))
        areas.append(average_precision_score(labels, scores))
        tp, fp, fn = (np.array([getattr(c, n) for c in counts]) @ draw for n in ("tp", "fp", "fn"))
        dices.append(2 * tp / (2 * tp + fp + fn))
        recalls = [(c.tp / (c.tp + c.fn), times) for c, times in zip(counts, draw, strict=True) if c.tp + c.fn]
        means.append(sum(r * t for r, t in recalls) / sum(t for _, t in recalls))
    for name, samples, tolerance in (
        ("auprc", areas, 1e-4),
        ("dice", dices, 1e-9),
        ("recall_per_patient", means, 1e-9),
    ):
        low, high = np.quantile(samples, [0.025, 0.975])
        assert (intervals[name].low, intervals[name].high) == pytest.approx((low, high), abs=tolerance), name
    assert intervals["auprc"].low < intervals["auprc"].value < intervals["auprc"].high


def test_bootstrap_repeats_itself_and_follows_the_seed():
    made = cohort()
    assert made.bootstrap(resamples=50, seed=1) == made.bootstrap(resamples=50, seed=1)
    assert made.bootstrap(resamples=50, seed=1) != made.bootstrap(resamples=50, seed=2)


def test_bootstrap_by_default_is_a_thousand_resamples_of_seed_0():
    made = cohort(patient_capacity=256)
    assert made.bootstrap(0.5) == made.bootstrap(0.5, resamples=1000, seed=0, level=0.95)


def test_bootstrap_of_one_patient_without_tumour_is_undefined():
    made = Cohort()
    made.add("healthy", [0.1, 0.2], [0, 0])
    interval = made.bootstrap(resamples=10)["auprc"]
    assert math.isnan(interval.value) and math.isnan(interval.low)


def test_errors():
    made = cohort()
    with pytest.raises(DataError, match="'p1' twice"):
        made.add("p1", [0.5], [1])
    with pytest.raises(ConfigError, match="resample"):
        made.bootstrap(resamples=0)
    with pytest.raises(DataError, match="at least one patient"):
        Cohort().bootstrap()


def test_a_patient_that_fails_leaves_no_trace():
    made = Cohort()
    with pytest.raises(DataError):
        made.add("anna", [0.5, 0.6], [0, 3])
    assert made.patients == () and made.pooled.total == 0


def test_what_travels_between_ranks_is_counted_and_not_every_score(monkeypatch):
    made, sent = cohort(), []

    def all_gather_object(parts, own):
        sent.append(pickle.dumps(own))
        parts[0], parts[1] = pickle.loads(sent[0]), (ScoreHistogram(), ())

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    together = made.gather()
    pooled, _ = pickle.loads(sent[0])
    assert not pooled._pending and together.auprc == made.auprc and len(together.patients) == COUNT
