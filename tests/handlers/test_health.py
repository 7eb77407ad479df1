"""``health.json`` and TensorBoard's pictures of it, against what the monitors say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.networks.blocks import SABlock
from synthetic_patients import evaluator_of, synthetic_cohort
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import Dataset, item, workflow
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from monai_fp4 import convert
from monai_fp4.bundle.run_folder import RunFolder
from monai_fp4.errors import ConfigError
from monai_fp4.handlers import AUPRC, HealthRecorder
from monai_fp4.handlers.health import score_bins
from monai_fp4.metrics import ScoreHistogram
from monai_fp4.quantization.monitor import attention_entropy, quantization_health

BATCH = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    net[1] = SABlock(hidden_size=16, num_heads=2)
    convert(net, "full", backend="emulated")  # which leaves the last layer as it is
    return net


def run(folder: Path, epochs: int, first: int = 1, rank: int = 0, **options: Any) -> nn.Sequential:
    """Epochs of three steps of a network that stays as it is, each with a validation that finds the same patients."""
    net = network()

    def step(_engine: Engine, batch: torch.Tensor) -> None:
        net.zero_grad()
        net(batch).square().mean().backward()

    trainer = Engine(step)
    evaluator = evaluator_of(synthetic_cohort()[:1], key_val_metric={"auprc": AUPRC()})
    evaluator.add_event_handler(Events.ITERATION_STARTED, lambda _: net(BATCH))
    session: Any = SimpleNamespace(rank=rank, run_folder=RunFolder(folder))
    with SummaryWriter(str(folder)) as writer:
        HealthRecorder(session, net, evaluator, writer, **options).attach(trainer)
        trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", first - 1))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: evaluator.run(engine.state.epoch))
        trainer.run([BATCH] * 3, max_epochs=epochs, epoch_length=3)
    assert not any(module._forward_hooks for module in net.modules())
    return net


def written(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "health.json").read_text())["epochs"]
    return found


def tags(folder: Path) -> dict[str, Any]:
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]} | {
        tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]
    }


def test_it_is_what_the_monitors_say(tmp_path: Path) -> None:
    net = run(tmp_path, epochs=2)
    with quantization_health(net) as layers, attention_entropy(net) as attention:
        net(BATCH).square().mean().backward()
    entries = written(tmp_path)
    assert [entry["epoch"] for entry in entries] == [1, 2]
    for entry in entries:
        assert list(entry["layers"]) == list(layers)
        for layer, operands in layers.items():
            for operand, health in operands.items():
                assert entry["layers"][layer][operand] == pytest.approx(vars(health), rel=1e-6)
        assert entry["attention"]["1"] == pytest.approx(
            {"entropy": attention["1"].nats, "entropy_share": attention["1"].share}, rel=1e-6
        )
        voxels = np.sum([entry["scores"]["positives"], entry["scores"]["negatives"]])
        assert voxels == 48 * 48 * 6, "of the validation"


def test_tensorboard_gets_a_picture_a_group_and_the_worst_layers(tmp_path: Path) -> None:
    run(tmp_path, epochs=10)
    found = tags(tmp_path)
    pictures = [2, 4, 6, 8, 10]
    groups = {f"quantization/health_{group}": pictures for group in ("0", "1", "2")}
    assert {tag: steps for tag, steps in found.items() if isinstance(steps, list)} == groups | {
        "quantization/attention": pictures
    }
    entry = written(tmp_path)[-1]
    worst = {f"worst_{m}_{o}" for m in ("snr_db", "underflow", "clipped") for o in ("input", "weight", "gradient")}
    numbers = {tag.removeprefix("quantization/") for tag, values in found.items() if isinstance(values, dict)}
    assert numbers == worst | {"lowest_attention_entropy_share"}
    for measure, pick in (("snr_db", min), ("underflow", max), ("clipped", max)):
        value = pick(operands["input"][measure] for operands in entry["layers"].values())
        assert found[f"quantization/worst_{measure}_input"][10] == pytest.approx(value, rel=1e-6)


def test_single_charts_are_there_where_they_are_asked_for(tmp_path: Path) -> None:
    run(tmp_path, epochs=2, charts=True)
    found, entry = tags(tmp_path), written(tmp_path)[1]
    charts = {tag: values for tag, values in found.items() if tag.startswith("quantization_layers/")}
    layers = entry["layers"]
    assert len(charts) == sum(3 * len(operands) for operands in layers.values()) + 2
    assert charts["quantization_layers/snr_db/2/weight"][2] == pytest.approx(layers["2"]["weight"]["snr_db"])


def test_every_so_many_epochs_or_never(tmp_path: Path) -> None:
    run(tmp_path / "second", epochs=4, every=2)
    assert [bool(entry["layers"]) for entry in written(tmp_path / "second")] == [True, False, True, False]
    run(tmp_path / "never", epochs=2, every=0)
    assert not any(entry["layers"] for entry in written(tmp_path / "never"))
    assert not any("health" in tag or "worst" in tag for tag in tags(tmp_path / "never"))


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    run(tmp_path, epochs=1, rank=1)
    assert not (tmp_path / "health.json").exists()


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    run(tmp_path / "whole", epochs=4)
    run(tmp_path / "cut", epochs=3)
    run(tmp_path / "cut", epochs=4, first=3)  # killed after epoch 3 was written here and before its checkpoint was
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


@pytest.mark.parametrize("content", ["{", "[]", '{"epochs": 3}', '{"epochs": [{}]}'])
def test_a_damaged_file_is_refused_in_a_sentence_when_a_run_resumes(tmp_path: Path, content: str) -> None:
    (tmp_path / "health.json").write_text(content)
    with pytest.raises(ConfigError, match=r"health\.json must hold"):
        run(tmp_path, epochs=3, first=2)


def test_bundles_have_it(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", "unet_500k_full")
    flow.initialize()
    kinds = Counter(type(handler).__name__ for handler in item(flow, "train#handlers"))
    assert kinds["HealthRecorder"] == 1


def test_bins_hold_every_voxel_at_its_side_of_an_edge() -> None:
    edge = np.float32(63 / 126)
    bins = score_bins(ScoreHistogram().add([0.0, edge, np.nextafter(edge, np.float32(0)), 1.0, 0.999], [0, 1, 1, 0, 1]))
    assert (sum(bins["positives"]), sum(bins["negatives"])) == (3, 2)
    assert (bins["positives"][62], bins["positives"][63], bins["positives"][125]) == (1, 1, 1)
    assert bins["negatives"][125] == 1, "scores of exactly 1 belong to the last bin"
