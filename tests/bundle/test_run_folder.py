from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from tiny_runs import contents
from torch import nn

from monai_fp4.bundle import RunFolder, RunOptions, defaults
from monai_fp4.bundle.archive import checksum
from monai_fp4.bundle.tensor_files import load_tensors, load_weights, save_tensors
from monai_fp4.errors import ConfigError
from monai_fp4.study.worker import _DISK_FULL

CONFIG = RunOptions.from_config(**defaults()).to_config()
PATIENTS = {"train": ["anna", "bert"], "val": ["carl"], "test": []}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.claim(CONFIG, PATIENTS)
    return folder


def test_a_folder_is_claimed_once(folder: RunFolder) -> None:
    folder.claim(CONFIG, PATIENTS)
    assert folder.read_json("config.json") == CONFIG
    assert folder.read_json("patients.json") == PATIENTS
    assert not folder.finished


def test_check_writes_nothing(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").check(CONFIG, PATIENTS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "patients", "named"),
    [
        ({"epochs": 3}, {}, "epochs is 12 there and 3 here"),
        ({}, {"val": ["bert"]}, "'val'"),
        ({}, {"train": ["bert", "anna"]}, "'train'"),
    ],
)
def test_another_run_is_refused(folder: RunFolder, config: Any, patients: Any, named: str) -> None:
    before = contents(folder.path)
    with pytest.raises(ConfigError) as error:
        folder.claim(CONFIG | config, PATIENTS | patients)
    assert named in str(error.value) and str(folder.path) in str(error.value)
    assert contents(folder.path) == before


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.pt", "metrics.json"])
def test_a_folder_that_no_training_wrote_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=r"no config\.json of a run"):
        RunFolder(tmp_path).claim(CONFIG, PATIENTS)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_damaged_config_is_refused(folder: RunFolder, content: str) -> None:
    folder.config_path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json must hold"):
        folder.claim(CONFIG, PATIENTS)


@pytest.mark.parametrize("below", ["file", "file/run"])
def test_a_file_is_no_output_dir(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="output_dir"):
        RunFolder(tmp_path / below).claim(CONFIG, PATIENTS)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_keeps_the_old_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(folder.checkpoint_path, {"epoch": 1})
    before = contents(folder.path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        folder.write_json("config.json", {})

    def half(_content: Any, file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(ConfigError, match="PytorchStreamWriter"):
        save_tensors(folder.checkpoint_path, {"epoch": 2})
    assert contents(folder.path) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_checkpoint_on_a_full_disk_says_what_the_system_says(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = contents(folder.path), os.open
    monkeypatch.setattr(
        os, "open", lambda path, *a: real("/dev/full", os.O_WRONLY) if str(path).endswith(".tmp") else real(path, *a)
    )
    with pytest.raises(ConfigError) as error:
        save_tensors(folder.checkpoint_path, {"weights": torch.zeros(100_000)})
    monkeypatch.undo()
    said = str(error.value)
    assert said.startswith(f"{folder.checkpoint_path} must be writable") and "make room" in said
    assert any(words in said for words in _DISK_FULL), "what the worker of a sweep looks for"
    assert "inline_container" not in said and "\n" not in said
    assert contents(folder.path) == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_one_sentence(folder: RunFolder, content: bytes) -> None:
    folder.checkpoint_path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_tensors(folder.checkpoint_path)
    assert "checkpoint.pt" in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_that_would_run_code_is_refused(folder: RunFolder) -> None:
    torch.save({"network": Exploit()}, folder.checkpoint_path)
    with pytest.raises(ConfigError, match="might be code"):
        load_tensors(folder.checkpoint_path)
    assert not Exploit.ran


def test_a_missing_checkpoint_is_one_sentence(folder: RunFolder) -> None:
    with pytest.raises(ConfigError, match="must exist"):
        load_tensors(folder.checkpoint_path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "2 unknown"),
        (nn.Sequential(nn.Linear(2, 4)), "2 of another shape"),
        (nn.Sequential(), "2 tensors are missing"),
    ],
)
def test_weights_of_another_network_are_refused(folder: RunFolder, other: nn.Module, named: str) -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError) as error:
        load_weights(network, other.state_dict(), folder.model_path)
    assert named in str(error.value) and "another network" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Exploit:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Exploit, "ran", True)


def test_weights_are_held_against_the_metrics_that_were_read(folder: RunFolder) -> None:
    """A run that trains may replace both between the two."""
    folder.path.mkdir(exist_ok=True)
    read: list[dict[str, Any]] = []
    for value in (0.0, 1.0):
        save_tensors(folder.model_path, {"weight": torch.tensor(value)})
        folder.write_json("metrics.json", {"model_checksum": checksum(folder.model_path)})
        read.append(folder.read_json("metrics.json"))
    folder.check_model()
    folder.check_model(read[1])
    for said in (read[0], {"model_checksum": None}):  # null: the weights that they tell of are not there yet
        with pytest.raises(ConfigError, match=r"model\.pt must hold the weights of this run, but it is another file"):
            folder.check_model(said)
