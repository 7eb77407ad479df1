"""evaluate.json: a finished run on patients that it has not seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import scan_cases
import torch
from ignite.engine import Events
from sklearn.metrics import average_precision_score
from tiny_runs import Dataset, contents, evaluation, item, lgg_dataset, metrics, refusal, train

from monai_fp4.bundle import TrainedRun
from monai_fp4.data import PaperNormalization, build_manifest, save_manifest
from monai_fp4.data.patients import read_patient
from monai_fp4.errors import ConfigError, DataError
from monai_fp4.quantization.layers import LAYER_TYPES


def trained(run: Path, dataset: Dataset, output_dir: Path, **changes: Any) -> TrainedRun:
    options = {"run_dir": str(run), "output_dir": str(output_dir), "device": "cpu"} | dataset.options | changes
    return TrainedRun(**options)


def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_an_evaluation_from_its_bundle(finished_run: Path, held_out: Dataset, tmp_path: Path) -> None:
    before = contents(finished_run)
    flow = evaluation(finished_run, held_out, tmp_path / "out")
    flow.initialize()
    assert flow.check_properties() == []
    seen: list[dict[str, Any]] = []
    evaluator = item(flow, "evaluator")
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.extend(engine.state.output))
    flow.run()
    flow.finalize()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"metrics.json", "pr_curve.png", "probabilities.png", "overlays"} <= names
    assert list((tmp_path / "out" / "overlays").glob("*.png"))
    written = metrics(tmp_path / "out")
    assert written["source"]["patients"] == 2 and written["source"]["split"] in ("auto", "val", "test")
    scores, labels = (np.concatenate([o[key].numpy().ravel() for o in seen]) for key in ("pred", "label"))
    assert len(seen) == 2 and all(output["label"].shape == (1, 40, 48, 3) for output in seen)
    assert written["auprc"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    assert {"auprc_per_patient", "dice", "precision", "recall", "intervals"} <= set(written)
    assert contents(finished_run) == before
    # The threshold is the run's, so that recall is that of a model as it would be used.
    threshold = metrics(finished_run)["threshold"]
    hit = scores[labels > 0] >= threshold
    assert written["recall"] == pytest.approx(hit.mean())

    before = contents(tmp_path / "out")
    again = evaluation(finished_run, held_out, tmp_path / "out")
    again.initialize()
    error = refusal(again.run)
    assert isinstance(error, ConfigError) and str(tmp_path / "out") in str(error)
    assert contents(tmp_path / "out") == before


def test_the_network_is_the_best_one_converted(tiny: Dataset, held_out: Dataset, tmp_path: Path) -> None:
    run = train(tiny, tmp_path / "run", "unet_500k_full", epochs=1)
    taken = trained(run, held_out, tmp_path / "out")
    assert any(isinstance(module, tuple(LAYER_TYPES.values())) for module in taken.network.modules())
    assert not taken.network.training
    weights = torch.load(run / "model.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in taken.network.state_dict().items())
    assert taken.threshold == metrics(run)["threshold"] and taken.image_size == (32, 32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("split", "expected"), [("auto", ["test"]), ("test", ["test"]), ("val", ["val"]), ("all", None), ("alll", None)]
)
def test_who_is_evaluated(tmp_path: Path, split: str, expected: list[str] | None, tiny: Dataset) -> None:
    folder = tmp_path / "mixed"
    mixed = lgg_dataset(folder)
    document = json.loads(mixed.manifest.read_text())
    document["patients"][0] |= {"split": "test", "fold": None}
    mixed.manifest.write_text(json.dumps(document))
    run = train(mixed, tmp_path / "run", epochs=1)
    patients = json.loads((run / "patients.json").read_text())
    if expected is None:
        error = refusal(lambda: trained(run, mixed, tmp_path / "out", split=split))
        assert ("trained on" in str(error)) if split == "all" else ("'all'" in str(error))
    else:
        taken = trained(run, mixed, tmp_path / "out", split=split)
        assert [record["patient"] for record in taken.datalist] == patients[expected[0]]
        assert not set(patients["train"]) & {record["patient"] for record in taken.datalist}


def test_a_run_that_ended_in_bf16_is_evaluated_in_bf16(tiny: Dataset, tmp_path: Path) -> None:
    recipe = {"base": "full", "bf16_last_share": 0.5}
    run = train(tiny, tmp_path / "run", "unet_500k_full", recipe=recipe)
    written = metrics(run)
    assert [entry["fp4"] for entry in written["history"]] == [True, False]
    for best in (True, False):
        (run / "metrics.json").write_text(json.dumps(written | {"fp4": best}))
        network = trained(run, tiny, tmp_path / "out", split="val").network
        layers = [module for module in network.modules() if isinstance(module, tuple(LAYER_TYPES.values()))]
        assert layers and {layer.active for layer in layers} == {best}


def test_nobody_left_to_evaluate(finished_run: Path, tiny: Dataset, tmp_path: Path) -> None:
    for split in ("auto", "test"):
        with pytest.raises(DataError, match="split=val"):
            trained(finished_run, tiny, tmp_path / "out", split=split)


def test_patients_that_were_trained_on_are_refused(finished_run: Path, tmp_path: Path) -> None:
    everybody = lgg_dataset(tmp_path / "everybody", split="test")
    with pytest.raises(DataError, match="4 of 6 were"):
        trained(finished_run, everybody, tmp_path / "out")


def test_what_is_no_run_is_refused(finished_run: Path, tiny: Dataset, held_out: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json must exist"):
        trained(tmp_path / "nowhere", held_out, tmp_path / "out")
    with pytest.raises(ConfigError, match="another folder than run_dir"):
        trained(finished_run, held_out, finished_run / "overlays" / "..")
    run = copy(finished_run, tmp_path)
    (run / "model.pt").unlink()
    with pytest.raises(ConfigError, match=r"model\.pt must exist"):
        trained(run, held_out, tmp_path / "out")
    (run / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match="'threshold'"):
        trained(run, held_out, tmp_path / "out")


@pytest.mark.parametrize("damage", ["exchanged", "cut", "gone"])
def test_a_finished_run_without_its_own_weights_is_named(
    finished_run: Path, tiny: Dataset, held_out: Dataset, tmp_path: Path, damage: str
) -> None:
    run = copy(finished_run, tmp_path)
    path = run / "model.pt"
    if damage == "exchanged":
        weights = torch.load(path, weights_only=True)
        torch.save({name: value + 1 if value.is_floating_point() else value for name, value in weights.items()}, path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.unlink()
    again = refusal(lambda: train(tiny, run))  # and not: it is finished
    assert f"{path} must hold the weights of this run" in str(again)
    with pytest.raises(ConfigError, match=r"model\.pt"):
        trained(run, held_out, tmp_path / "out")
    assert "model.pt" in str(refusal(lambda: train(tiny, tmp_path / "next", init_from=str(run))))
    assert not (tmp_path / "next" / "metrics.json").exists()


@pytest.mark.parametrize("change", [{"arch": "vit"}, {"scale": "4m"}])
def test_weights_of_another_network_are_refused(
    finished_run: Path, held_out: Dataset, tmp_path: Path, change: dict[str, str]
) -> None:
    run = copy(finished_run, tmp_path)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError, match="another network"):
        trained(run, held_out, tmp_path / "out")


def test_scans_with_other_channels_are_refused(finished_run: Path, volumes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"channels pre-contrast, FLAIR, post-contrast that .* has flair; .*--channels"):
        trained(finished_run, volumes, tmp_path / "out")


def renamed(source: Dataset, folder: Path, names: dict[str, str]) -> Dataset:
    """The patients of a data set under other names."""
    for before, after in names.items():
        shutil.copytree(source.dataset_dir / before, folder / "scans" / after)
        for path in (folder / "scans" / after).iterdir():
            path.rename(path.with_name(path.name.replace(before, after)))
    manifest = build_manifest(folder / "scans", format="lgg", split="test")
    return Dataset(folder / "scans", save_manifest(manifest, folder / "m.json"))


def test_renamed_copies_of_trained_patients_are_known_again(finished_run: Path, tiny: Dataset, tmp_path: Path) -> None:
    patients = json.loads((finished_run / "patients.json").read_text())
    copies = renamed(tiny, tmp_path, {name: f"TCGA_ZZ_{n:04d}_20000101" for n, name in enumerate(patients["train"])})
    with pytest.raises(DataError, match=rf"{len(patients['train'])} of {len(patients['train'])} were, TCGA_ZZ_0000"):
        trained(finished_run, copies, tmp_path / "out")


def test_another_patient_of_the_same_name_is_another(
    finished_run: Path, held_out: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = json.loads((finished_run / "patients.json").read_text())["train"]
    strangers = [path.name for path in sorted(held_out.dataset_dir.iterdir())]
    data = renamed(held_out, tmp_path, dict(zip(strangers, known, strict=False)))
    taken = trained(finished_run, data, tmp_path / "out")
    assert {record["patient"] for record in taken.datalist} <= set(known) and len(taken.datalist) == len(strangers)
    assert f"{len(strangers)} patients are called like some of 'train' but have other images" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_knows_its_patients_by_name(
    finished_run: Path, tiny: Dataset, tmp_path: Path
) -> None:
    run = copy(finished_run, tmp_path)
    patients = json.loads((run / "patients.json").read_text())
    (run / "patients.json").write_text(json.dumps({part: patients[part] for part in ("train", "val", "test")}))
    assert [record["patient"] for record in trained(run, tiny, tmp_path / "out", split="val").datalist] == patients[
        "val"
    ]
    with pytest.raises(DataError, match="were"):
        trained(run, tiny, tmp_path / "out", split="all")


def test_channels_are_taken_by_name(tmp_path: Path) -> None:
    """The same channels under names that sort the other way round: the network sees them as it was trained."""
    datasets = []
    for number, names in enumerate((("flair", "t1"), ("flair", "t1"), ("zz", "a1"))):
        folder = tmp_path / str(number)
        scan_cases._channels(folder / "scans", [f"{number}{n}" for n in range(4)], names, 10 * number)
        manifest = build_manifest(folder / "scans", folds=2, split="train" if number == 0 else "test")
        if number == 2:
            assert manifest.channels == ("a1", "zz")
            manifest = build_manifest(folder / "scans", split="test", channels=("t1", "flair"))
        datasets.append(Dataset(folder / "scans", save_manifest(manifest, folder / "m.json")))
    run = train(datasets[0], tmp_path / "run", epochs=1)
    for dataset in datasets[1:]:
        record = trained(run, dataset, tmp_path / "out").datalist[0]
        flair = nibabel.load(next((dataset.dataset_dir / record["patient"]).glob("[fz]*.nii.gz"))).get_fdata()
        assert np.isclose(read_patient(record).image[0].sum(), flair.sum())
    root, _ = scan_cases.write("chan_b", tmp_path)
    other = Dataset(root, save_manifest(build_manifest(root, split="test"), tmp_path / "b.json"))
    with pytest.raises(
        DataError, match=r"channels flair, t1 that .* was trained on, but has t1, t2; give the files of"
    ):
        trained(run, other, tmp_path / "out")


def test_scans_that_were_saved_again_are_not_evaluated_as_new(tmp_path: Path) -> None:
    """A training patient in another file, with another channel beside, is known by its voxels; a new one is new."""
    channels = ("flair", "t1")
    scan_cases._channels(tmp_path / "a", ["a0", "a1", "a2", "a3"], channels, 0)
    data = Dataset(tmp_path / "a", save_manifest(build_manifest(tmp_path / "a", folds=2), tmp_path / "a.json"))
    run = train(data, tmp_path / "run", epochs=1)
    validated = {record["patient"] for record in trained(run, data, tmp_path / "val", split="val").datalist}
    again = min({"a0", "a1", "a2", "a3"} - validated)
    scan_cases._channels(tmp_path / "b", ["new"], channels, 50)
    (tmp_path / "b" / "renamed").mkdir()
    for path in (tmp_path / "a" / again).iterdir():
        image = nibabel.load(path)
        image.set_data_dtype(np.float64)
        nibabel.save(image, tmp_path / "b" / "renamed" / path.name.replace(".gz", ""))
    for patient in ("new", "renamed"):
        third = nibabel.Nifti1Image(np.random.default_rng(len(patient)).random((40, 36, 6)), scan_cases.RAS)
        nibabel.save(third, tmp_path / "b" / patient / "t2.nii.gz")
    manifest = build_manifest(tmp_path / "b", split="test")
    other = Dataset(tmp_path / "b", save_manifest(manifest, tmp_path / "b.json"))
    with pytest.raises(DataError, match=r"1 of 2 were, renamed the first"):
        trained(run, other, tmp_path / "out", split="all")


def test_masks_that_were_corrected_make_another_run(tmp_path: Path) -> None:
    root, _ = scan_cases.write("stale_before", tmp_path)
    data = Dataset(root, save_manifest(build_manifest(root, folds=2), tmp_path / "m.json"))
    run = train(data, tmp_path / "run", epochs=1)
    moved = Dataset(root, Path(shutil.copy(data.manifest, tmp_path / "elsewhere.json")))
    with pytest.raises(SystemExit):  # finished, whatever the manifest's file is called
        train(moved, run, epochs=1)
    after, _ = scan_cases.write("stale_after", tmp_path)
    for path in after.glob("*/mask.nii.gz"):
        shutil.copy(path, root / path.parent.name)
    save_manifest(build_manifest(root, folds=2), data.manifest, force=True)
    before = contents(run)
    error = refusal(lambda: train(data, run, epochs=1))
    assert "files, masks or folds of the manifest changed since" in str(error)
    assert contents(run) == before


def test_the_folder_of_a_run_is_not_written_into(finished_run: Path, held_out: Dataset, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(finished_run / "config.json", other)
    with pytest.raises(ConfigError, match="output_dir"):
        trained(finished_run, held_out, other)


def replace_network(run: Path, network: Any, **further: Any) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"network_def": network} | further))


CODE = "__import__('pathlib').Path('PWNED').touch()"
PLAIN = {"_target_": "monai_fp4.engines.build_and_seed", "arch": "@arch", "scale": "@scale", "seed": "@seed",
         "in_channels": "$@session.in_channels", "out_channels": 1, "image_size": "@image_size"}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "further"),
    [
        (f"${CODE}", {}),
        ("@hostile", {"hostile": f"${CODE}"}),
        ("%hostile", {"hostile": {"_target_": "os.system", "command": "touch PWNED"}}),
        ({"_target_": "os.system", "command": "touch PWNED"}, {}),
        ({"_target_": f"${CODE}"}, {}),
        ({"_target_": "@hostile"}, {"hostile": "os.system"}),
        ([PLAIN], {}),
        (None, {}),
        (7, {}),
        (PLAIN | {"arch": f"${CODE}"}, {}),
        (PLAIN | {"arch": "@hostile"}, {"hostile": f"${CODE}"}),
        (PLAIN | {"out_channels": {"_target_": "os.system", "command": "touch PWNED"}}, {}),
        (PLAIN | {"out_channels": 10**9}, {}),
        (PLAIN | {"out_channels": "1"}, {}),
        (PLAIN | {"in_channels": f"${CODE}"}, {}),
        (PLAIN | {"image_size": f"$[{CODE}, 32]"}, {}),
        (PLAIN | {"image_size": [10**9, 10**9]}, {}),
        (PLAIN | {"arch": ["unet"]}, {}),
        ({"_target_": PLAIN["_target_"]}, {}),
    ],
)
def test_a_run_folder_runs_no_code(
    finished_run: Path, held_out: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, further: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    run = copy(finished_run, tmp_path)
    replace_network(run, change, **further)
    with pytest.raises(ConfigError):
        trained(run, held_out, tmp_path / "out")
    assert not (tmp_path / "PWNED").exists()


def test_what_else_a_run_folder_says_is_not_run(
    finished_run: Path, held_out: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = copy(finished_run, tmp_path)
    extra = {"_target_": "build", "seed": f"${CODE}", "_requires_": [f"${CODE}"], "_desc_": f"${CODE}"}
    replace_network(run, extra | PLAIN, hostile=f"${CODE}", imported="$import antigravity", _meta_=f"${CODE}")
    assert trained(run, held_out, tmp_path / "out").image_size == (32, 32)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("found", [f"${CODE}", {"_target_": "os.system", "command": "touch PWNED"}, {"raw": True}])
def test_a_normalization_of_a_run_folder_is_a_name_and_runs_no_code(
    finished_run: Path, held_out: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    run = copy(finished_run, tmp_path)
    config = json.loads((run / "config.json").read_text())
    assert trained(run, held_out, tmp_path / "out").normalization is None
    config["validate"]["dataset"]["normalization"] = {"_target_": "monai_fp4.data.PaperNormalization"}
    (run / "config.json").write_text(json.dumps(config))
    assert type(trained(run, held_out, tmp_path / "out").normalization) is PaperNormalization
    config["validate"]["dataset"]["normalization"] = found
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="normalization must be the package's own"):
        _ = trained(run, held_out, tmp_path / "out").normalization
    assert not (tmp_path / "PWNED").exists()


def test_a_network_of_the_users_own_takes_trust(finished_run: Path, held_out: Dataset, tmp_path: Path) -> None:
    run = copy(finished_run, tmp_path)
    replace_network(run, PLAIN | {"_target_": "monai_fp4.engines.network.build_and_seed"})
    with pytest.raises(ConfigError, match="--trust_run_dir True"):
        trained(run, held_out, tmp_path / "out")
    assert trained(run, held_out, tmp_path / "out", trust_run_dir=True).threshold
    with pytest.raises(ConfigError, match="trust_run_dir must be true or false"):
        trained(run, held_out, tmp_path / "out", trust_run_dir="perhaps")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"a": ' * 700 + "1" + "}" * 700),
        ("config.json", "[]"),
        ("config.json", '{"network_def": 1}'),
        ("metrics.json", '{"threshold": NaN}'),
        ("metrics.json", '{"threshold": true}'),
        ("metrics.json", "[" * 100_000),
        ("patients.json", '{"train": 5}'),
        ("patients.json", '{"channels": [1]}'),
        ("patients.json", '{"images": {"a": 7}}'),
        ("patients.json", '{"images": "a"}'),
        ("model.pt", "PK"),
    ],
)
def test_damaged_files_of_a_run_are_one_sentence(
    finished_run: Path, held_out: Dataset, tmp_path: Path, name: str, text: str
) -> None:
    run = copy(finished_run, tmp_path)
    (run / name).write_text(text)
    with pytest.raises(ConfigError):
        trained(run, held_out, tmp_path / "out")
