"""A training from its bundle to its run folder, and everything that may happen to it on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from tiny_runs import Dataset, contents, item, lgg_dataset, metrics, refusal, train, workflow

from monai_fp4.bundle import network_of_run
from monai_fp4.data import load_manifest, select_patients
from monai_fp4.engines import unwrap_ddp
from monai_fp4.errors import ConfigError
from monai_fp4.metrics import compute_auprc


def test_a_run_writes_its_folder(finished_run: Path, tiny: Dataset) -> None:
    names = {path.name for path in finished_run.iterdir()}
    events = {name for name in names if "tfevents" in name}
    assert len(events) == 1
    assert names - events == {
        *("config.json", "conversion.json", "environment.json", "patients.json"),
        *("model.pt", "checkpoint.pt", "metrics.json", "pr_curve.json", "health.json", "training_data.json"),
    }
    written = metrics(finished_run)
    assert written["finished"] is True and [entry["epoch"] for entry in written["history"]] == [1, 2]
    best = max(written["history"], key=lambda entry: entry["auprc"])
    assert (written["best_epoch"], written["auprc"]) == (best["epoch"], best["auprc"])
    assert all(0 <= entry["input_wait"] <= 1 for entry in written["history"])
    assert 0 < written["auprc"] <= 1 and 0 <= written["threshold"] <= 1
    patients = json.loads((finished_run / "patients.json").read_text())
    manifest = load_manifest(tiny.manifest)
    chosen = {part: [patient.id for patient in select_patients(manifest, 0, part)] for part in ("train", "val")}
    assert {part: patients.pop(part) for part in ("train", "val", "test")} == chosen | {"test": []}
    assert patients["channels"] == list(manifest.channels) and set(patients["images"]) == {
        *chosen["train"],
        *chosen["val"],
    }
    keys = [key for keys in patients["images"].values() for key in keys]
    files = {pair.sha256[-16:] for patient in manifest.patients for pair in patient.images}
    assert {key for key in keys if not key.startswith("voxels:")} == files
    assert len([key for key in keys if key.startswith("voxels:")]) == len(patients["images"]) * len(manifest.channels)
    environment = json.loads((finished_run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__ and environment["processes"] == 1


def test_patients_and_curve_are_those_of_the_best_epoch(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", epochs=3)
    flow.initialize()
    evaluator, trainer = item(flow, "validate#evaluator"), item(flow, "train#trainer")
    pretended, seen = iter([0.1, 0.9, 0.5]), {}

    def keep(engine: Engine) -> None:
        engine.state.metrics["auprc"] = next(pretended)
        seen[engine.state.epoch] = (engine.state.metrics["threshold"], list(outputs))
        outputs.clear()

    outputs: list[dict[str, Any]] = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.extend(engine.state.output))
    evaluator.add_event_handler(Events.COMPLETED, keep)
    trainer.run()
    written = metrics(tmp_path / "run")
    threshold, patients = seen[2]
    assert written["best_epoch"] == 2 and written["threshold"] == threshold and len(patients) == 2
    expected = []
    for output in patients:
        scores, truth = output["pred"].flatten(), output["label"].flatten() > 0
        called = scores >= threshold
        hits = float((called & truth).sum())
        numbers = {"recall": hits / float(truth.sum()), "dice": 2 * hits / float(called.sum() + truth.sum())}
        expected.append({"patient": output["patient"], "auprc": compute_auprc(scores, truth)} | numbers)
    for found, right in zip(written["per_patient"], expected, strict=True):
        assert found == pytest.approx(right)
    curve = json.loads((tmp_path / "run" / "pr_curve.json").read_text())
    scores, truth = (torch.cat([output[key].flatten() for output in patients]) for key in ("pred", "label"))
    assert curve["epoch"] == 2 and (curve["positives"], curve["negatives"]) == (
        int((truth > 0).sum()),
        int((truth == 0).sum()),
    )
    assert 100 < len(curve["thresholds"]) <= 500 and curve["thresholds"] == sorted(curve["thresholds"], reverse=True)
    for at in (0, len(curve["tp"]) // 2, -1):
        called = scores >= curve["thresholds"][at]
        assert curve["tp"][at] == int((called & (truth > 0)).sum())
        assert curve["fp"][at] == int((called & (truth == 0)).sum())


def test_the_peak_of_memory_is_that_of_all_attempts(tiny: Dataset, tmp_path: Path) -> None:
    folder = train(tiny, tmp_path / "run", epochs=1)
    peak = metrics(folder)["peak_memory_bytes"]
    assert 2**26 < peak < 2**37, "torch alone takes more than 64 MiB"
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(checkpoint | {"peak_memory_bytes": 2**40}, folder / "checkpoint.pt")
    (folder / "metrics.json").write_text(json.dumps(metrics(folder) | {"finished": False}))
    assert metrics(train(tiny, folder, epochs=1))["peak_memory_bytes"] == 2**40


@pytest.mark.parametrize("fold", [0, "all"])
def test_a_checkpoint_knows_patients_by_number_and_an_earlier_one_by_name(
    fold: int | str, tiny: Dataset, tmp_path: Path
) -> None:
    folder = train(tiny, tmp_path / "run", epochs=1, fold=fold)
    rows, validated = metrics(folder)["per_patient"], "train" if fold == "all" else "val"
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    patients = json.loads((folder / "patients.json").read_text())[validated]
    assert [row["patient"] for row in rows] == patients and len(patients) > 1
    assert [row["patient"] for row in checkpoint["per_patient"]] == list(range(1, len(patients) + 1))
    for kept in (checkpoint["per_patient"], rows):  # today's, and that of earlier versions
        torch.save(checkpoint | {"per_patient": kept}, folder / "checkpoint.pt")
        (folder / "metrics.json").write_text(json.dumps(metrics(folder) | {"finished": False, "per_patient": []}))
        assert metrics(train(tiny, folder, epochs=1, fold=fold))["per_patient"] == rows


def test_the_loss_falls(finished_run: Path) -> None:
    first, last = (entry["train_loss"] for entry in metrics(finished_run)["history"])
    assert last < first


def test_the_weights_load_into_the_unconverted_network(finished_run: Path) -> None:
    network = network_of_run(json.loads((finished_run / "config.json").read_text()), in_channels=3)
    network.load_state_dict(torch.load(finished_run / "model.pt", weights_only=True))


def test_started_again_a_finished_run_says_so(
    finished_run: Path, tiny: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished_run)
    with pytest.raises(SystemExit) as ended:
        train(tiny, finished_run)
    assert ended.value.code == 0
    assert "is finished" in capsys.readouterr().out
    assert contents(finished_run) == before


def test_a_finished_run_needs_no_data(finished_run: Path, tiny: Dataset) -> None:
    with pytest.raises(SystemExit) as ended:
        train(tiny, finished_run, dataset_dir="/nowhere")
    assert ended.value.code == 0


@pytest.mark.parametrize("recipe", ["bf16", "sr_rht_2d"])
def test_a_resumed_run_is_bit_identical(recipe: str, tiny: Dataset, tmp_path: Path) -> None:
    bundle = f"unet_500k_{recipe}"
    whole = train(tiny, tmp_path / "whole", bundle)

    def pull_the_plug(_engine: Engine) -> None:
        raise KeyboardInterrupt

    flow = workflow(tiny, tmp_path / "resumed", bundle)
    flow.initialize()
    item(flow, "train#trainer").add_event_handler(Events.ITERATION_COMPLETED(once=3), pull_the_plug)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        flow.run()
    assert metrics(tmp_path / "resumed")["finished"] is False
    resumed = train(tiny, tmp_path / "resumed", bundle)

    one, other = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, resumed))
    assert one["epoch"] == other["epoch"] == 2
    for name, value in one["network"].items():
        assert torch.equal(value, other["network"][name]), name
    assert _equal(one["optimizer"], other["optimizer"])
    assert _equal(one["lr_scheduler"], other["lr_scheduler"])
    assert _without_time(metrics(whole)) == _without_time(metrics(resumed))
    assert metrics(resumed)["per_patient"]
    assert (whole / "pr_curve.json").read_bytes() == (resumed / "pr_curve.json").read_bytes()


def test_a_run_cut_off_before_its_last_words_only_says_them(tiny: Dataset, tmp_path: Path) -> None:
    folder = train(tiny, tmp_path / "run", epochs=1)
    said = metrics(folder)
    weights = (folder / "checkpoint.pt").read_bytes()
    (folder / "metrics.json").write_text(json.dumps(said | {"finished": False}))
    train(tiny, folder, epochs=1)
    assert metrics(folder) == said
    assert (folder / "checkpoint.pt").read_bytes() == weights


def test_a_run_is_not_resumed_with_other_patients(tiny: Dataset, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(tiny.manifest.read_text())
    folder = train(Dataset(tiny.dataset_dir, manifest), tmp_path / "run", epochs=1)
    written = metrics(folder)
    (folder / "metrics.json").write_text(json.dumps(written | {"finished": False}))
    before = contents(folder)
    document = json.loads(manifest.read_text())
    for patient in document["patients"]:
        patient["fold"] = (patient["fold"] + 1) % 3
    manifest.write_text(json.dumps(document))
    error = refusal(lambda: train(Dataset(tiny.dataset_dir, manifest), folder, epochs=1))
    assert isinstance(error, ConfigError) and "patients" in str(error)
    assert contents(folder) == before


def test_recipes_with_one_seed_are_paired(tiny: Dataset, tmp_path: Path) -> None:
    first = _start_and_batches(tiny, tmp_path / "a", "unet_500k_bf16")
    second = _start_and_batches(tiny, tmp_path / "b", "unet_500k_sr_rht_2d")
    other = _start_and_batches(tiny, tmp_path / "c", "unet_500k_bf16", seed=1)
    assert _equal(first, second)
    assert not any(torch.equal(one, two) for one, two in zip(first["images"], other["images"], strict=True))
    assert not torch.equal(first["images"][0], first["images"][2])  # the epochs differ
    name = next(name for name in first["weights"] if name.endswith("conv.weight"))
    assert not torch.equal(first["weights"][name], other["weights"][name])


def test_fold_all_trains_on_everybody_outside_the_test_split(tiny: Dataset, held_out: Dataset, tmp_path: Path) -> None:
    both = lgg_dataset(tmp_path / "both", 6)
    document = json.loads(both.manifest.read_text())
    document["patients"][0] |= {"split": "test", "fold": None}
    both.manifest.write_text(json.dumps(document))
    folder = train(both, tmp_path / "run", fold="all", epochs=1)
    patients = json.loads((folder / "patients.json").read_text())
    ids = [patient["id"] for patient in document["patients"]]
    assert (patients["train"], patients["test"], "val" in patients) == (ids[1:], ids[:1], False)
    assert list(patients["images"]) == ids[1:]
    assert "training patients" in metrics(folder)["measured_on"]
    assert isinstance(metrics(folder)["threshold"], float)


def test_metrics_are_those_of_the_scan(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", epochs=1)
    flow.initialize()
    evaluator, seen = item(flow, "validate#evaluator"), []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.extend(engine.state.output))
    flow.run()
    assert len(seen) == 2
    for output in seen:
        assert tuple(output["image"].shape) == (3, 32, 32, 3)
        assert output["label"].shape == output["pred"].shape == (1, 40, 48, 3)
        assert output["pred"].dtype == torch.float32 and output["pred"].min() >= 0 and output["pred"].max() <= 1
    scores, labels = (torch.cat([output[key].flatten() for output in seen]) for key in ("pred", "label"))
    assert metrics(tmp_path / "run")["auprc"] == pytest.approx(compute_auprc(scores, labels), abs=1e-6)


def test_volumes_train_in_three_dimensions(volumes: Dataset, tmp_path: Path) -> None:
    folder = train(volumes, tmp_path / "run", "unet_500k_sr", image_size=[32, 32, 32], epochs=1, batch_size=2)
    assert 0 < metrics(folder)["auprc"] <= 1
    conversion = json.loads((folder / "conversion.json").read_text())
    assert any(layer["action"] == "swapped" and "3d" in layer["kind"].lower() for layer in conversion["layers"])


def test_five_steps_are_a_training_too(tiny: Dataset, tmp_path: Path) -> None:
    folder = train(tiny, tmp_path / "run", epochs=5, batch_size=12, val_interval=5)
    assert metrics(folder)["finished"] is True


def test_val_interval(tiny: Dataset, tmp_path: Path) -> None:
    folder = train(tiny, tmp_path / "run", epochs=3, batch_size=12, val_interval=2)
    assert ["auprc" in entry for entry in metrics(folder)["history"]] == [False, True, True]


def test_the_learning_rate_in_the_history_is_the_one_that_was_used(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", epochs=2)
    flow.initialize()
    trainer, used = item(flow, "train#trainer"), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: used.append(engine.optimizer.param_groups[0]["lr"])
    )
    flow.run()
    assert [entry["learning_rate"] for entry in metrics(tmp_path / "run")["history"]] == [used[1], used[3]]
    assert used[3] < 1e-6 < used[1]


def _start_and_batches(dataset: Dataset, folder: Path, bundle: str, **changes: Any) -> dict[str, Any]:
    flow = workflow(dataset, folder, bundle, **changes)
    flow.initialize()
    trainer = item(flow, "train#trainer")
    weights = {name: value.clone() for name, value in unwrap_ddp(item(flow, "network")).state_dict().items()}
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []

    def keep(engine: Engine) -> None:
        images.append(engine.state.output["image"].clone())
        labels.append(engine.state.output["label"].clone())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    flow.run()
    return {"weights": weights, "images": images, "labels": labels}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _without_time(written: dict[str, Any]) -> dict[str, Any]:
    timed = ("seconds", "input_wait")
    history = [{key: value for key, value in entry.items() if key not in timed} for entry in written["history"]]
    return {key: value for key, value in written.items() if key != "peak_memory_bytes"} | {"history": history}
