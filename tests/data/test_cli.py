"""``monai-fp4 manifest``: options, exit codes, and that nothing is written over."""

from __future__ import annotations

import pytest
from small_data import lgg_ids, run_manifest, write_lgg

from monai_fp4.data import load_manifest
from monai_fp4.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return write_lgg(tmp_path / "data", dict.fromkeys(lgg_ids(6), 2))


def test_build_then_check(folder, tmp_path, capsys):
    output = tmp_path / "m.json"
    options = ["--format", "lgg", "--dataset_dir", folder, "--folds", 3, "--seed", 1, "--output", output]
    assert run_manifest("build", *options) == 0
    manifest = load_manifest(output)
    assert (manifest.folds, manifest.seed, len(manifest.patients)) == (3, 1, 6)
    assert "fold 2" in capsys.readouterr().out
    assert run_manifest("check", output, "--dataset_dir", folder.parent) == 0
    assert "12 images of 6 patients agree" in capsys.readouterr().out


def test_build_a_test_split(folder, tmp_path, capsys):
    assert run_manifest("build", "--dataset_dir", folder, "--split", "test", "--output", tmp_path / "m.json") == 0
    assert {each.split.value for each in load_manifest(tmp_path / "m.json").patients} == {"test"}
    assert "fold" not in capsys.readouterr().out


def test_groups_from_a_table(folder, tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text(
        "patient,group\n" + "".join(f"{patient},X{number % 2}\n" for number, patient in enumerate(lgg_ids(6)))
    )
    run_manifest("build", "--dataset_dir", folder, "--folds", 2, "--groups", table, "--output", tmp_path / "m.json")
    assert [each.group for each in load_manifest(tmp_path / "m.json").patients] == ["X0", "X1"] * 3
    table.write_text("id;site\nx;y\n")
    with pytest.raises(DataError, match="columns patient and group"):
        run_manifest("build", "--dataset_dir", folder, "--groups", table, "--output", tmp_path / "n.json")
    assert not (tmp_path / "n.json").exists()


def test_an_existing_manifest_is_kept_unless_forced(folder, tmp_path):
    output = tmp_path / "m.json"
    output.write_text("mine")
    with pytest.raises(DataError, match="exists; choose another or add --force"):
        run_manifest("build", "--dataset_dir", folder, "--folds", 2, "--output", output)
    assert output.read_text() == "mine"
    assert run_manifest("build", "--dataset_dir", folder, "--folds", 2, "--output", output, "--force") == 0
    assert load_manifest(output).folds == 2


def test_a_failed_build_writes_nothing(folder, tmp_path):
    next(folder.glob("*/*_mask.tif")).unlink()
    with pytest.raises(DataError, match="expected a mask"):
        run_manifest("build", "--dataset_dir", folder, "--output", tmp_path / "m.json")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_check_finds_another_volume(folder, tmp_path):
    output = tmp_path / "m.json"
    run_manifest("build", "--dataset_dir", folder, "--folds", 2, "--output", output)
    output.write_text(output.read_text().replace('"tumour_voxels": 4', '"tumour_voxels": 5', 1))
    with pytest.raises(DataError, match=r"expected 5 lesion voxels .* found 4"):
        run_manifest("check", output, "--dataset_dir", folder)


def test_an_existing_manifest_is_found_before_the_data_are_read(tmp_path):
    (tmp_path / "m.json").write_text("mine")
    with pytest.raises(DataError, match="add --force"):
        run_manifest("build", "--dataset_dir", tmp_path / "no data", "--output", tmp_path / "m.json")


@pytest.mark.parametrize("name", ["phantom", "nodules"])
def test_a_check_writes_no_data(name, tmp_path):
    with pytest.raises(DataError, match="found none; the first run of a bundle"):
        run_manifest("check", name, "--dataset_dir", tmp_path / "misspelt")
    assert not (tmp_path / "misspelt").exists()
