from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from sklearn.metrics import average_precision_score
from synthetic_patients import evaluator_of, synthetic_cohort

from monai_fp4.handlers import AUPRC, cohort_of
from monai_fp4.metrics import Cohort


def flat(patients, key):
    return torch.cat([p[key].flatten() for p in patients]).numpy()


def test_is_the_key_metric_of_monais_evaluator():
    patients = synthetic_cohort()
    evaluator = evaluator_of(patients, key_val_metric={"auprc": AUPRC()})
    evaluator.run()
    expected = average_precision_score(flat(patients, "label"), flat(patients, "pred"))
    assert evaluator.state.metrics["auprc"] == pytest.approx(expected, abs=1e-12)
    assert evaluator.state.best_metric == evaluator.state.metrics["auprc"]


def test_leaves_details_of_every_patient():
    patients = synthetic_cohort()
    evaluator = evaluator_of(patients, key_val_metric={"area": AUPRC()})
    evaluator.run()
    details = evaluator.state.metric_details["area"]
    assert details.shape == (5, 1)
    expected = [average_precision_score(p["label"].flatten(), p["pred"].flatten()) for p in patients[:4]]
    assert details[:4, 0].tolist() == pytest.approx(expected, abs=1e-6) and math.isnan(details[4, 0])
    assert [p.name for p in cohort_of(evaluator).patients] == [p["patient"] for p in patients]
    assert evaluator.state.metrics["area_per_patient"] == pytest.approx(sum(expected) / 4)


def test_other_metrics_are_those_of_the_voxels():
    patients = synthetic_cohort()
    evaluator = evaluator_of(patients, key_val_metric={"auprc": AUPRC(beta=1)})
    evaluator.run()
    metrics = evaluator.state.metrics
    called, truth = flat(patients, "pred") >= metrics["threshold"], flat(patients, "label") == 1
    tp, fp, fn = (called & truth).sum(), (called & ~truth).sum(), (~called & truth).sum()
    assert metrics["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert metrics["recall"] == pytest.approx(tp / (tp + fn))
    assert metrics["precision"] == pytest.approx(tp / (tp + fp))
    assert metrics["val_loss"] == pytest.approx(0.75)
    assert metrics["distinct_scores"] == len(set(flat(patients, "pred").tolist()))


def test_each_run_starts_anew():
    evaluator = evaluator_of(synthetic_cohort(), key_val_metric={"auprc": AUPRC()})
    evaluator.run(1)
    first = dict(evaluator.state.metrics)
    evaluator.run(2)
    assert dict(evaluator.state.metrics) == first and len(cohort_of(evaluator).patients) == 5


def test_output_without_names_or_losses_will_do():
    patients = [{"pred": p["pred"], "label": p["label"]} for p in synthetic_cohort()[:2]]
    evaluator = evaluator_of(patients, key_val_metric={"auprc": AUPRC()})
    evaluator.run()
    assert "val_loss" not in evaluator.state.metrics and evaluator.state.metrics["auprc"] > 0.9


def test_a_given_threshold_is_used():
    evaluator = evaluator_of(synthetic_cohort(), key_val_metric={"auprc": AUPRC(threshold=0.25)})
    evaluator.run()
    assert evaluator.state.metrics["threshold"] == 0.25


def test_own_output_transform():
    pairs = [([torch.tensor([[0.9, 0.1]])], [torch.tensor([[1, 0]])])]
    evaluator = evaluator_of(pairs, key_val_metric={"auprc": AUPRC(output_transform=lambda output: output[0])})
    evaluator.run()
    assert evaluator.state.metrics["auprc"] == 1


@pytest.mark.filterwarnings("ignore::monai_fp4.metrics.histogram.NoPositivesWarning")
def test_validation_without_tumour_is_nan_and_not_an_error():
    evaluator = evaluator_of(synthetic_cohort()[4:], key_val_metric={"auprc": AUPRC()})
    evaluator.run()
    assert math.isnan(evaluator.state.metrics["auprc"]) and "dice" not in evaluator.state.metrics


def test_ranks_exchange_their_counts_once_a_validation(monkeypatch):
    evaluator, exchanged = evaluator_of(synthetic_cohort(), key_val_metric={"auprc": AUPRC()}), []

    def all_gather_object(parts, own):
        exchanged.append(own)
        parts[0], parts[1] = own, (Cohort().pooled, ())

    evaluator.run()
    alone = evaluator.state.metric_details["auprc"], dict(evaluator.state.metrics)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    evaluator.run()
    assert len(exchanged) == 1 and dict(evaluator.state.metrics) == alone[1]
    by_name = [p["patient"] for p in synthetic_cohort()]
    order = sorted(range(5), key=by_name.__getitem__)
    torch.testing.assert_close(evaluator.state.metric_details["auprc"], alone[0][order], equal_nan=True, rtol=0, atol=0)


def test_the_cohort_is_there_for_others_and_knows_its_threshold_before_the_run():
    evaluator = evaluator_of(synthetic_cohort(), key_val_metric={"auprc": AUPRC(threshold=0.25)})
    before = cohort_of(evaluator)
    assert before.threshold == 0.25 and not before.patients
    evaluator.run()
    assert len(cohort_of(evaluator).patients) == 5
    assert cohort_of(Engine(lambda engine, batch: None)) is None


def test_details_can_be_left_out():
    evaluator = evaluator_of(synthetic_cohort(), key_val_metric={"auprc": AUPRC(save_details=False)})
    evaluator.run()
    assert "auprc" not in getattr(evaluator.state, "metric_details", {})
