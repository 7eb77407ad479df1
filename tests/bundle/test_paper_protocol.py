"""The overlay ``protocols/paper.json``: its numbers, a whole run of it, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from tiny_runs import BUNDLES, TINY, Dataset, evaluation, item, lgg_dataset, metrics, refusal

from monai_fp4.bundle import TrainedNetwork
from monai_fp4.data import HeldOut, load_manifest, save_manifest
from monai_fp4.errors import ConfigError, DataError
from monai_fp4.metrics import SOFT_SCORES
from monai_fp4.optimizers import paper_optimizer

OVERLAY = BUNDLES / "protocols" / "paper.json"


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six patients, of whom the holdout validates on one and tests on one."""
    plain = lgg_dataset(tmp_path_factory.mktemp("split"), 6)
    manifest = load_manifest(plain.manifest)
    ids = [patient.id for patient in manifest.patients]
    path = plain.manifest.with_name("splits.json")
    return Dataset(
        plain.dataset_dir, save_manifest(replace(manifest, splits={"holdout": HeldOut((ids[1],), (ids[4],))}), path)
    )


def workflow(dataset: Dataset, folder: Path, **changes: Any) -> ConfigWorkflow:
    options = TINY | dataset.options | {"output_dir": str(folder), "arch": "paper_cnn"} | changes
    del options["learning_rate"]
    files = [str(BUNDLES / "swin_500k_full.json"), str(OVERLAY)]
    return ConfigWorkflow(config_file=files, workflow_type="train", logging_file=False, **options)


def run(dataset: Dataset, folder: Path, **changes: Any) -> ConfigWorkflow:
    flow = workflow(dataset, folder, **changes)
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow


def test_it_says_what_the_paper_says() -> None:
    config = ConfigParser.load_config_files([BUNDLES / "swin_4m_sr.json", OVERLAY])
    assert (config["recipe"], config["scale"], config["image_size"]) == ("sr", "4m", [256, 256])
    assert (config["manifest"], config["fold"], config["seed"]) == ("lgg_paper", "holdout", 2026)
    assert (config["epochs"], config["batch_size"]) == (100, 32)
    assert config["loss"] == {
        "_target_": "monai_fp4.losses.TverskyBCELoss", "bce_weight": 1.0, "tversky_weight": 1.0, "alpha": 0.3,
        "beta": 0.7, "batch": False, "max_logit": 20.0,
    }  # fmt: skip
    schedule = config["lr_scheduler"]
    assert schedule["_target_"].endswith("ReduceLROnPlateau") and (schedule["mode"], schedule["factor"]) == ("max", 0.5)
    assert (schedule["patience"], schedule["threshold"], schedule["threshold_mode"]) == (10, 1e-4, "rel")
    assert config["train"]["step"]["max_grad_norm"] == 1.0
    recorder = config["train"]["handlers"][-1]
    chosen = {name: recorder[name] for name in ("key_metric", "lower_is_better", "min_gain", "patience", "warm_up")}
    assert list(chosen.values()) == ["val_loss", True, 0.001, 20, 40]


def test_its_handlers_are_the_templates_with_three_changes() -> None:
    own = json.loads(OVERLAY.read_text())["train#handlers"]
    usual = json.loads((BUNDLES / "swin_4m_sr.json").read_text())["train"]["handlers"]
    shared = [handler for handler in own if handler in usual]
    left = [handler["_target_"] for handler in usual if handler not in own]
    added = [handler["_target_"].rpartition(".")[2] for handler in own if handler not in usual]
    assert shared == [handler for handler in usual if handler in own]
    assert left == ["LrScheduleHandler", "monai_fp4.handlers.Recorder"]
    assert added == ["LrScheduleHandler", "HeldOutTest", "Recorder"]
    names = [handler["_target_"].rpartition(".")[2] for handler in own]
    assert names.index("Validation") < names.index("LrScheduleHandler") and names[-2:] == ["HeldOutTest", "Recorder"]


def test_a_run_reports_validation_and_test_apart(split: Dataset, tmp_path: Path) -> None:
    flow = run(split, tmp_path)
    validated, tested = metrics(tmp_path), json.loads((tmp_path / "test.json").read_text())
    assert validated["measured_on"] == "validation patients" and set(SOFT_SCORES) <= validated.keys()
    assert tested["measured_on"] == "test patients of the fold" and set(SOFT_SCORES) <= tested.keys()
    assert tested["weights_of_epoch"] == validated["best_epoch"] == validated["history"][-1]["epoch"]
    assert tested["threshold"] == validated["threshold"] and tested["patients"] == 1
    patients = json.loads((tmp_path / "patients.json").read_text())
    assert [len(patients[part]) for part in ("train", "val", "test")] == [4, 1, 1]
    schedule, optimizer = item(flow, "lr_scheduler"), item(flow, "optimizer")
    assert schedule.best == pytest.approx(-validated["val_loss"]) and schedule.last_epoch == 2
    assert type(optimizer) is torch.optim.Adamax and optimizer.param_groups[0]["lr"] == 5e-4


def test_the_loss_of_a_validation_is_that_of_slices(split: Dataset, tmp_path: Path) -> None:
    flow = run(split, tmp_path, epochs=1, recipe="bf16")  # FP4 gives each patient a maximum of their own
    loss, network = item(flow, "loss"), item(flow, "network").eval()
    (patient,) = item(flow, "validate#dataset")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = network(patient["image"].movedim(-1, 0)).float()
    logits = torch.nn.functional.interpolate(logits, size=patient["label"].shape[1:3], mode="bilinear")
    expected = loss(logits, patient["label"].movedim(-1, 0))  # one batch: the mean over its slices
    assert metrics(tmp_path)["val_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_each_network_has_its_optimizer(split: Dataset, tmp_path: Path) -> None:
    for arch, changes, kind, lr in (
        ("paper_cnn", {}, torch.optim.Adamax, 5e-4),
        ("paper_vit", {"image_size": [32, 32]}, torch.optim.AdamW, 1e-4),
        ("paper_vit", {"optimizer_name": "adamax"}, torch.optim.Adamax, 5e-4),
        ("paper_swin", {"image_size": [64, 64]}, torch.optim.AdamW, 1e-4),
    ):
        flow = workflow(split, tmp_path / f"{arch}_{len(changes)}_{kind.__name__}", arch=arch, **changes)
        flow.initialize()
        optimizer = item(flow, "optimizer")
        assert type(optimizer) is kind and optimizer.param_groups[0]["lr"] == lr
        assert optimizer.param_groups[0]["weight_decay"] == (1e-4 if kind is torch.optim.AdamW else 0)
        flow.finalize()
    with pytest.raises(ConfigError, match="optimizer 'adam' is not known"):
        paper_optimizer([], "adam", 1e-3)


def test_without_test_patients_it_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    error = refusal(lambda: run(tiny, tmp_path, fold=0))
    assert isinstance(error, DataError) and "expected patients to test on, found none" in str(error)


def test_without_the_holdout_it_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    assert "expected fold to be one of 0, 1, 2, all" in str(refusal(lambda: run(tiny, tmp_path)))


def test_a_run_that_was_cut_short_ends_as_if_it_had_not_been(split: Dataset, tmp_path: Path) -> None:
    def numbers(folder: Path) -> list[Any]:
        history = [
            {k: v for k, v in row.items() if k != "seconds" and k != "input_wait"} for row in metrics(folder)["history"]
        ]
        return [history, json.loads((folder / "test.json").read_text())]

    def cut(engine: Any) -> None:
        if engine.state.epoch == 2:
            raise RuntimeError("cut short")

    run(split, tmp_path / "whole", epochs=3)
    flow = workflow(split, tmp_path / "cut", epochs=3)
    flow.initialize()
    item(flow, "train#trainer").add_event_handler(Events.EPOCH_STARTED, cut)
    with pytest.raises(RuntimeError):
        flow.run()
    flow.finalize()
    assert not (tmp_path / "cut" / "test.json").exists()
    run(split, tmp_path / "cut", epochs=3)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_a_run_of_it_is_evaluated_with_its_own_normalisation(split: Dataset, tmp_path: Path) -> None:
    run(split, tmp_path / "run", epochs=1)
    flow = evaluation(tmp_path / "run", split, tmp_path / "evaluation", flips=False)
    for step in (flow.initialize, flow.run, flow.finalize):
        step()
    tested = json.loads((tmp_path / "run" / "test.json").read_text())
    found = metrics(tmp_path / "evaluation")
    assert found["auprc"] == pytest.approx(tested["auprc"], rel=1e-6) and found["patients"] == 1


def test_a_run_in_fp16_is_evaluated_in_fp16(split: Dataset, tmp_path: Path) -> None:
    """As on a GPU, where the paper's baseline is FP16: the test patients' results come out the same."""
    run(split, tmp_path / "run", epochs=1, recipe="bf16", autocast_dtype="float16")
    flow = evaluation(tmp_path / "run", split, tmp_path / "evaluation", flips=False)
    for step in (flow.initialize, flow.run, flow.finalize):
        step()
    tested = json.loads((tmp_path / "run" / "test.json").read_text())
    found = metrics(tmp_path / "evaluation")
    for name in ("auprc", "auprc_per_patient", "dice"):
        assert found[name] == pytest.approx(tested[name], rel=1e-6), name


@pytest.mark.parametrize(("device", "dtype"), [("cuda:0", "float16"), ("cpu", "bfloat16")])
def test_the_dtype_of_a_run_follows_from_the_device_that_it_was_trained_on(
    split: Dataset, tmp_path: Path, device: str, dtype: str
) -> None:
    run(split, tmp_path, epochs=1)
    path = tmp_path / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": device}))
    assert TrainedNetwork(str(tmp_path), "cpu").autocast_dtype == dtype
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong in ("$__import__('os').system('touch PWNED')", "float64", ["float16"]):
        (tmp_path / "config.json").write_text(json.dumps(config | {"autocast_dtype": wrong}))
        with pytest.raises(ConfigError, match="autocast computes in one of bfloat16, float16, but says"):
            _ = TrainedNetwork(str(tmp_path), "cpu").autocast_dtype
