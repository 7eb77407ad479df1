"""Study folders as tables: nothing is dropped, and damage costs as little as it can."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from synthetic_study import EPOCHS, LAYERS, cell_auprc, definition, write_study
from tiny_runs import Dataset, evaluation

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import RECIPES
from monai_fp4.report.tables import KEYS, METRICS, collect
from monai_fp4.study.layout import Cell, CellRecord, CellStatus, StudyFolder


def row(cells: pd.DataFrame, cell_id: str) -> pd.Series:
    return cells.set_index("id").loc[cell_id]


def test_every_number_is_the_one_that_was_written(tmp_path: Path) -> None:
    folder = write_study(tmp_path, patients=4)
    tables = collect(tmp_path)
    cells = folder.read_definition().cells()
    assert list(tables.cells["id"]) == [cell.id for cell in cells]
    assert list(tables.cells["auprc"]) == [cell_auprc(cell) for cell in cells]
    assert (tables.cells["status"] == "done").all() and (tables.cells["problem"] == "").all()
    first = tables.cells.iloc[0]
    assert (first["epochs_done"], first["best_epoch"], first["train_seconds"]) == (EPOCHS, EPOCHS, 10.0 * EPOCHS)
    assert (first["image_size"], first["epochs"], first["val_patients"]) == ("64x64", EPOCHS, 2)
    assert not tables.cells.duplicated(KEYS).any() and set(METRICS) < set(tables.cells.columns)
    assert len(tables.epochs) == len(cells) * EPOCHS
    assert len(tables.scores) == len(cells) * 126
    assert tables.scores.groupby(KEYS)[["positives", "negatives"]].sum().sum(axis=1).eq(4000).all()
    quantized = [cell for cell in cells if cell.recipe != "bf16"]
    operands = {"full": 3, "sr": 3, "chain_rule": 2}
    assert len(tables.health) == sum(operands[cell.recipe] for cell in quantized) * EPOCHS * len(LAYERS)
    assert set(tables.health["epoch"]) == set(range(1, EPOCHS + 1))
    assert len(tables.patients) == 4 * len(cells) and tables.patients["auprc"].isna().sum() == len(cells)
    assert not tables.notes


def test_a_real_run_is_read_as_it_lies(finished_run: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.write_definition(definition(archs=("unet",), recipes={"bf16": "bf16"}, seeds=(0,)))
    cell = Cell("unet", "500k", "bf16")
    shutil.copytree(finished_run, folder.run_dir(cell))
    folder.write_record(cell, CellRecord(status=CellStatus.DONE))
    tables = collect(folder.path)
    written = json.loads((finished_run / "metrics.json").read_text())
    only = tables.cells.iloc[0]
    assert only["status"] == "done" and only["problem"] == ""
    assert only["auprc"] == written["auprc"] and only["image_size"] == "32x32"
    assert list(tables.epochs["train_loss"]) == [entry["train_loss"] for entry in written["history"]]
    assert 0 < only["mean_probability"] < 1
    voxels = tables.scores[["positives", "negatives"]].to_numpy().sum()
    assert voxels == 2 * 3 * 40 * 48, "two patients of three slices"
    assert list(tables.patients["patient"]) == [entry["patient"] for entry in written["per_patient"]]
    assert list(tables.patients["dice"]) == [entry["dice"] for entry in written["per_patient"]]
    assert only["peak_memory_bytes"] == written["peak_memory_bytes"]
    curve = json.loads((finished_run / "pr_curve.json").read_text())
    for column, name in (("threshold", "thresholds"), ("tp", "tp"), ("fp", "fp")):
        assert list(tables.curves[column]) == curve[name]
    recall = tables.scores.loc[tables.scores["bin"] >= only["threshold"], "positives"].sum()
    assert recall <= only["recall"] * tables.scores["positives"].sum() + 1e-9


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"epoch": 4}', '{"epoch": 3, "thresholds": [1], "tp": [1], "fp": [1]}']
)
def test_without_a_curve_of_the_best_epoch_there_is_none(tmp_path: Path, content: str) -> None:
    folder = write_study(tmp_path, definition(archs=("unet",), recipes={"bf16": "bf16"}, seeds=(0,)))
    (cell,) = folder.read_definition().cells()
    (folder.run_dir(cell) / "pr_curve.json").write_text(content)
    tables = collect(tmp_path)
    assert tables.curves.empty and len(tables.scores) == 126
    of_another_epoch = '"epoch": 3' in content  # as a run leaves it that was killed between two files: no problem
    assert ("pr_curve.json" in tables.cells["problem"].iloc[0]) == (not of_another_epoch)


def test_runs_of_earlier_versions_have_no_health_and_that_is_said_once(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    for cell in folder.read_definition().cells()[:5]:
        (folder.run_dir(cell) / "health.json").unlink()
    tables = collect(tmp_path)
    assert len(tables.done) == 24 and (tables.cells["problem"] == "").all()
    (said,) = tables.notes
    assert said.startswith("5 of 24 cells that have begun hold no health.json, which earlier versions did not write")


def test_an_evaluation_within_the_run_gives_results_by_patient(
    finished_run: Path, tiny: Dataset, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.write_definition(definition(archs=("unet",), recipes={"bf16": "bf16"}, seeds=(0,)))
    run = folder.run_dir(Cell("unet", "500k", "bf16"))
    shutil.copytree(finished_run, run)
    flow = evaluation(run, tiny, run / "evaluation", split="val")
    flow.initialize()
    flow.run()
    flow.finalize()
    tables = collect(folder.path)
    validated = json.loads((run / "patients.json").read_text())["val"]
    assert sorted(tables.patients["patient"]) == sorted(validated)
    assert tables.patients["auprc"].between(0, 1).all()
    assert tables.cells.iloc[0]["problem"] == ""


def test_unfinished_cells_keep_their_place_and_their_error(tmp_path: Path) -> None:
    states = {"bf16": CellStatus.DONE, "full": CellStatus.FAILED, "chain_rule": CellStatus.RUNNING}
    write_study(tmp_path, status=lambda cell: states.get(cell.recipe, CellStatus.WAITING))
    tables = collect(tmp_path)
    found = tables.cells.groupby("recipe")["status"].unique().map(list).to_dict()
    expected = {"bf16": ["done"], "full": ["failed"], "chain_rule": ["running"], "sr": ["waiting"]}
    assert found == expected
    assert set(tables.done["recipe"]) == {"bf16"}
    assert tables.cells.loc[tables.cells["status"] == "failed", "problem"].str.contains("loss is NaN").all()
    assert tables.cells.groupby("status")["epochs_done"].first().to_dict() == {
        "done": EPOCHS,
        "failed": 2,
        "running": 2,
        "waiting": 0,
    }
    assert set(tables.epochs["recipe"]) == {"bf16", "full", "chain_rule"}, "curves of unfinished cells are kept"


def test_a_run_that_finished_before_the_sweep_could_say_so_is_done(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    cell = folder.read_definition().cells()[0]
    folder.write_record(cell, CellRecord(status=CellStatus.RUNNING))
    assert row(collect(tmp_path).cells, cell.id)["status"] == "done"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.json", '{"finished": tr', "must hold JSON"),
        ("metrics.json", "[]", "JSON object"),
        ("metrics.json", '{"finished": true}', "history of epochs"),
        ("metrics.json", '{"finished": true, "history": [{"train_loss": 1}]}', "history of epochs"),
        ("metrics.json", '{"finished": false, "history": [{"epoch": 1}]}', "though the sweep does"),
        ("cell.json", "{", "must hold JSON"),
        ("cell.json", '{"status": "dancing"}', "status"),
    ],
)
def test_a_damaged_cell_is_named_and_the_others_go_on(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder = write_study(tmp_path, health=False)
    broken = folder.read_definition().cells()[1]
    (folder.run_dir(broken) / name).write_text(content)
    tables = collect(tmp_path)
    found = row(tables.cells, broken.id)
    assert found["status"] == "damaged" and said in found["problem"] and name in found["problem"]
    assert len(tables.done) == len(tables.cells) - 1


@pytest.mark.parametrize("name", ["config.json", "patients.json", "environment.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"train": 5, "backend": null, "image_size": 7}'])
def test_damage_beside_the_results_costs_a_note_at_most(tmp_path: Path, name: str, content: str) -> None:
    folder = write_study(tmp_path, health=False)
    cell = folder.read_definition().cells()[0]
    (folder.run_dir(cell) / name).write_text(content)
    found = row(collect(tmp_path).cells, cell.id)
    assert found["status"] == "done"
    assert (name in found["problem"]) == (content == "{")


def test_a_damaged_health_file_costs_a_note(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    cell = folder.read_definition().cells()[0]
    (folder.run_dir(cell) / "health.json").write_text('{"epochs": [{"epoch": 1}]}')
    tables = collect(tmp_path)
    found = row(tables.cells, cell.id)
    assert found["status"] == "done" and "health.json must hold" in found["problem"]
    assert len(tables.done) == len(tables.cells) and not tables.notes


def test_a_fold_without_tumour_is_said_to_have_no_auprc(tmp_path: Path) -> None:
    folder = write_study(tmp_path, health=False)
    cell = folder.read_definition().cells()[0]
    path = folder.run_dir(cell) / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auprc": None}))
    tables = collect(tmp_path)
    assert "no lesion" in row(tables.cells, cell.id)["problem"]
    assert cell.id not in set(tables.done["id"])


def test_recipes_stand_in_the_order_of_the_table_and_own_ones_after(tmp_path: Path) -> None:
    recipes = {"mine": {"base": "sr", "bf16_last_share": 0.1}, "sr": "sr", "bf16": "bf16"}
    write_study(tmp_path, definition(recipes=recipes), health=False)
    tables = collect(tmp_path)
    assert tables.recipes == ["bf16", "sr", "mine"]
    assert [r for r in RECIPES if r in tables.recipes] == tables.recipes[:2]


def test_further_axes_make_models_of_their_own(tmp_path: Path) -> None:
    study = definition(archs=("unet",), seeds=(0,), further={"image_size": ([64, 64], [96, 96])})
    write_study(tmp_path, study, health=False)
    tables = collect(tmp_path)
    assert tables.models == ["unet 500k (image_size=64x64)", "unet 500k (image_size=96x96)"]
    assert set(tables.cells["image_size"]) == {"64x64", "96x96"}


def test_the_main_fold_is_the_one_with_most_finished_cells(tmp_path: Path) -> None:
    def state(cell: Cell) -> CellStatus:
        return CellStatus.DONE if cell.fold == 1 or cell.seed == 0 else CellStatus.WAITING

    write_study(tmp_path, definition(folds=(0, 1)), status=state, health=False)
    tables = collect(tmp_path)
    assert tables.main_fold == 1
    assert set(tables.in_main_fold(tables.done)["fold"]) == {"1"}


def test_cells_of_another_grid_are_mentioned(tmp_path: Path) -> None:
    folder = write_study(tmp_path, health=False)
    folder.write_record(Cell("vit", "500k", "sr"), CellRecord())
    notes = collect(tmp_path).notes
    assert len(notes) == 2 and "vit_500k/sr/fold0_seed0" in notes[0] and "no health.json" in notes[1]


@pytest.mark.parametrize(
    ("content", "name"),
    [('{"name": "liver"}', "liver"), ("{", "manifest.json"), ("[]", "manifest.json"), (None, "phantom")],
)
def test_the_data_set_is_called_by_its_manifests_name(tmp_path: Path, content: str | None, name: str) -> None:
    manifest = "phantom" if content is None else "manifest.json"
    write_study(tmp_path, definition(archs=("unet",), seeds=(0,), manifest=manifest), health=False)
    if content is not None:
        (tmp_path / manifest).write_text(content)
    assert collect(tmp_path).data_set == name


def test_no_study_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no study\.json"):
        collect(tmp_path)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"study\.json must define a study"):
        collect(tmp_path)
    StudyFolder(tmp_path).write_definition(definition(archs=("swinunetr",)))
    with pytest.raises(ConfigError, match=r"must define cells"):
        collect(tmp_path)


def test_a_study_that_has_not_begun_has_only_waiting_cells(tmp_path: Path) -> None:
    write_study(tmp_path, status=lambda cell: CellStatus.WAITING)
    tables = collect(tmp_path)
    assert set(tables.cells["status"]) == {"waiting"} and tables.done.empty
    assert tables.epochs.empty and list(tables.epochs.columns[: len(KEYS)]) == KEYS


def test_results_of_test_patients_stand_beside_those_of_the_validation(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study", tested=True)
    first, second, *_ = study.read_definition().cells()
    (study.run_dir(second) / "test.json").write_text("[]")
    cells = collect(study.path).cells
    one, two = row(cells, first.id), row(cells, second.id)
    assert one["test_auprc"] == pytest.approx(one["auprc"] - 0.05) and one["test_dice"] == 0.7
    assert two["status"] == "done" and pd.isna(two["test_auprc"]) and "test.json" in two["problem"]
    assert collect(write_study(tmp_path / "other").path).cells["test_auprc"].isna().all()
