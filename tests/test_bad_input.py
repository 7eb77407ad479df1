"""Everything on the list of bad input ends in one clear sentence, and nothing is written over.

Each case here goes through the whole bundle, as a user would meet it; the modules' own tests have more of each kind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from tiny_runs import Dataset, command, contents, nifti_dataset, refusal, train

from monai_fp4.data import build_manifest, check_manifest, load_manifest, save_manifest
from monai_fp4.data.readers.files import sha256_of
from monai_fp4.errors import ConfigError, DataError


@pytest.fixture
def copied(tiny: Dataset, tmp_path: Path) -> Dataset:
    """The tiny data set, to be spoilt."""
    folder = tmp_path / "data"
    shutil.copytree(tiny.dataset_dir, folder / "scans")
    shutil.copy(tiny.manifest, folder / "manifest.json")
    return Dataset(folder / "scans", folder / "manifest.json")


def scan_of(dataset: Dataset, suffix: str = "", part: int = 0) -> Path:
    """The second slice of a patient."""
    folder = sorted(path for path in dataset.dataset_dir.iterdir() if path.is_dir())[part]
    return folder / f"{folder.name}_2{suffix}.tif"


def called(path: Path, kind: str = "image") -> str:
    """How an error of a run names that slice: by patient and number, not by path."""
    return f"{kind} 2 of patient {path.parent.name!r}"


def rehash(dataset: Dataset) -> None:
    """Make the manifest name the damaged files, so that it is not their hashes that are refused."""
    document = json.loads(dataset.manifest.read_text())
    for patient in document["patients"]:
        for image in patient["images"]:
            image["sha256"] = sha256_of(dataset.dataset_dir / image["image"])
            image["mask_sha256"] = sha256_of(dataset.dataset_dir / image["mask"])
    dataset.manifest.write_text(json.dumps(document))


def missing_folder(data: Dataset) -> str:
    shutil.rmtree(data.dataset_dir)
    return str(data.dataset_dir)


def missing_file(data: Dataset) -> str:
    scan_of(data).unlink()
    return f"files of patient {scan_of(data).parent.name!r}"


def truncated(data: Dataset) -> str:
    path = scan_of(data)
    path.write_bytes(path.read_bytes()[:2000])
    return f"{called(path)}, found that its SHA-256 differs"


def other_size(data: Dataset) -> str:
    path = scan_of(data, "_mask")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(path)
    return called(path, "mask")


def not_binary(data: Dataset) -> str:
    path = scan_of(data, "_mask")
    Image.fromarray(np.arange(40 * 48, dtype=np.uint32).reshape(40, 48).astype(np.uint8)).save(path)
    return called(path, "mask")


def other_hash(data: Dataset) -> str:
    path = scan_of(data)
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return f"{called(path)}, found that its SHA-256 differs"


def edit(data: Dataset, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(data.manifest.read_text())
    change(document)
    data.manifest.write_text(json.dumps(document))


def two_folds(data: Dataset) -> str:
    def change(document: dict[str, Any]) -> None:
        twice = dict(document["patients"][0])
        twice["fold"] = (twice["fold"] + 1) % 3
        document["patients"].append(twice)

    edit(data, change)
    return "2 times"


def no_tumour(data: Dataset) -> str:
    def change(document: dict[str, Any]) -> None:
        for patient in document["patients"]:
            if patient["fold"] == 1:
                patient["tumour_voxels"] = patient["tumour_slices"] = 0

    edit(data, change)
    return "fold 1"


def not_json(data: Dataset) -> str:
    data.manifest.write_text("{")
    return str(data.manifest)


@pytest.mark.parametrize(
    "damage",
    [missing_folder, missing_file, truncated, other_size, not_binary, other_hash, two_folds, no_tumour, not_json],
)
def test_bad_data(copied: Dataset, tmp_path: Path, damage: Callable[[Dataset], str]) -> None:
    named = damage(copied)
    if damage in (other_size, not_binary):
        rehash(copied)
    error = refusal(lambda: train(copied, tmp_path / "run"))
    assert isinstance(error, DataError) and named in str(error), error
    if damage in (missing_file, truncated, other_size, not_binary, other_hash):  # manifest check names the file
        assert scan_of(copied).name not in str(error)
        check = refusal(lambda: check_manifest(copied.manifest, copied.dataset_dir))
        assert scan_of(copied, "_mask" if damage in (other_size, not_binary) else "").name in str(check)
    left = set(contents(tmp_path / "run"))
    assert not {"model.pt", "checkpoint.pt", "metrics.json"} & left


def test_bad_data_does_not_touch_what_a_run_has(copied: Dataset, tmp_path: Path) -> None:
    train(copied, tmp_path / "run", epochs=1)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(written | {"finished": False}))
    before = contents(tmp_path / "run")
    truncated(copied)
    assert isinstance(refusal(lambda: train(copied, tmp_path / "run", epochs=1)), DataError)
    after = contents(tmp_path / "run")
    for name in ("config.json", "model.pt", "checkpoint.pt", "metrics.json"):
        assert after[name] == before[name]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_when_it_is_read(tmp_path: Path, value: float) -> None:
    data = nifti_dataset(tmp_path / "data", 4)
    path = data.dataset_dir / "patient_1" / "flair.nii.gz"
    image = nibabel.load(path)
    volume = image.get_fdata(dtype=np.float32).copy()
    volume[3, 4, 5] = value
    nibabel.save(nibabel.Nifti1Image(volume, image.affine), path)
    rehash(data)
    error = refusal(lambda: train(data, tmp_path / "run"))
    assert (
        isinstance(error, DataError)
        and "1 voxels of NaN, infinity or more" in str(error)
        and "image 1 of patient 'patient_1'" in str(error)
        and str(path) not in str(error)
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": "sr_rth"}, "'sr_rht'"),
        ({"arch": "unnet"}, "'unet'"),
        ({"scale": "4mm"}, "'4m'"),
        ({"image_size": [40, 48]}, "the nearest size that it can take is [48, 48]"),
        ({"fold": 7}, "0, 1, 2, all"),
    ],
)
def test_bad_options(tiny: Dataset, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    error = refusal(lambda: train(tiny, tmp_path / "run", **change))
    assert isinstance(error, ConfigError) and named in str(error)
    assert not (tmp_path / "run").exists()


def test_the_folder_of_another_config(tiny: Dataset, finished_run: Path) -> None:
    before = contents(finished_run)
    error = refusal(lambda: train(tiny, finished_run, seed=5, learning_rate=0.5))
    assert isinstance(error, ConfigError)
    assert "seed is 0 there and 5 here" in str(error) and "learning_rate" in str(error)
    assert contents(finished_run) == before


def test_the_checkpoint_of_another_network(tiny: Dataset, finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"scale": "4m"}))
    written = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(written | {"finished": False}))
    before = contents(run)
    error = refusal(lambda: train(tiny, run, scale="4m"))
    assert isinstance(error, ConfigError) and "is that of a run with other 'scale'" in str(error)
    after = contents(run)
    assert all(after[name] == before[name] for name in ("model.pt", "checkpoint.pt", "metrics.json", "config.json"))


def test_a_patient_without_a_mask_or_a_fold_without_tumour_is_named_when_a_manifest_is_built(copied: Dataset) -> None:
    for path in copied.dataset_dir.rglob("*_mask.tif"):
        Image.fromarray(np.zeros((40, 48), np.uint8)).save(path)
    with pytest.raises(DataError, match="expected a lesion in every fold"):
        build_manifest(copied.dataset_dir, folds=3)
    scan_of(copied, "_mask").unlink()
    with pytest.raises(DataError, match="expected a mask for"):
        build_manifest(copied.dataset_dir, folds=3)
    with pytest.raises(DataError, match="exists"):
        save_manifest(load_manifest(copied.manifest), copied.manifest)


@pytest.mark.parametrize("case", ["option", "data"])
def test_the_terminal_shows_one_sentence(copied: Dataset, tmp_path: Path, case: str) -> None:
    bundle = Path(__file__).parents[1] / "bundles" / "unet_500k_bf16.json"
    words = ["--epoch", "3"] if case == "option" else ["--epochs", "3"]
    named = "option '--epoch' is not known; the nearest names are '--epochs'" if case == "option" else truncated(copied)
    data = ["--dataset_dir", str(copied.dataset_dir), "--manifest", str(copied.manifest), "--image_size", "[32,32]"]
    ended = command("run", "--config_file", str(bundle), *data, *words, cwd=tmp_path)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and named in last
    assert "Traceback" not in ended.stderr and ended.stderr.count("error:") == 1
    assert "terminating" not in ended.stdout + ended.stderr
    if case == "option":
        assert not (tmp_path / "runs").exists()
