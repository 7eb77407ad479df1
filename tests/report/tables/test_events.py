"""The event files of runs, against TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_study import EPOCHS, LAYERS, STEPS, cell_auprc, write_events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter

from monai_fp4.quantization.recipes import RECIPES
from monai_fp4.report.tables.events import read_events
from monai_fp4.study.layout import Cell

CELL = Cell("unet", "500k", "sr")


def history(first: int = 1, last: int = EPOCHS) -> list[dict[str, float]]:
    return [{"epoch": epoch, "train_loss": 1 / epoch, "auprc": cell_auprc(CELL)} for epoch in range(first, last + 1)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_events(tmp_path, CELL, RECIPES["sr"], history())
    return tmp_path


def test_it_is_what_tensorboard_reads(run: Path) -> None:
    found = read_events(run)
    oracle = EventAccumulator(str(run), size_guidance={"tensors": 0, "histograms": 0, "scalars": 0}).Reload()
    assert sorted(found.curves) == [event.step for event in oracle.Tensors("val/pr_curve")]
    for event in oracle.Tensors("val/pr_curve"):
        assert np.array_equal(found.curves[event.step], tensor_util.make_ndarray(event.tensor_proto)[:4])
    for event in oracle.Histograms("val/probabilities"):
        assert found.probability_sums[event.step] == (event.histogram_value.num, event.histogram_value.sum)
    tags = [tag for tag in oracle.Tags()["scalars"] if tag.startswith("quantization/")]
    expected = {(event.step, tag): event.value for tag in tags for event in oracle.Scalars(tag)}
    measured = {(s, f"quantization/{m}/{layer}/{o}"): v for (s, m, layer, o), v in found.health.items()}
    assert measured == expected and len(expected) == EPOCHS * len(LAYERS) * 3 * 3
    assert not found.problems


def test_steps_are_told_by_epoch(run: Path) -> None:
    found = read_events(run)
    assert found.steps_per_epoch == STEPS
    assert [found.epoch_of(step) for step in (1, STEPS, STEPS + 1, EPOCHS * STEPS)] == [1, 1, 2, EPOCHS]


def test_a_file_that_was_cut_off_is_read_up_to_there(run: Path) -> None:
    path = next(run.glob("events*"))
    data = path.read_bytes()
    for length in (len(data) - 1, len(data) // 2, 5):
        path.write_bytes(data[:length])
        found = read_events(run)
        assert len(found.problems) == 1 and "ends within a record" in found.problems[0]
    path.write_bytes(data[: len(data) // 2])
    assert 0 < len(read_events(run).curves) < EPOCHS


def test_a_file_of_something_else_is_named(run: Path) -> None:
    path = next(run.glob("events*"))
    path.write_bytes(b"\x05\0\0\0\0\0\0\0" + b"crc_" + b"\xff" * 5 + b"crc_")
    assert path.name in read_events(run).problems[0]
    path.write_bytes(b"")
    assert not read_events(run).problems


def test_the_last_value_of_a_step_counts_after_a_resume(tmp_path: Path) -> None:
    for number, value in enumerate((1.0, 2.0)):
        with SummaryWriter(log_dir=str(tmp_path / str(number))) as writer:
            writer.add_scalar("quantization/snr_db/layer/input", value, 1)
        next((tmp_path / str(number)).glob("events*")).rename(tmp_path / f"events.out.tfevents.{number}.host")
    assert read_events(tmp_path).health == {(1, "snr_db", "layer", "input"): 2.0}


def test_a_layer_keeps_its_whole_name_and_attention_is_read(tmp_path: Path) -> None:
    with SummaryWriter(log_dir=str(tmp_path)) as writer:
        writer.add_scalar("quantization/clipped/encoder/stage.0/weight", 0.5, 3)
        writer.add_scalar("attention/entropy/encoder.0.attn", 1.5, 3)
    found = read_events(tmp_path)
    assert found.health == {(3, "clipped", "encoder/stage.0", "weight"): 0.5}
    assert found.attention == {(3, "entropy", "encoder.0.attn"): 1.5}
    assert found.epoch_of(3) == 3, "without a finished epoch the step stands in"


def test_no_files_are_nothing(tmp_path: Path) -> None:
    found = read_events(tmp_path)
    assert not (found.curves or found.health or found.problems)
