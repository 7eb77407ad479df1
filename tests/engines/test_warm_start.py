"""--init_from: weights of a run, of a file or of a MONAI checkpoint, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Dataset, contents, evaluation, item, refusal, train, workflow

from monai_fp4.engines.warm_start import take_weights, what_was_taken
from monai_fp4.errors import ConfigError
from monai_fp4.networks import build_network


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


WRAPPED = {
    "DDP": lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
    "torch.compile": lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    "compiled in DDP": lambda weights: {"net": {f"module._orig_mod.{name}": v for name, v in weights.items()}},
    "Lightning": lambda weights: {"state_dict": {f"model.{n}": v for n, v in weights.items()}, "epoch": 3},
    "MONAI's CheckpointSaver": lambda weights: {"network": weights, "optimizer": {"state": {}, "param_groups": []}},
    "an average beside it": lambda weights: {"ema": {"x": torch.ones(2)}, "weights": weights, "best": 0.5},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_weights_are_found_however_they_were_wrapped(how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = (build_network("unet", "500k", 1, 1, image_size=(32, 32), spatial_dims=2) for _ in range(2))
    torch.save(WRAPPED[how](source.state_dict()), tmp_path / "w.pt")
    report = take_weights(target, str(tmp_path / "w.pt"))
    assert report["kept"] == [] and report["share"] == 1 and report["trained_on"] == {}
    state = source.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("arch", ["unet", "vit", "swin"])
@pytest.mark.parametrize("dims", [2, 3])
def test_other_labels_and_channels_keep_the_first_or_the_last_layer(arch: str, dims: int, tmp_path: Path) -> None:
    """Weights for three labels, or four channels, given to a network of one of each, in 2D and 3D."""
    size = (64,) * dims
    for source_channels, labels, ends in ((1, 3, "last"), (4, 1, "first")):
        source = build_network(arch, "500k", source_channels, labels, image_size=size, spatial_dims=dims)
        target = build_network(arch, "500k", 1, 1, image_size=size, spatial_dims=dims)
        before = {name: value.clone() for name, value in target.state_dict().items()}
        torch.save(source.state_dict(), tmp_path / "w.pt")
        kept = take_weights(target, str(tmp_path / "w.pt"))["kept"]
        shapes = {name: source.state_dict()[name].shape for name in before}
        assert kept == sorted(name for name in before if shapes[name] != before[name].shape) and 0 < len(kept) <= 2
        for name, value in target.state_dict().items():
            assert torch.equal(value, before[name] if name in kept else source.state_dict()[name]), (ends, name)


def test_slices_to_volumes_take_what_has_no_dimensions_and_the_share_says_how_little(tmp_path: Path) -> None:
    source = build_network("unet", "500k", 1, 1, image_size=(32, 32), spatial_dims=2)
    target = build_network("unet", "500k", 1, 1, image_size=(32, 32, 32), spatial_dims=3)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    report = take_weights(target, str(tmp_path / "w.pt"))
    assert report["share"] < 0.01 and "% of the parameters" in what_was_taken(report)


KINDS = {
    "complex numbers": lambda value: value.to(torch.complex64),
    "whole numbers": lambda value: value.long(),
    "no values": lambda value: value.to("meta"),
    "sparse": lambda value: value.to_sparse(),
    "more than float32 holds": lambda value: value.double() * 1e200,
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_another_kind_are_not_taken_for_weights(kind: str, tmp_path: Path) -> None:
    network = build_network("unet", "500k", 1, 1, image_size=(32, 32), spatial_dims=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save({n: KINDS[kind](v) if v.is_floating_point() else v for n, v in before.items()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="init_from must hold"):
        take_weights(network, str(tmp_path / "w.pt"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_of_another_precision_are_taken(tmp_path: Path) -> None:
    source, target = (build_network("unet", "500k", 1, 1, image_size=(32, 32), spatial_dims=2) for _ in range(2))
    torch.save(source.half().state_dict(), tmp_path / "w.pt")
    assert take_weights(target, str(tmp_path / "w.pt"))["kept"] == []
    state = target.state_dict()
    assert all(torch.equal(value.to(state[name].dtype), state[name]) for name, value in source.state_dict().items())
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


def test_who_was_trained_on_before_is_said_and_not_evaluated(
    finished_run: Path, tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through two runs of other folds: what the first had seen, the third must not be evaluated on."""
    second = train(tiny, tmp_path / "second", init_from=str(finished_run), fold=1, epochs=1)
    assert "warning: init_from was trained on 2 of the 2 patients" in capsys.readouterr().out
    seen = json.loads((second / "init_from.json").read_text())["trained_on"]
    assert list(seen) == [str(number) for number in range(1, len(seen) + 1)], "who they are is nothing to this run"
    third = train(tiny, tmp_path / "third", init_from=str(second), fold=0, epochs=1)
    assert "warning: init_from was trained on 2 of the 2 patients" in capsys.readouterr().out
    for run in (second, third):
        flow = evaluation(run, tiny, tmp_path / "out", split="val")
        assert "no evaluated patient may have been trained on" in str(refusal(flow.initialize))


def test_more_epochs_in_the_same_fold_are_not_warned_of(
    finished_run: Path, tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that is gone on from keeps its files; the new one has a schedule and a best epoch of its own."""
    before = contents(finished_run)
    capsys.readouterr()
    folder = train(tiny, tmp_path / "more", init_from=str(finished_run), epochs=2)
    assert "warning" not in capsys.readouterr().out and contents(finished_run) == before
    first, more = (json.loads((f / "metrics.json").read_text()) for f in (finished_run, folder))
    assert [entry["learning_rate"] for entry in more["history"]] == [e["learning_rate"] for e in first["history"]]
    assert more["best_epoch"] in (1, 2)
    # Given again, it is finished, also where what it began from is gone.
    with pytest.raises(SystemExit):
        workflow(tiny, folder, init_from=str(finished_run), epochs=2).initialize()


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
