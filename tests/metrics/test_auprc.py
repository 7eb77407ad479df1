from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from monai_fp4.errors import DataError, NumericsError
from monai_fp4.metrics import AUPRCMetric, NoPositivesWarning, compute_auprc


def volumes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(count, 1, 16, 16, 4, generator=generator) < 0.05
    return torch.randn(labels.shape, generator=generator) + 2 * labels, labels.to(torch.uint8)


def reference(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return average_precision_score(labels.flatten().numpy(), scores.flatten().numpy())


def test_function_agrees_with_scikit_learn():
    scores, labels = volumes(3)
    assert compute_auprc(scores, labels) == pytest.approx(reference(scores, labels), abs=1e-12)
    assert compute_auprc(scores.numpy(), labels.numpy().astype(bool)) == compute_auprc(scores, labels)


def test_function_warns_where_it_is_undefined():
    with pytest.warns(NoPositivesWarning, match="found 3 negative"):
        assert math.isnan(compute_auprc([0.1, 0.2, 0.3], [0, 0, 0]))


def test_metric_pools_batches_and_returns_items():
    scores, labels = volumes(5)
    metric = AUPRCMetric()
    first = metric(scores[:3], labels[:3])
    metric(list(scores[3:]), list(labels[3:]))
    assert first.shape == (3, 1)
    assert first[1].item() == pytest.approx(reference(scores[1], labels[1]), abs=1e-6)
    for _ in range(2):  # aggregating twice changes nothing
        assert float(metric.aggregate()) == pytest.approx(reference(scores, labels), abs=1e-12)
    assert metric.get_buffer().shape == (5, 1)


def test_reset_forgets():
    metric = AUPRCMetric()
    metric(*volumes(2, seed=1))
    metric.reset()
    scores, labels = volumes(2, seed=2)
    metric(scores, labels)
    assert float(metric.aggregate()) == pytest.approx(reference(scores, labels), abs=1e-12)
    assert metric.get_buffer().shape == (2, 1)


def test_items_without_tumour_are_nan_and_count_as_background():
    scores, labels = volumes(2)
    labels[1] = 0
    metric = AUPRCMetric()
    assert torch.isnan(metric(scores, labels)).flatten().tolist() == [False, True]
    assert float(metric.aggregate()) == pytest.approx(reference(scores, labels), abs=1e-12)


def test_keeping_items_names_them():
    metric = AUPRCMetric(keep_items=True)
    scores, labels = volumes(2)
    metric(scores, labels, names=["anna", "ben"], losses=[0.5, 0.25])
    assert [p.name for p in metric.cohort.patients] == ["anna", "ben"] and metric.cohort.loss == 0.375
    with pytest.raises(DataError, match="anna"):
        metric(scores[:1], labels[:1], names=["anna"])


def test_items_are_counted_at_a_given_threshold():
    scores, labels = volumes(2)
    metric = AUPRCMetric(keep_items=True, threshold=0.5)
    metric(scores, labels)
    assert metric.cohort.threshold == 0.5
    for patient, item, truth in zip(metric.cohort.patients, scores, labels, strict=True):
        assert patient.confusion.tp == int(((item >= 0.5) & (truth == 1)).sum())
        assert patient.confusion.fp == int(((item >= 0.5) & (truth == 0)).sum())


def test_nothing_kept_of_items_unless_asked():
    metric = AUPRCMetric()
    metric(*volumes(2))
    assert metric.cohort.patients == () and metric.histogram.total == 2 * 16 * 16 * 4


def test_memory_does_not_grow_with_voxels():
    metric = AUPRCMetric()
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(1, 1, 300, 300, generator=generator)
        metric(scores, scores > 0.9)
    histogram = metric.histogram
    assert histogram.total == 30 * 90_000 and histogram.distinct <= histogram.capacity
    assert float(metric.aggregate()) == pytest.approx(1.0, abs=1e-6)


def test_errors_name_what_is_wrong():
    scores, labels = volumes(2)
    with pytest.raises(DataError, match="found 1 for 2"):
        AUPRCMetric()(scores, labels[:1])
    with pytest.raises(DataError, match="shape"):
        AUPRCMetric()(scores, labels[:, :, :8])
    with pytest.raises(NumericsError, match="NaN"):
        AUPRCMetric()(scores.fill_(float("nan")), labels)


RANKS = """
import json, sys
import torch
import torch.distributed as dist
from monai_fp4.metrics import AUPRCMetric
sys.path.insert(0, sys.argv[4])
from metrics.test_auprc import volumes

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
scores, labels = volumes(5)
metric = AUPRCMetric(keep_items=True)
for index in range(rank, 5, 2):  # three patients here, two there
    metric(scores[index : index + 1], labels[index : index + 1], names=[f"patient {index}"])
cohort = metric.cohort
result = {"auprc": float(metric.aggregate()), "names": [p.name for p in cohort.patients],
          "items": metric.get_buffer().numel(), "threshold": cohort.choose_threshold()}
metric(scores[:1], labels[:1], names=["patient of both"])
try:
    metric.cohort
except ValueError as error:
    result["twice"] = str(error)
open(sys.argv[3], "w").write(json.dumps(result))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_agree_on_the_metric_of_one(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    here = str(Path(__file__).parents[1])
    outputs = [tmp_path / f"{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path / "store"), str(out), here])
        for rank, out in enumerate(outputs)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (json.loads(out.read_text()) for out in outputs)
    assert first == second
    scores, labels = volumes(5)
    assert first["auprc"] == pytest.approx(reference(scores, labels), abs=1e-12)
    assert first["names"] == [f"patient {i}" for i in range(5)] and first["items"] == 5
    assert "'patient of both' on two" in first["twice"]


def test_order_of_scores_does_not_matter():
    scores, labels = volumes(1)
    order = np.random.default_rng(0).permutation(scores.numel())
    assert compute_auprc(scores.flatten()[order], labels.flatten()[order]) == compute_auprc(scores, labels)
