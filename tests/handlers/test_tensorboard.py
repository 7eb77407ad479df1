from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from sklearn.metrics import precision_recall_curve
from synthetic_patients import evaluator_of, synthetic_cohort
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from monai_fp4.handlers import AUPRC, TensorBoard, TensorBoardValidation
from monai_fp4.handlers.tensorboard import histogram_fields, pr_curve_rows
from monai_fp4.metrics import ScoreHistogram


@pytest.fixture(scope="module")
def events(tmp_path_factory) -> EventAccumulator:
    """The one event file of a training of two epochs of three steps, with a validation after each."""
    folder = tmp_path_factory.mktemp("run")
    writer = SummaryWriter(str(folder))
    torch.manual_seed(0)
    network = nn.Conv2d(16, 1, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def step(_engine: Engine, batch: torch.Tensor) -> dict:
        loss = network(batch).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return {"loss": loss.item()}

    trainer = Engine(step)
    evaluator = evaluator_of(
        synthetic_cohort(), key_val_metric={"auprc": AUPRC()}, val_handlers=[TensorBoardValidation(writer, overlays=2)]
    )
    TensorBoard(writer, optimizer=optimizer).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: evaluator.run(engine.state.epoch))
    trainer.run([torch.randn(2, 16, 8, 8) for _ in range(3)], max_epochs=2)
    writer.close()
    files = [path.name for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 1 and files[0].startswith("events.out.tfevents"), files
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    accumulator.Reload()
    accumulator.metrics = dict(evaluator.state.metrics)
    return accumulator


def test_training_scalars_have_a_value_a_step_and_an_epoch(events):
    steps = [e.step for e in events.Scalars("loss/train_step")]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in events.Scalars("training/learning_rate")] == [0.5 / 2**i for i in range(6)]
    epochs = events.Scalars("loss/train")
    losses = [e.value for e in events.Scalars("loss/train_step")]
    assert [e.value for e in epochs] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], rel=1e-6)


def test_every_validation_metric_is_there_once_an_epoch(events):
    for name, value in events.metrics.items():
        written = events.Scalars("loss/val" if name == "val_loss" else f"metrics/{name}")
        assert [e.step for e in written] == [1, 2]
        assert written[-1].value == pytest.approx(value, rel=1e-6), name
    assert {"auprc", "auprc_per_patient", "dice", "recall", "precision", "distinct_scores", "val_loss"} <= set(
        events.metrics
    )


def test_curve_histogram_and_overlays_are_there(events):
    tags = events.Tags()
    assert tags["histograms"] == ["predictions/probabilities"]
    assert sum(events.Histograms("predictions/probabilities")[0].histogram_value.bucket) == 5 * 48 * 48 * 6
    curve = make_ndarray(events.Tensors("predictions/pr_curve")[0].tensor_proto)
    assert curve.shape == (6, 127)
    assert set(tags["images"]) >= {"overlays/largest_lesions", "overlays/worst_misses"}
    assert events.Images("overlays/largest_lesions")[1].step == 2


def test_the_alphabet_puts_loss_and_auprc_first(events):
    """TensorBoard orders groups, and tags within them, by name."""
    tags = sorted(tag for tag in events.Tags()["scalars"] if not tag.startswith("loss/"))
    assert sorted(events.Tags()["scalars"])[0].startswith("loss/") and tags[0] == "metrics/auprc"


def test_pr_rows_are_scikit_learns_at_equal_thresholds():
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.2
    scores = np.clip(0.3 * rng.random(2000) + 0.5 * labels * rng.random(2000), 0, 1).astype(np.float32)
    rows = pr_curve_rows(ScoreHistogram().add(scores, labels), points=11)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    for index, threshold in enumerate(np.linspace(0, 1, 11)):
        at = np.searchsorted(thresholds, np.float32(threshold))
        assert rows["recall"][index] == pytest.approx(recall[at])
        if at < len(thresholds):
            assert rows["precision"][index] == pytest.approx(precision[at])
    total = sum(
        rows[f"{name}_counts"] for name in ("true_positive", "false_positive", "true_negative", "false_negative")
    )
    assert (total == 2000).all()


def test_histogram_fields_sum_up():
    fields = histogram_fields(ScoreHistogram().add([0.0, 0.5, 0.5, 1.0], [0, 0, 1, 1]))
    assert (fields["num"], fields["sum"], fields["sum_squares"]) == (4, 2.0, 1.5)
    assert sum(fields["bucket_counts"]) == 4 and len(fields["bucket_limits"]) == len(fields["bucket_counts"])


def test_without_a_writer_nothing_is_attached():
    engine = Engine(lambda engine, batch: {"loss": 1.0})
    TensorBoard(None).attach(engine)
    TensorBoardValidation(None).attach(engine)
    assert not engine._event_handlers
