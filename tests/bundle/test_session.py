from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import BUNDLES, TINY, Dataset, contents, refusal, train, workflow

from monai_fp4.bundle import Session, defaults
from monai_fp4.data import load_datalist, manifest
from monai_fp4.errors import ConfigError, MonaiFP4Error

MONAI = "/site-packages/monai/bundle/__main__.py"
BUNDLE = str(BUNDLES / "unet_500k_bf16.json")


def session(dataset: Dataset, output_dir: Path, **changes: Any) -> Session:
    return Session(**(defaults() | TINY | dataset.options | {"output_dir": str(output_dir)} | changes)).begin()


def test_a_session_claims_its_folder(tiny: Dataset, tmp_path: Path) -> None:
    started = session(tiny, tmp_path / "run")
    assert (started.rank, started.world_size, started.batch_size) == (0, 1, 6)
    assert (started.in_channels, started.device, started.validation_part) == (3, torch.device("cpu"), "val")
    assert set(contents(tmp_path / "run")) == {".lock", "config.json", "environment.json", "patients.json"}
    with pytest.raises(ConfigError, match=f"one run at a time may work in .*process {os.getpid()} on host"):
        session(tiny, tmp_path / "run")
    (tmp_path / "run" / ".checkpoint.pt.123.monai_fp4.tmp").touch()
    started.close()
    session(tiny, tmp_path / "run").close()
    assert set(contents(tmp_path / "run")) == {"config.json", "environment.json", "patients.json"}
    assert session(tiny, tmp_path / "other", fold="all").validation_part == "train"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"arch": "unnet"}, "'unet'"),
        ({"arch": "swinunetr", "scale": "500k"}, "15m"),
        ({"scale": "5m"}, "'4m'"),
        ({"image_size": [40, 48]}, "[48, 48]"),
        ({"backend": "transfomer_engine"}, "'transformer_engine'"),
        ({"backend": "transformer_engine"}, "transformer_engine"),
        ({"device": "gpu"}, "'cpu'"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"fold": 3}, "0, 1, 2, all"),
        ({"manifest": "lggg"}, "'lgg'"),
        ({"manifest": "/nowhere/m.json"}, "/nowhere/m.json"),
        ({"dataset_dir": "/nowhere"}, "/nowhere"),
    ],
)
def test_whatever_is_wrong_is_said_before_anything_is_written(
    tiny: Dataset, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(MonaiFP4Error) as error:
        session(tiny, tmp_path / "run", **change)
    assert named in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("change", "named"), [({"batch_size": 7}, "multiple of 2"), ({}, "holds 2 for 3 processes")])
def test_what_several_processes_cannot_share_is_refused(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2" if change else "3")
    with pytest.raises(ConfigError, match=named):
        session(tiny, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_every_patient_is_validated_by_one_process() -> None:
    ranks = [Session.__new__(Session) for _ in range(3)]
    for rank, each in enumerate(ranks):
        each.rank, each.world_size = rank, 3
    shares = [each.share(list("abcdefgh")) for each in ranks]
    assert (
        sorted(chain.from_iterable(shares)) == list("abcdefgh") and max(map(len, shares)) - min(map(len, shares)) <= 1
    )


def test_one_training_reads_its_manifest_once(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both data sets take it from the session, which has checked it; used on their own they read it themselves."""
    read: list[str] = []
    from_json = manifest.from_json

    def counted(document: Any, source: str) -> Any:
        read.append(source)
        return from_json(document, source)

    monkeypatch.setattr(manifest, "from_json", counted)
    train(tiny, tmp_path / "run", epochs=1)
    assert read == [str(tiny.manifest)]
    assert len(load_datalist(tiny.manifest, tiny.dataset_dir, 0, "val")) == 2 and len(read) == 2


def test_a_session_that_is_only_made_leaves_no_trace(tiny: Dataset, tmp_path: Path) -> None:
    options = defaults() | TINY | tiny.options | {"dataset_dir": "/nowhere", "output_dir": str(tmp_path / "run")}
    made = Session(**options)
    assert made.in_channels == 3 and not made.begun
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"\$@session\.begin\(\)"):
        _ = made.run_folder


def test_a_bundle_that_does_not_begin_its_session_is_told_to(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", initialize=["$@session"])
    flow.initialize()
    assert "'initialize'" in str(refusal(flow.run))
    assert not (tmp_path / "run").exists()
