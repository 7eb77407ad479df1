"""What the handlers of a run do; tests/test_run.py looks at them all together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from tiny_runs import Dataset, item, refusal, train, workflow
from torch import nn
from torch.optim import Optimizer

from monai_fp4.bundle import RunFolder
from monai_fp4.errors import ConfigError
from monai_fp4.handlers import Recorder, Validation, peak_memory


class Scores:
    """An evaluator that gives the network a score an epoch, instead of looking at patients."""

    def __init__(self, network: nn.Module, scores: Sequence[float | None]) -> None:
        self.engine = Engine(lambda _engine, _batch: None)
        self.network, self.scores = network, scores
        self.state = self.engine.state

    def run(self, epoch: int) -> None:
        score = self.scores[epoch - 1]
        self.state.epoch, self.state.metrics = epoch, {} if score is None else {"auprc": score, "threshold": 0.5}


def small_run(
    folder: Path,
    scores: Sequence[float | None] = (0.1, 0.9, 0.5),
    *,
    epochs: int = 3,
    validate_first: bool = True,
    rank: int = 0,
) -> tuple[nn.Module, Optimizer, list[list[float]]]:
    """Train a linear layer for epochs of three steps; its network, its optimizer, and the losses of each epoch."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    losses: list[list[float]] = []

    def step(engine: Engine, batch: int) -> dict[str, float]:
        if not losses or len(losses[-1]) == 3:
            losses.append([])
        optimizer.zero_grad()
        loss = (network(torch.full((1, 2), batch + 1.0)) - engine.state.epoch).square().sum()
        loss.backward()
        optimizer.step()
        losses[-1].append(loss.item())
        return {"loss": loss.item()}

    session: Any = SimpleNamespace(
        run_folder=RunFolder(folder),
        options=SimpleNamespace(fold=0),
        device=torch.device("cpu"),
        rank=rank,
        world_size=1,
    )
    session.wait = lambda: None
    engine, evaluator = Engine(step), Scores(network, scores)
    recorder = Recorder(session, network, optimizer, schedule, evaluator)  # type: ignore[arg-type]
    handlers = [Validation(session, evaluator), recorder]  # type: ignore[arg-type]
    for handler in handlers if validate_first else handlers[::-1]:
        handler.attach(engine)  # type: ignore[arg-type]
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: schedule.step())
    engine.run([0, 1, 2], max_epochs=epochs)
    return network, optimizer, losses


def written(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "metrics.json").read_text())
    history = [{name: value for name, value in entry.items() if name != "seconds"} for entry in content["history"]]
    return {name: value for name, value in content.items() if name != "peak_memory_bytes"} | {"history": history}


def test_an_epoch_s_loss_is_the_mean_of_its_steps_and_its_learning_rate_that_of_the_last(tmp_path: Path) -> None:
    _, _, losses = small_run(tmp_path)
    history = written(tmp_path)["history"]
    assert [entry["train_loss"] for entry in history] == pytest.approx([sum(each) / 3 for each in losses])
    assert [entry["learning_rate"] for entry in history] == [0.05, 0.025, 0.00625]
    assert [(entry["epoch"], entry["auprc"], entry["fp4"]) for entry in history] == [
        (1, 0.1, False), (2, 0.9, False), (3, 0.5, False),
    ]  # fmt: skip


def test_a_resumed_run_has_the_optimizer_and_the_schedule_that_it_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, optimizer, _ = small_run(tmp_path / "whole")
    small_run(tmp_path / "cut", epochs=2)
    resumed, again, losses = small_run(tmp_path / "cut")
    assert len(losses) == 1 and f"Resuming {tmp_path / 'cut'} after epoch 2 of 3." in capsys.readouterr().out
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
        assert all(torch.equal(optimizer.state[one][name], again.state[other][name]) for name in optimizer.state[one])
    assert optimizer.param_groups[0]["lr"] == again.param_groups[0]["lr"] == 0.00625
    assert written(tmp_path / "whole") == written(tmp_path / "cut")
    kept = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert kept["epoch"] == 3 and kept["optimizer"]["state"][0]["step"] == 9
    assert kept["lr_scheduler"]["last_epoch"] == 9


def test_the_order_in_which_handlers_are_attached_does_not_matter(tmp_path: Path) -> None:
    for folder, first in (("usual", True), ("other", False)):
        small_run(tmp_path / folder, validate_first=first)
    assert written(tmp_path / "usual") == written(tmp_path / "other")
    assert (written(tmp_path / "other")["best_epoch"], written(tmp_path / "other")["auprc"]) == (2, 0.9)


def test_the_first_process_alone_writes_and_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run(tmp_path, epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "Finished: auprc 0.9000 at epoch 2" in capsys.readouterr().out
    _, _, losses = small_run(tmp_path, rank=1)
    assert len(losses) == 1, "it resumes as the first does"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before and not capsys.readouterr().out


def test_a_score_of_an_earlier_epoch_is_not_the_score_of_this_one(tmp_path: Path) -> None:
    small_run(tmp_path, (0.1, None, 0.5))
    assert [entry.get("auprc") for entry in written(tmp_path)["history"]] == [0.1, None, 0.5]


def test_a_worse_epoch_leaves_the_best_weights_as_they_are(tmp_path: Path) -> None:
    best, _, _ = small_run(tmp_path / "two", epochs=2)
    small_run(tmp_path / "three", epochs=3)
    kept = torch.load(tmp_path / "three" / "model.pt", weights_only=True)
    assert all(torch.equal(kept[name], value) for name, value in best.state_dict().items())
    assert written(tmp_path / "three")["best_epoch"] == 2


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
