"""What the handlers of a run do; tests/test_run.py looks at them all together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from tiny_runs import Dataset, item, refusal, train, workflow

from monai_fp4.errors import ConfigError
from monai_fp4.handlers import Recorder, Validation, peak_memory, recorder
from monai_fp4.metrics.cohort import Cohort
from monai_fp4.quantization.layers import LAYER_TYPES


def test_the_last_share_of_the_steps_runs_in_bf16(tiny: Dataset, tmp_path: Path) -> None:
    recipe = {"base": "full", "bf16_last_share": 0.5}
    flow = workflow(tiny, tmp_path / "run", "unet_500k_full", recipe=recipe)
    flow.initialize()
    layers = [m for m in item(flow, "network").modules() if isinstance(m, tuple(LAYER_TYPES.values()))]
    active: list[set[bool]] = []
    trainer = item(flow, "train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: active.append({layer.active for layer in layers}))
    flow.run()
    assert layers and active == [{True}, {True}, {False}, {False}]


@pytest.mark.parametrize(
    ("fold", "interval", "expected"), [(0, 1, [1, 2, 3, 4, 5]), (0, 2, [2, 4, 5]), (0, 9, [5]), ("all", 1, [5])]
)
def test_validations(fold: int | str, interval: int, expected: list[int]) -> None:
    ran: list[int] = []
    session: Any = SimpleNamespace(options=SimpleNamespace(fold=fold), world_size=1)
    validator: Any = SimpleNamespace(run=ran.append)
    engine = Engine(lambda _engine, _batch: None)
    Validation(session, validator, interval).attach(engine)
    engine.run([0], max_epochs=5)
    assert ran == expected


@pytest.mark.parametrize(
    ("fold", "scores", "best"),
    [
        (0, [0.2, 0.5, 0.4], 2),
        (0, [0.2, 0.5, 0.5], 2),  # the first of equals
        (0, [None, 0.1, None], 2),
        (0, [None, None], 2),
        (0, [math.nan, 0.3], 2),
        ("all", [0.9, 0.1], 2),
    ],
)
def test_the_best_epoch(fold: int | str, scores: list[float | None], best: int) -> None:
    recorder = Recorder.__new__(Recorder)
    recorder.session = SimpleNamespace(options=SimpleNamespace(fold=fold))  # type: ignore[assignment]
    recorder.key_metric = "auprc"
    recorder.history = [{"epoch": n} | ({"auprc": s} if s is not None else {}) for n, s in enumerate(scores, 1)]
    assert recorder.best["epoch"] == best


def test_model_pt_holds_the_best_epoch_and_checkpoint_pt_the_last(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", epochs=3)
    flow.initialize()
    trainer, evaluator, network = (item(flow, f) for f in ("train#trainer", "validate#evaluator", "network"))
    scores = iter([0.1, 0.9, 0.5])
    weights: list[dict[str, torch.Tensor]] = []

    def pretend(engine: Engine) -> None:
        engine.state.metrics["auprc"] = next(scores)
        weights.append({name: value.clone() for name, value in network.state_dict().items()})

    evaluator.add_event_handler(Events.COMPLETED, pretend)
    trainer.run()
    folder = tmp_path / "run"
    model = torch.load(folder / "model.pt", weights_only=True)
    last = torch.load(folder / "checkpoint.pt", weights_only=True)["network"]
    for name in model:
        assert torch.equal(model[name], weights[1][name]) and torch.equal(last[name], weights[2][name])
    written = json.loads((folder / "metrics.json").read_text())
    assert (written["best_epoch"], written["auprc"]) == (2, 0.9)


def test_what_is_not_a_number_is_null_in_json(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", epochs=1)
    flow.initialize()
    evaluator = item(flow, "validate#evaluator")
    evaluator.add_event_handler(
        Events.COMPLETED, lambda e: e.state.metrics.update(recall=math.nan, dice=torch.tensor(0.5))
    )
    item(flow, "train#trainer").run()
    (entry,) = json.loads((tmp_path / "run" / "metrics.json").read_text(), parse_constant=pytest.fail)["history"]
    assert entry["recall"] is None and entry["dice"] == 0.5


def test_a_patient_without_tumour_has_no_auprc() -> None:
    cohort = Cohort()
    cohort.add("anna", [0.9, 0.2, 0.8, 0.1], [1, 0, 1, 0])
    cohort.add("carl", [0.1, 0.2, 0.3, 0.1], [0, 0, 0, 0])
    anna, carl = recorder._by_patient(cohort, cohort.choose_threshold())
    assert anna == {"patient": "anna", "auprc": 1.0, "recall": 1.0, "dice": 1.0}
    assert carl == {"patient": "carl", "auprc": None, "recall": None, "dice": None}


@pytest.mark.parametrize(("platform", "peak"), [("linux", 5 * 1024), ("darwin", 5)])
def test_peak_memory_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch, platform: str, peak: int) -> None:
    monkeypatch.setattr(peak_memory.sys, "platform", platform)
    monkeypatch.setattr(peak_memory.resource, "getrusage", lambda _who: SimpleNamespace(ru_maxrss=5))
    assert peak_memory.peak_memory(torch.device("cpu")) == peak
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 if device.type == "cuda" else 0)
    assert peak_memory.peak_memory(torch.device("cuda")) == 7


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda checkpoint: checkpoint["network"].popitem(), "another network"),
        (lambda checkpoint: checkpoint.pop("optimizer"), "no 'optimizer'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tiny: Dataset, tmp_path: Path, finished_run: Path, damage: Any, named: str
) -> None:
    folder = tmp_path / "run"
    train(tiny, folder, epochs=1)
    written = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(written | {"finished": False}))
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    damage(checkpoint)
    torch.save(checkpoint, folder / "checkpoint.pt")
    before = {name: (folder / name).read_bytes() for name in ("checkpoint.pt", "model.pt", "metrics.json")}
    error = refusal(lambda: train(tiny, folder, epochs=1))
    assert isinstance(error, ConfigError) and named in str(error)
    assert before == {name: (folder / name).read_bytes() for name in before}
