from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_cells import definition, finish, study

from monai_fp4.errors import ConfigError
from monai_fp4.study.layout import Cell, CellRecord, CellStatus, StudyDefinition, StudyFolder


def test_every_cell_has_a_folder_of_its_own() -> None:
    defined = definition(
        archs=("unet", "swinunetr"),
        scales=("500k", "15m"),
        recipes={"bf16": "bf16", "sr+attention": {"base": "sr", "attention": "fp4"}},
        folds=(0, 3),
        further={"image_size": ((32, 32), (64, 64)), "learning_rate": (0.001, 1e-05)},
    )
    cells = defined.cells()
    ids = [cell.id for cell in cells]
    # swinunetr exists at 15m only
    assert len(ids) == len(set(ids)) == 3 * 2 * 2 * 2 * 4
    assert "swinunetr_15m/sr+attention/image_size-32x32_learning_rate-1e_05/fold3_seed1" in ids
    assert not any(cell.arch == "swinunetr" and cell.scale == "500k" for cell in cells)
    assert all(part not in (".", "..") and "=" not in part for id in ids for part in id.split("/"))


def test_the_first_seed_comes_first() -> None:
    cells = definition(folds=(0, 1), seeds=(5, 2)).cells()
    assert [cell.seed for cell in cells] == [5] * 4 + [2] * 4
    assert [cell.fold for cell in cells[:4]] == [0, 0, 1, 1]


def test_a_recipe_of_all_networks_comes_before_the_next_recipe() -> None:
    cells = definition(archs=("unet", "vit"), recipes={"bf16": "bf16", "sr": "sr"}, seeds=(0, 1)).cells()
    order = [f"{cell.arch} {cell.recipe} {cell.seed}" for cell in cells]
    first = ["unet bf16 0", "vit bf16 0", "unet sr 0", "vit sr 0"]
    assert order == first + [name.replace(" 0", " 1") for name in first]


def test_a_group_is_a_cell_without_fold_and_seed() -> None:
    cell = Cell("vit", "4m", "2d", "all", 7, (("optimizer", "muon"),))
    assert cell.group == "vit_4m/2d/optimizer-muon" and cell.id == f"{cell.group}/foldall_seed7"


def test_a_bundle_is_the_recipe_s_or_its_base_s() -> None:
    defined = definition(recipes={"2d": "2d", "mine": {"base": "rht", "attention": "fp4"}, "bare": {"hadamard": True}})
    names = {cell.recipe: defined.bundle(cell) for cell in defined.cells()}
    assert names == {"2d": "unet_500k_2d", "mine": "unet_500k_rht", "bare": "unet_500k_full"}


def test_a_definition_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder, defined = study(
        tmp_path, further={"image_size": ((32, 32), (64, 64))}, folds=("holdout", 0), protocol="paper"
    )
    assert folder.read_definition() == defined
    assert folder.read_definition().cells() == defined.cells()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"seeds": []}, "'seeds'"),
        ({"archs": "unet"}, "'archs'"),
        ({"recipes": ["sr"]}, "'recipes'"),
        ({"dataset_dir": None}, "'dataset_dir'"),
        ({"colour": "red"}, "'colour'"),
        ({"folds": ["other"]}, "'folds'"),
        ({"protocol": "../other"}, "'protocol'"),
        ({"protocol": None}, "'protocol'"),
    ],
)
def test_what_is_no_definition_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder, defined = study(tmp_path)
    folder.definition_path.write_text(json.dumps(defined.to_json() | change))
    with pytest.raises(ConfigError, match=said) as error:
        folder.read_definition()
    assert "study.json" in str(error.value)


def test_a_folder_without_a_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no study\.json"):
        StudyFolder(tmp_path).read_definition()
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ConfigError, match="must hold JSON"):
        StudyFolder(tmp_path).read_definition()


@pytest.mark.parametrize("damage", [{"seconds": "x"}, {"seconds": None}, {"attempts": [1]}, {"status": 3}])
def test_a_record_with_a_value_of_another_type_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    folder, cell = StudyFolder(tmp_path), Cell("unet", "500k", "sr")
    folder.write_record(cell, CellRecord(status=CellStatus.DONE, seconds=1.5))
    path = folder.run_dir(cell) / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ConfigError, match=r"cell\.json must hold a cell's 'status', 'seconds' and .* sweep again"):
        folder.record(cell)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    cell = defined.cells()[0]
    assert folder.record(cell) == CellRecord() and not folder.finished(cell) and folder.metrics(cell) is None
    record = CellRecord(status=CellStatus.FAILED, attempts=3, error="no", seconds=1.5, host="a", device="cpu", pid=4)
    folder.write_record(cell, record)
    assert folder.record(cell) == record
    # A later version may know more of a cell; this one reads what it knows.
    path = folder.run_dir(cell) / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weather": "fine"}))
    assert folder.record(cell) == record
    path.write_text(json.dumps({"status": "asleep"}))
    with pytest.raises(ConfigError, match=r"cell\.json"):
        folder.record(cell)


def test_a_run_says_itself_whether_it_is_finished(tmp_path: Path) -> None:
    folder, defined = study(tmp_path)
    first, second = defined.cells()[:2]
    finish(folder, first)
    folder.write_record(second, replace(folder.record(first)))
    assert folder.finished(first) and not folder.finished(second)


def test_equal_definitions_are_equal_after_json() -> None:
    defined = definition(options={"image_size": [32, 32], "amp": False})
    assert StudyDefinition.from_json(json.loads(json.dumps(defined.to_json()))) == defined
