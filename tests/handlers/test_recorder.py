"""What the handlers of a run do; tests/test_run.py looks at them all together."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from study_cells import eventually
from tiny_runs import Dataset, item, refusal, train, workflow
from torch import nn
from torch.optim import Optimizer

from monai_fp4.bundle import RunFolder
from monai_fp4.bundle.archive import check_archive
from monai_fp4.errors import ConfigError, NumericsError
from monai_fp4.handlers import Recorder, Validation, peak_memory
from monai_fp4.handlers.best_epoch import BestEpoch


class Scores:
    """An evaluator that gives the network a score an epoch, instead of looking at patients."""

    def __init__(self, network: nn.Module, scores: Sequence[float | None]) -> None:
        self.engine = Engine(lambda _engine, _batch: None)
        self.network, self.scores = network, scores
        self.state, self.add_event_handler = self.engine.state, self.engine.add_event_handler

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
    spoil: Callable[[nn.Module, Optimizer, int], None] = lambda network, optimizer, step: None,
    fold: int | str = 0,
    watch: Callable[[Engine], Any] = lambda engine: None,
    **choice: Any,
) -> tuple[nn.Module, Optimizer, list[list[float]]]:
    """Train a linear layer for epochs of three steps; its network, its optimizer, and the losses of each epoch."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1, affine=False))
    network[1].eval()
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
        spoil(network, optimizer, engine.state.iteration)
        return {"loss": loss.item()}

    session: Any = SimpleNamespace(
        run_folder=RunFolder(folder),
        options=SimpleNamespace(fold=fold),
        device=torch.device("cpu"),
        rank=rank,
        world_size=1,
        validation_patients=[],
    )
    session.wait = session.hold = session.release = session.close = lambda: None
    engine, evaluator = Engine(step), Scores(network, scores)
    watch(engine)
    recorder = Recorder(session, network, optimizer, schedule, evaluator, **choice)  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    ("scores", "choice", "best"),
    [
        ((0.5, 0.3, 0.2999), {"lower_is_better": True}, 3),
        ((0.5, 0.3, 0.2999), {"lower_is_better": True, "min_gain": 0.001}, 2),
        ((0.5, 0.4995, 0.499), {"lower_is_better": True, "min_gain": 0.00099}, 3),  # of the best, not of the last
        ((0.1, 0.3, 0.3), {}, 2),
        ((0.1, 0.9, 0.95), {"min_gain": 0.1}, 2),
        ((math.nan, 0.4, 0.2), {"lower_is_better": True}, 3),
    ],
)
def test_what_is_better_can_be_chosen(
    tmp_path: Path, scores: tuple[float, ...], choice: dict[str, Any], best: int
) -> None:
    small_run(tmp_path, scores, **choice)
    assert written(tmp_path)["best_epoch"] == best


@pytest.mark.parametrize(
    ("better", "patience", "warm_up", "last"),
    [
        ({1}, 2, 0, 3),
        ({1, 3}, 2, 0, 5),
        ({1}, 2, 5, 6),  # waited all the while
        ({1, 5}, 2, 5, 7),
        ({1}, None, 0, 9),
        (set(range(1, 10)), 1, 0, 9),
    ],
)
def test_patience_ends_a_run_after_its_warm_up(
    tmp_path: Path, better: set[int], patience: int | None, warm_up: int, last: int
) -> None:
    scores = [float(epoch) if epoch in better else 0.0 for epoch in range(1, 10)]
    small_run(tmp_path, scores, epochs=9, patience=patience, warm_up=warm_up)
    content = written(tmp_path)
    assert (
        len(content["history"]) == last
        and content["finished"]
        and content["best_epoch"] == max(epoch for epoch in better if epoch <= last)
    )


def test_a_run_whose_patience_was_over_when_it_was_killed_trains_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(_recorder: Recorder, _engine: Engine) -> None:
        raise KeyboardInterrupt

    patient: dict[str, Any] = {"scores": (0.9, 0.5, 0.4, 0.95, 0.96), "epochs": 5, "patience": 2}
    small_run(tmp_path / "whole", **patient)
    monkeypatch.setattr(Recorder, "finish", kill)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run", **patient)
    monkeypatch.undo()
    small_run(tmp_path / "run", **patient)
    assert written(tmp_path / "run") == written(tmp_path / "whole") and len(written(tmp_path / "run")["history"]) == 3


def test_weights_of_an_epoch_that_was_terminated_are_never_those_of_the_best(tmp_path: Path) -> None:
    def watch(engine: Engine) -> None:
        def lose(_engine: Engine) -> None:
            (tmp_path / "model.pt").unlink()

        engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda _: engine.terminate())
        engine.add_event_handler(Events.COMPLETED, lose)

    with pytest.raises(ConfigError, match=r"model\.pt must hold the weights of epoch 1, but No such file"):
        small_run(tmp_path, watch=watch)
    small_run(tmp_path)
    assert written(tmp_path)["finished"]


def test_a_run_with_an_infinite_loss_is_resumed(tmp_path: Path) -> None:
    """Such as FP16 has while the scale of the loss is still to be found."""

    def watch(engine: Engine) -> None:
        engine.add_event_handler(
            Events.ITERATION_COMPLETED(once=2), lambda _: engine.state.output.update(loss=math.inf)
        )

    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, watch=watch, spoil=_pull_the_plug(5))
    small_run(tmp_path)
    assert [entry["train_loss"] is None for entry in written(tmp_path)["history"]] == [True, False, False]


def test_a_resumed_run_has_the_scale_of_the_loss_that_it_left(tmp_path: Path) -> None:
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 1024.0)]
    for epochs, scaler in enumerate(scalers, start=2):
        small_run(tmp_path, epochs=epochs, scaler=scaler)
    assert scalers[1].get_scale() == 8.0


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
    history = [{"epoch": n} | ({"auprc": s} if s is not None else {}) for n, s in enumerate(scores, 1)]
    assert BestEpoch("auprc" if fold != "all" else None).of(history)["epoch"] == best


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
    monkeypatch.setattr(peak_memory, "_high_water", lambda: None)
    monkeypatch.setattr(peak_memory.sys, "platform", platform)
    monkeypatch.setattr(peak_memory.resource, "getrusage", lambda _who: SimpleNamespace(ru_maxrss=5))
    assert peak_memory.peak_memory(torch.device("cpu")) == peak
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 if device.type == "cuda" else 0)
    assert peak_memory.peak_memory(torch.device("cuda")) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts for a program alone")
def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    """A child of a large process begins as its copy, and getrusage never forgets that."""
    large = np.ones(2**28, np.float32)  # 1 GiB, of which Python and torch alone take a part
    program = (
        "import resource, torch; from monai_fp4.handlers.peak_memory import peak_memory;"
        "print(peak_memory(torch.device('cpu')), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    held, counted = map(int, shown.split())
    assert 2**26 < held < large.nbytes <= counted


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


def _weight(network: nn.Module, _optimizer: Optimizer, step: int) -> None:
    if step == 6:
        network[0].weight.data[0, 1] = math.nan  # type: ignore[index,union-attr]


def _statistic(network: nn.Module, _optimizer: Optimizer, step: int) -> None:
    if step == 6:
        network[1].running_var[0] = math.inf  # type: ignore[index,union-attr]


def _moment(network: nn.Module, optimizer: Optimizer, step: int) -> None:
    if step == 6:
        optimizer.state[network[0].weight]["exp_avg_sq"][0, 0] = math.inf  # type: ignore[index,union-attr]


def _count(network: nn.Module, optimizer: Optimizer, step: int) -> None:
    if step == 6:
        optimizer.state[network[0].weight]["step"].fill_(math.nan)  # type: ignore[index,union-attr]


def _rate(_network: nn.Module, optimizer: Optimizer, step: int) -> None:
    if step == 6:
        optimizer.param_groups[0]["lr"] = math.nan


@pytest.mark.parametrize("fold", [0, "all"])
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_weight, "network.0.weight"),
        (_statistic, "network.1.running_var"),
        (_moment, "optimizer.state.0.exp_avg_sq"),
        (_count, "optimizer.state.0.step"),
        (_rate, "optimizer.param_groups.0.lr"),
    ],
)
def test_what_is_not_finite_is_never_written_over_what_is(
    tmp_path: Path, fold: int | str, spoil: Any, named: str
) -> None:
    with pytest.raises(NumericsError) as error:
        small_run(tmp_path / "run", (0.1, None, 0.5), spoil=spoil, fold=fold)  # it comes after the last validation
    said = str(error.value)
    assert f"after step 6 (epoch 2) NaN or infinity stands in '{named}'; checkpoint.pt keeps epoch 1" in said
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert written(tmp_path / "run")["best_epoch"] == 1 and not written(tmp_path / "run")["finished"]
    small_run(tmp_path / "run", (0.1, None, 0.5), fold=fold)
    small_run(tmp_path / "whole", (0.1, None, 0.5), fold=fold)
    assert written(tmp_path / "run") == written(tmp_path / "whole")


def test_a_buffer_that_is_infinite_by_design_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.BatchNorm1d, "reset_running_stats", lambda self: self.running_var.fill_(math.inf))
    small_run(tmp_path)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["1.running_var"].item() == math.inf

    def spoil(network: nn.Module, _optimizer: Optimizer, step: int) -> None:
        if step == 9:
            network[1].running_var[0] = math.nan  # type: ignore[index,union-attr]

    with pytest.raises(NumericsError, match=r"NaN or infinity stands in 'network\.1\.running_var'"):
        small_run(tmp_path / "spoilt", spoil=spoil)


def test_a_scaler_that_is_not_finite_is_never_written_over_one_that_is(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"'scaler\.scale'"):
        small_run(tmp_path, scaler=torch.amp.GradScaler("cpu", init_scale=math.inf))
    assert not (tmp_path / "checkpoint.pt").exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _flip(path: Path) -> None:
    """Change one bit of the first tensor, which torch would load without a word."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = next(part for part in archive.infolist() if "/data/" in part.filename).header_offset
    name, extra = (int.from_bytes(content[at + n : at + n + 2], "little") for n in (26, 28))
    content[at + 30 + name + extra] ^= 4
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)


def _spoil(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content.get("network", content)["0.weight"][0, 0] = math.nan
    torch.save(content, path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": _cut,
    "flipped": _flip,
    "not finite": _spoil,
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


def _pull_the_plug(step: int) -> Callable[[nn.Module, Optimizer, int], None]:
    def pull(_network: nn.Module, _optimizer: Optimizer, now: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    return pull


@pytest.fixture
def cut_off(tmp_path: Path) -> Path:
    """A run that ended in its third epoch; the best one was the second."""
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run", spoil=_pull_the_plug(8))
    return tmp_path / "run"


def _epoch(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


def test_the_checkpoint_before_is_kept_until_the_end(cut_off: Path) -> None:
    assert (_epoch(cut_off / "checkpoint.pt"), _epoch(cut_off / "checkpoint.previous.pt")) == (2, 1)
    small_run(cut_off)
    assert _epoch(cut_off / "checkpoint.pt") == 3 and not (cut_off / "checkpoint.previous.pt").exists()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_an_older_checkpoint_serves_where_the_newest_is_lost(
    cut_off: Path, tmp_path: Path, damage: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(cut_off / "checkpoint.pt")
    with pytest.raises(KeyboardInterrupt):
        small_run(cut_off, spoil=_pull_the_plug(8))
    assert "after epoch 1 of 3" in capsys.readouterr().out
    assert _epoch(cut_off / "checkpoint.previous.pt") == 1, "what is damaged does not take the place of what is whole"
    small_run(cut_off)
    small_run(tmp_path / "whole")
    assert written(cut_off) == written(tmp_path / "whole")
    for name in ("checkpoint.pt", "model.pt"):
        one, other = (torch.load(run / name, weights_only=True) for run in (cut_off, tmp_path / "whole"))
        one, other = one.get("network", one), other.get("network", other)
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize(("part", "value"), [("seed", 1), ("learning_rate", 0.01), ("patients", None)])
def test_a_checkpoint_of_another_run_of_the_same_network_is_refused(cut_off: Path, part: str, value: Any) -> None:
    config = {"seed": 0, "learning_rate": 0.001, "output_dir": "here", "device": "cpu"}
    patients = {"train": ["b"], "val": ["a"], "test": []}
    path = cut_off / "checkpoint.pt"

    def place(folder: Path, config: dict[str, Any], patients: dict[str, Any]) -> dict[str, str]:
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "patients.json").write_text(json.dumps(patients))
        return RunFolder(folder).fingerprints()

    changed = (config | {part: value}, patients) if part in config else (config, patients | {"val": ["c"]})
    torch.save(torch.load(path, weights_only=True) | {"run": place(cut_off, *changed)}, path)
    (cut_off / "checkpoint.previous.pt").unlink()
    place(cut_off, config, patients)
    with pytest.raises(ConfigError, match=rf"checkpoint\.pt must be a checkpoint of this run, but .* other '{part}'"):
        small_run(cut_off)
    place(cut_off, changed[0] | {"output_dir": "there", "device": "cuda"}, changed[1])
    small_run(cut_off)
    assert _epoch(path) == 3, "another place is no other run"


def test_where_no_checkpoint_is_whole_the_error_names_it(cut_off: Path) -> None:
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        _flip(cut_off / name)
    with pytest.raises(ConfigError, match=r"checkpoint\.previous\.pt must be a checkpoint.*is damaged.*remove it"):
        small_run(cut_off)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_weights_of_an_earlier_epoch_that_are_lost_are_named(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run", (0.9, 0.1, 0.5), spoil=_pull_the_plug(8))
    damage(tmp_path / "run" / "model.pt")
    with pytest.raises(ConfigError, match=r"model\.pt must hold the weights of epoch 1, but .*restore it, or remove"):
        small_run(tmp_path / "run", (0.9, 0.1, 0.5))
    assert written(tmp_path / "run")["finished"] is False


def test_weights_of_another_run_are_named_though_nothing_describes_them(tmp_path: Path) -> None:
    for name, scores in (("run", (0.9, 0.1, 0.5)), ("other", (0.1, 0.9, 0.5))):
        with pytest.raises(KeyboardInterrupt):
            small_run(tmp_path / name, scores, spoil=_pull_the_plug(8))
    run = tmp_path / "run"
    right = (run / "model.pt").read_bytes()
    (run / "metrics.json").unlink()
    (run / "model.pt").write_bytes((tmp_path / "other" / "model.pt").read_bytes())
    with pytest.raises(ConfigError, match=r"epoch 1, but it is another file than .*checkpoint\.pt was written with"):
        small_run(run, (0.9, 0.1, 0.5))
    (run / "model.pt").write_bytes(right)
    small_run(run, (0.9, 0.1, 0.5))
    assert written(run)["finished"] is True and (run / "model.pt").read_bytes() == right


def test_a_run_that_is_terminated_in_its_first_epoch_has_nothing_to_finish_with(tmp_path: Path) -> None:
    def stop(engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda _: engine.terminate())

    with pytest.raises(ConfigError, match="was terminated in its first; terminate it later"):
        small_run(tmp_path, watch=stop)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_weights_of_the_latest_epoch_are_written_anew(cut_off: Path, damage: Callable[[Path], Any]) -> None:
    right = torch.load(cut_off / "model.pt", weights_only=True)
    damage(cut_off / "model.pt")
    small_run(cut_off)
    now = torch.load(cut_off / "model.pt", weights_only=True)
    assert all(torch.equal(now[name], value) for name, value in right.items())
    assert written(cut_off)["finished"] is True


def test_a_run_does_not_finish_without_its_weights(tmp_path: Path) -> None:
    def lose(_network: nn.Module, _optimizer: Optimizer, step: int) -> None:
        if step == 8:
            assert eventually(lambda: written(tmp_path)["best_epoch"] == 2)
            (tmp_path / "model.pt").unlink()

    with pytest.raises(ConfigError, match=r"model\.pt must hold the weights of epoch 2, but No such file"):
        small_run(tmp_path, spoil=lose)
    assert written(tmp_path)["finished"] is False


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.pt", "metrics.json"])
def test_a_run_that_is_cut_off_between_two_files_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small_run(tmp_path / "whole")
    replace, count = Path.replace, iter(range(100))

    def cut(self: Path, target: Path) -> Path:
        if target.name == name and next(count) == 1:  # of the second epoch, the best one
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run")
    small_run(tmp_path / "run")
    assert written(tmp_path / "run") == written(tmp_path / "whole")
    assert check_archive(tmp_path / "run" / "model.pt") == check_archive(tmp_path / "whole" / "model.pt")


def test_a_run_that_is_killed_at_any_file_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run(tmp_path / "whole")
    replace = Path.replace

    def killed_at(number: int) -> int:
        count = iter(range(100))

        def kill(self: Path, target: Path) -> Path:
            if next(count) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", kill)
        process = multiprocessing.get_context("fork").Process(target=small_run, args=(tmp_path / str(number),))
        process.start()
        process.join(60)
        monkeypatch.undo()
        return process.exitcode or 0

    number = 0
    while killed_at(number) == -signal.SIGKILL:
        folder = tmp_path / str(number)
        small_run(folder)
        assert written(folder) == written(tmp_path / "whole")
        assert check_archive(folder / "model.pt") == check_archive(tmp_path / "whole" / "model.pt")
        assert {path.name for path in folder.iterdir()} == {"checkpoint.pt", "model.pt", "metrics.json"}
        number += 1
    assert number == 11, "checkpoint and metrics of three epochs, weights of two, two links, and metrics at the end"


class Disk:
    """A disk that is slow, or full, for the thread that flushes; `done` says when it goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_at: int = -1, slow: bool = False) -> None:
        flush, count = os.fsync, iter(range(1000))
        self.done = threading.Event()
        if not slow:
            self.done.set()

        def fsync(handle: int) -> None:
            if threading.current_thread() is not threading.main_thread():
                assert self.done.wait(60)
                if next(count) == full_at:
                    raise OSError(errno.ENOSPC, "No space left on device")
            flush(handle)

        monkeypatch.setattr(os, "fsync", fsync)


def test_a_training_goes_on_while_its_checkpoint_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, seen = Disk(monkeypatch, slow=True), []

    def look(_network: nn.Module, _optimizer: Optimizer, step: int) -> None:
        if step == 5:
            seen.extend(path.suffix for path in tmp_path.iterdir())
            # A process that is forked meanwhile, as those that load data are, finds nothing locked.
            other = lambda: (disk.done.set(), small_run(tmp_path / "other"))  # noqa: E731
            process = multiprocessing.get_context("fork").Process(target=other)
            process.start()
            process.join(60)
            assert process.exitcode == 0 and written(tmp_path / "other")["finished"]
            disk.done.set()

    small_run(tmp_path, spoil=look)
    assert seen and set(seen) == {".tmp"}, "nothing has its place before it is on the disk"
    assert _epoch(tmp_path / "checkpoint.pt") == 3 and written(tmp_path)["finished"]


@pytest.mark.parametrize("other", [None, NumericsError("a loss"), SystemExit(143)])
@pytest.mark.parametrize(("full_at", "epochs", "kept"), [(4, 3, 1), (5, 2, 2), (4, 2, 1)])
def test_a_disk_that_the_thread_finds_full_is_one_sentence_before_any_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full_at: int,
    epochs: int,
    kept: int,
    other: BaseException | None,
) -> None:
    """Of the four flushes of each of two epochs, the first is of the checkpoint and the second of the weights."""
    Disk(monkeypatch, full_at)

    def fail(_network: nn.Module, _optimizer: Optimizer, step: int) -> None:
        if step == 7 and other is not None:
            raise other

    with pytest.raises(ConfigError, match=r"must be writable, .*No space left on device.*make room"):
        small_run(tmp_path / "run", epochs=epochs, spoil=fail)
    monkeypatch.undo()
    run = tmp_path / "run"
    assert _epoch(run / "checkpoint.pt") == kept and written(run)["best_epoch"] == 1 and not written(run)["finished"]
    assert not list(run.glob("*.tmp"))
    small_run(run)
    small_run(tmp_path / "whole")
    assert written(run) == written(tmp_path / "whole")


def test_where_the_system_gives_no_thread_the_training_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    small_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "model.pt", "metrics.json"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_says_what_is_kept_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    disk = Disk(monkeypatch, slow=True)

    def interrupt(_network: nn.Module, _optimizer: Optimizer, step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), number)
            threading.Timer(0.05, disk.done.set).start()

    with pytest.raises(SystemExit):
        small_run(tmp_path, spoil=interrupt)
    assert "checkpoint.pt keeps epoch 1" in capsys.readouterr().err
    assert _epoch(tmp_path / "checkpoint.pt") == 1 and written(tmp_path)["best_epoch"] == 1


@pytest.mark.parametrize(("epochs", "terminate"), [(1, None), (3, None), (3, 4), (3, 5), (3, 6)])
def test_whoever_looks_when_the_training_is_completed_finds_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, terminate: int | None
) -> None:
    """Whatever comes first, and whether the training has run its course or was terminated within an epoch."""
    slow, flush, seen = threading.Event(), os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda handle: (slow.wait(0.02), flush(handle))[1])

    def watch(engine: Engine) -> None:
        if terminate is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=terminate), lambda _: engine.terminate())
        engine.add_event_handler(Events.COMPLETED, lambda _: seen.append(written(tmp_path)["history"][-1]["epoch"]))

    small_run(tmp_path, epochs=epochs, watch=watch)
    assert seen == [epochs if terminate is None else 1]
    small_run(tmp_path, epochs=epochs + 1, scores=[0.1] * 4)
    assert written(tmp_path)["history"][-1]["epoch"] == epochs + 1


def test_a_run_without_its_checkpoints_says_that_it_begins_anew(
    cut_off: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (cut_off / name).unlink()
    _, _, losses = small_run(cut_off)
    assert len(losses) == 3 and "checkpoint.pt is missing, so this run starts again" in capsys.readouterr().out


def test_a_training_that_failed_before_its_first_checkpoint_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its network has made some of the steps, and its engine would count the epoch as trained."""
    engines: list[Engine] = []
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, spoil=_pull_the_plug(2), watch=engines.append)
    engines[0].run()  # which Ignite passes over after a failure
    with pytest.raises(ConfigError, match=r"checkpoint\.pt must exist for a training to go on, .* make .* anew"):
        engines[0].run()
    small_run(tmp_path)
    assert written(tmp_path)["finished"]
