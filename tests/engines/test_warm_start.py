"""--init_from: weights of a run, of a file or of a MONAI checkpoint, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Dataset, item, refusal, train, workflow

from monai_fp4.errors import ConfigError


def begun(dataset: Dataset, folder: Path, source: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The weights that a training begins with."""
    flow = workflow(dataset, folder, init_from=str(source), **changes)
    flow.initialize()
    return {name: value.clone() for name, value in item(flow, "network").state_dict().items()}


@pytest.mark.parametrize("how", ["folder", "file", "checkpoint", "monai"])
def test_a_training_begins_with_the_weights_of_another(
    how: str, finished_run: Path, tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = torch.load(finished_run / "model.pt", weights_only=True)
    monai = tmp_path / "monai.pt"
    torch.save({"model": {f"module.{name}": value for name, value in weights.items()}, "epoch": 3}, monai)
    source = {
        "folder": finished_run, "file": finished_run / "model.pt", "checkpoint": finished_run / "checkpoint.pt",
        "monai": monai,
    }[how]  # fmt: skip
    expected = torch.load(source, weights_only=True)["network"] if how == "checkpoint" else weights
    found = begun(tiny, tmp_path / "new", source, recipe="sr", seed=7)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert f"{len(weights)} of {len(weights)} tensors taken" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "init_from.json").read_text())["kept"] == []


def test_other_channels_take_what_fits_and_the_rest_is_said(
    finished_run: Path, volumes: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three channels before, one now: the layers that see the image keep what the seed drew."""
    weights = torch.load(finished_run / "model.pt", weights_only=True)
    plain = {name: v.clone() for name, v in item_network(volumes, tmp_path / "plain").items()}
    found = begun(volumes, tmp_path / "new", finished_run)
    kept = json.loads((tmp_path / "new" / "init_from.json").read_text())["kept"]
    assert kept and all(torch.equal(found[name], plain[name]) for name in kept)
    assert all(torch.equal(found[name], weights[name]) for name in found if name not in kept)
    assert kept[0] in capsys.readouterr().out


def item_network(dataset: Dataset, folder: Path) -> dict[str, torch.Tensor]:
    flow = workflow(dataset, folder)
    flow.initialize()
    return dict(item(flow, "network").state_dict())


def test_more_epochs_on_a_finished_run(finished_run: Path, tiny: Dataset, tmp_path: Path) -> None:
    folder = train(tiny, tmp_path / "more", init_from=str(finished_run), epochs=1)
    before, after = (json.loads((f / "metrics.json").read_text())["history"] for f in (finished_run, folder))
    assert after[0]["train_loss"] < before[0]["train_loss"]


@pytest.mark.parametrize("what", ["nothing", "text", "empty", "other", "nan"])
def test_what_holds_no_weights_of_a_like_network(what: str, finished_run: Path, tiny: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    weights = torch.load(finished_run / "model.pt", weights_only=True)
    first = next(iter(weights))
    match what:
        case "text":
            path.write_text("no weights")
        case "empty":
            torch.save({"epoch": 3}, path)
        case "other":
            torch.save({"layer.weight": torch.ones(3)}, path)
        case "nan":
            torch.save(weights | {first: weights[first] * torch.nan}, path)
    error = refusal(lambda: begun(tiny, tmp_path / "new", path))
    assert isinstance(error, ConfigError) and ("init_from" in str(error) or "weights.pt" in str(error))
