"""Damaged and crafted checkpoints: a sentence each, and nothing of them is taken over."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Dataset, contents, refusal, train

from monai_fp4.bundle.state import (
    check_optimizer,
    check_scaler,
    check_scheduler,
    check_weights,
    without_scalars,
)
from monai_fp4.bundle.tensor_files import load_tensors
from monai_fp4.errors import ConfigError
from monai_fp4.optimizers import MuonAdamW


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("PWNED"),)


@pytest.fixture(scope="module")
def cut_run(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch whose metrics say that it has not finished."""
    folder = train(tiny, tmp_path_factory.mktemp("cut") / "run", epochs=1)
    written = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(written | {"finished": False}))
    return folder


def change(*path: Any, to: Any) -> Callable[[Any], Any]:
    """Replace what stands at a path; ``to`` may be a function of what stood there."""

    def damage(checkpoint: Any) -> Any:
        part = checkpoint
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = to(part[path[-1]]) if callable(to) else to
        return checkpoint

    return damage


STATE = ("optimizer", "state", 0)
GROUP = ("optimizer", "param_groups", 0)
ENDLESS: list[Any] = []
for _ in range(40):
    ENDLESS = [ENDLESS] * 10
"""A few hundred bytes in a file, since each list is kept once; 10^40 written out."""

CRAFTED: dict[str, Callable[[Any], Any]] = {
    "a list": lambda _: [1, 2],
    "a number": lambda _: 7,
    "a tensor": lambda _: torch.zeros(3),
    "numbers as names": lambda found: {1: found},
    "no network": change("network", to=None),
    "a network that is a list": change("network", to=[1]),
    "a weight that is a number": change("network", "model.0.conv.unit0.conv.weight", to=1.0),
    "weights in half precision": change("network", to=lambda n: {k: v.half() for k, v in n.items()}),
    "weights that are NaN": change("network", to=lambda n: {k: v * float("nan") for k, v in n.items()}),
    "sparse weights": change("network", to=lambda n: {k: v.to_sparse() if v.ndim else v for k, v in n.items()}),
    "weights without numbers": change("network", to=lambda n: {k: v.to("meta") for k, v in n.items()}),
    "a negative variance": change("network", to=lambda n: {k: -v - 1 if "var" in k else v for k, v in n.items()}),
    "an optimizer that is a list": change("optimizer", to=[]),
    "no groups": change("optimizer", "param_groups", to=[]),
    "a group too many": change("optimizer", "param_groups", to=lambda groups: groups * 2),
    "a group without a rate": change(*GROUP, to=lambda g: {k: v for k, v in g.items() if k != "lr"}),
    "a rate that is a text": change(*GROUP, "lr", to="0.1"),
    "a rate that is NaN": change(*GROUP, "lr", to=float("nan")),
    "a rate below 0": change(*GROUP, "lr", to=-1.0),
    "another rate than the schedule's": change(*GROUP, "lr", to=0.5),
    "another decay": change(*GROUP, "weight_decay", to=0.9),
    "ascent": change(*GROUP, "maximize", to=True),
    "betas out of range": change(*GROUP, "betas", to=(2.0, 0.9)),
    "one beta": change(*GROUP, "betas", to=(0.9,)),
    "fused by a text": change(*GROUP, "fused", to="yes"),
    "other parameters": change(*GROUP, "params", to=lambda numbers: numbers[::-1]),
    "a number too large for floats": change(*GROUP, "eps", to=10**400),
    "state of parameters that are not there": change("optimizer", "state", to=lambda s: {10**6: s[0]}),
    "state by names": change("optimizer", "state", to=lambda s: {str(k): v for k, v in s.items()}),
    "state that is a list": change("optimizer", "state", to=lambda s: list(s.values())),
    "moments of another shape": change(*STATE, "exp_avg", to=torch.zeros(1)),
    "larger moments": change(*STATE, "exp_avg", to=lambda t: torch.zeros(2, *t.shape)),
    "second moments of another shape": change(*STATE, "exp_avg_sq", to=torch.zeros(())),
    "moments in half precision": change(*STATE, "exp_avg", to=lambda t: t.half()),
    "moments of whole numbers": change(*STATE, "exp_avg", to=lambda t: t.long()),
    "complex moments": change(*STATE, "exp_avg", to=lambda t: t.cfloat()),
    "moments that are NaN": change(*STATE, "exp_avg", to=lambda t: t * float("nan")),
    "moments that are infinite": change(*STATE, "exp_avg", to=lambda t: t + float("inf")),
    "negative second moments": change(*STATE, "exp_avg_sq", to=lambda t: t - 1),
    "moments that are a list": change(*STATE, "exp_avg", to=[1.0]),
    "no moments": change(*STATE, to={}),
    "half of the moments": change(*STATE, to=lambda s: {"step": s["step"], "exp_avg": s["exp_avg"]}),
    "further moments": change(*STATE, to=lambda s: s | {"max_exp_avg_sq": s["exp_avg"]}),
    "more steps than were made": change(*STATE, "step", to=torch.tensor(1e6)),
    "steps below 0": change(*STATE, "step", to=torch.tensor(-1.0)),
    "steps of another shape": change(*STATE, "step", to=torch.zeros(5)),
    "steps below 0 as a number": change(*STATE, "step", to=-1.0),
    "steps that are NaN": change(*STATE, "step", to=float("nan")),
    "steps that are a text": change(*STATE, "step", to="1"),
    "steps too many for floats": change(*STATE, "step", to=10**400),
    "a schedule that is a list": change("lr_scheduler", to=[]),
    "a schedule that stands elsewhere": change("lr_scheduler", "last_epoch", to=0),
    "a schedule of other steps": change("lr_scheduler", "total_steps", to=10**6),
    "a schedule that is NaN": change("lr_scheduler", "last_epoch", to=float("nan")),
    "a schedule with another attribute": change("lr_scheduler", to=lambda s: s | {"step": 1}),
    "a schedule of other phases": change("lr_scheduler", "_schedule_phases", to=lambda p: p[:1]),
    "epoch 0": change("epoch", to=0),
    "an epoch below 0": change("epoch", to=-1),
    "half an epoch": change("epoch", to=0.5),
    "an epoch that is a text": change("epoch", to="1"),
    "an epoch that is true": change("epoch", to=True),
    "an epoch after the last": change("epoch", to=10**30),
    "a history that is a text": change("history", to="x"),
    "no history": change("history", to=[]),
    "a history of another epoch": change("history", 0, "epoch", to=2),
    "a history of texts": change("history", 0, "train_loss", to="low"),
    "a history of tensors": change("history", 0, "train_loss", to=torch.zeros(10)),
    "a history that is infinite": change("history", 0, "auprc", to=float("inf")),
    "patients that are a number": change("per_patient", to=1),
    "patients without names": change("per_patient", to=[{}]),
    "a patient beyond the last": change("per_patient", to=[{"patient": 99}]),
    "a patient before the first": change("per_patient", to=[{"patient": 0}]),
    "a patient that is true": change("per_patient", to=[{"patient": True}]),
    "a patient of more digits than JSON is read with": change("per_patient", to=[{"patient": 1, "dice": 10**4000}]),
    "a history beyond floats": change("history", 0, "train_loss", to=10**400),
    "a list of lists without end as a loss": change("history", 0, "train_loss", to=ENDLESS),
    "a list of lists without end as an epoch": change("epoch", to=ENDLESS),
    "a list of lists without end as a name": change("per_patient", to=[{"patient": 1, "dice": ENDLESS}]),
    "a list of lists without end as memory": change("peak_memory_bytes", to=ENDLESS),
    "a list of lists without end as a decay": change(*GROUP, "weight_decay", to=ENDLESS),
    "a list of lists without end as rates": change("lr_scheduler", "_last_lr", to=ENDLESS),
    "a list of lists without end as a schedule": change("lr_scheduler", "_schedule_phases", to=ENDLESS),
    "a list of lists without end as events": change("events", to={"x": ENDLESS}),
    "events that are a list": change("events", to=[]),
    "events of texts": change("events", to={"x": "y"}),
    "memory that is a text": change("peak_memory_bytes", to="much"),
    "memory below 0": change("peak_memory_bytes", to=-1),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_checkpoint_is_refused(name: str, cut_run: Path, tiny: Dataset, tmp_path: Path) -> None:
    run = Path(shutil.copytree(cut_run, tmp_path / "run"))
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.save(CRAFTED[name](checkpoint), run / "checkpoint.pt")
    before = contents(run)
    error = refusal(lambda: train(tiny, run, epochs=1))
    assert isinstance(error, ConfigError) and "checkpoint.pt" in str(error) and "weights_only" not in str(error)
    after = contents(run)
    assert all(after[file] == before[file] for file in ("checkpoint.pt", "model.pt", "metrics.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": float("nan")},
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": "x"},
        {"scale": ENDLESS},
        {"scale": torch.ones(3)},
        {"growth_factor": 1e30},
        {"backoff_factor": 1.5},
        {"growth_interval": 1},
        {"_growth_tracker": -1},
        {"_growth_tracker": "3"},
        {"further": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_crafted_scale_of_the_loss_is_refused(change: dict[str, Any]) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    state = scaler.state_dict()
    assert check_scaler(state | {"scale": 1024.0, "_growth_tracker": 3}, scaler)["scale"] == 1024.0
    for crafted in (state | change, {}, [], None, {"scale": 1.0}):
        with pytest.raises(ValueError, match="scaler"):
            check_scaler(crafted, scaler)
    assert check_scaler(state | change, torch.amp.GradScaler("cpu", enabled=False)) == {}


def test_a_good_checkpoint_is_taken(cut_run: Path, tiny: Dataset, tmp_path: Path) -> None:
    run = Path(shutil.copytree(cut_run, tmp_path / "run"))
    train(tiny, run, epochs=1)
    assert json.loads((run / "metrics.json").read_text())["finished"] is True


def test_tensors_that_share_memory_are_taken_apart() -> None:
    network = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    shared = state["state"][0]["exp_avg"][:1].expand(3, 4)
    state["state"][0] |= {"exp_avg": shared, "exp_avg_sq": shared.abs()[:1].expand(3, 4)}
    checked = check_optimizer(state, optimizer, 1)["state"][0]
    assert checked["exp_avg"].stride() == (4, 1) and checked["exp_avg"].data_ptr() != shared.data_ptr()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, MuonAdamW])
def test_what_an_optimizer_writes_passes(kind: Any) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 1, 1))
    named = network.named_parameters() if kind is MuonAdamW else network.parameters()
    optimizer = kind(named, lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=5, cycle_momentum=False)
    for _ in range(3):
        network(torch.rand(2, 3, 8, 8)).sum().backward()
        optimizer.step()
        schedule.step()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    checked = check_optimizer(state, optimizer, 3)
    assert same(checked, state)
    assert same(check_optimizer(without_scalars(state), optimizer, 3), state)  # as it is written
    assert check_scheduler(schedule.state_dict(), schedule, checked, 1, 3) == schedule.state_dict()
    torch.testing.assert_close(check_weights(network.state_dict(), network), weights, rtol=0, atol=0)
    assert same(optimizer.state_dict(), state)  # the check has made no step


def test_a_file_that_torch_did_not_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pt"
    torch.save({"network": Exploit()}, path)
    with pytest.raises(ConfigError, match="might be code") as error:
        load_tensors(path)
    assert "weights_only" not in str(error.value) and not Path("PWNED").exists()
    torch.save({"a": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in archive.namelist():
            packed.writestr(entry, archive.read(entry))
    with pytest.raises(ConfigError, match="unpack to more"):
        load_tensors(tmp_path / "x")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 2**22 + b".")
    with pytest.raises(ConfigError, match="list of tensors is longer"):
        load_tensors(path)
    torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match="no file of tensors"):
        load_tensors(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="no regular file"):
        load_tensors(path)
