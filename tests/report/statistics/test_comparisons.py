"""The statistics of a study with effects that were put in."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_study import NOISE, cell_auprc, definition, tables_of, true_effect, write_study

from monai_fp4.report.statistics import (
    against_baseline,
    between_recipes,
    between_variants,
    by_patient,
    calibration,
    cost,
    paired,
    paired_test,
)
from monai_fp4.report.tables import StudyTables, collect
from monai_fp4.study.layout import Cell, CellStatus

stats = pytest.importorskip("scipy.stats")
SEEDS = tuple(range(8))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> StudyTables:
    folder = write_study(tmp_path_factory.mktemp("study"), definition(seeds=SEEDS), patients=12)
    return collect(folder.path)


def test_effects_are_found_with_their_size(tables: StudyTables) -> None:
    rows = against_baseline(tables, paired(tables)).query("metric == 'auprc'")
    assert len(rows) == 2 * 3
    for _, row in rows.iterrows():
        truth = true_effect(row["arch"], row["scale"], row["recipe"])
        assert row["mean"] == pytest.approx(truth, abs=4 * NOISE * math.sqrt(2 / len(SEEDS)))
        assert (row["p_holm"] < 0.05) == (truth != 0)
        assert (row["p_margin_holm"] < 0.05) == (truth > -0.01)
        assert row["unit"] == "seeds of fold 0" and row["n"] == len(SEEDS)


def test_they_are_scipys_paired_tests_on_the_written_numbers(tables: StudyTables) -> None:
    rows = against_baseline(tables, paired(tables)).set_index(["metric", "model", "recipe"])
    first = [cell_auprc(Cell("unet", "500k", "sr", 0, seed)) for seed in SEEDS]
    second = [cell_auprc(Cell("unet", "500k", "bf16", 0, seed)) for seed in SEEDS]
    found = rows.loc[("auprc", "unet 500k", "sr")]
    assert found["p"] == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert found["percent"] == pytest.approx(np.mean(100 * np.divide(first, second)))


def test_pairs_take_the_seed_out(tables: StudyTables) -> None:
    """Seeds differ five times as much as the noise; unpaired, the small interval could not come about."""
    row = (
        against_baseline(tables, paired(tables))
        .set_index(["metric", "model", "recipe"])
        .loc[("auprc", "swin 500k", "sr")]
    )
    values = paired(tables, ["auprc"]).query("model == 'swin 500k' and recipe == 'sr'")["value"]
    assert row["high"] - row["low"] < 0.4 * 4.7 * values.std() / math.sqrt(len(SEEDS))


def test_holm_is_over_all_models_and_recipes_of_a_metric(tables: StudyTables) -> None:
    rows = against_baseline(tables, paired(tables))
    for _, family in rows.groupby("metric"):
        smallest = family.loc[family["p"].idxmin()]
        assert smallest["p_holm"] == pytest.approx(min(1, len(family) * smallest["p"]))
    assert list(dict.fromkeys(rows["metric"])) == ["recall", "auprc", "dice"]


def test_recipes_are_compared_among_each_other(tables: StudyTables) -> None:
    pairs = between_recipes(tables)
    assert len(pairs) == 2 * 3 and not pairs[["recipe", "other"]].isin(["bf16"]).any().any()
    unet = pairs[pairs["arch"] == "unet"].set_index(["recipe", "other"])
    assert unet.loc[("full", "chain_rule"), "mean"] == pytest.approx(0.02, abs=0.004)
    assert unet.loc[("full", "chain_rule"), "p_holm"] < 0.05 < unet.loc[("full", "sr"), "p_holm"]


def test_further_axes_are_compared_with_their_first_value(tmp_path: Path) -> None:
    study = definition(archs=("unet",), seeds=SEEDS, further={"optimizer": ("adamw", "muon", "sgd")})
    write_study(tmp_path, study, health=False)
    rows = between_variants(collect(tmp_path)).set_index(["recipe", "other"])
    assert len(rows) == 4 * 2 and set(rows["variant"]) == {"optimizer=adamw"}

    def values(optimizer: str) -> list[float]:
        return [cell_auprc(Cell("unet", "500k", "sr", 0, seed, (("optimizer", optimizer),))) for seed in SEEDS]

    expected = stats.ttest_rel(values("muon"), values("adamw"))
    assert rows.loc[("sr", "optimizer=muon"), "p"] == pytest.approx(expected.pvalue)
    assert rows.loc[("sr", "optimizer=muon"), "mean"] == pytest.approx(
        np.mean(values("muon")) - np.mean(values("adamw"))
    )
    ratio = np.mean(np.array(values("muon")) / np.array(values("adamw")))
    assert rows.loc[("sr", "optimizer=muon"), "percent"] == pytest.approx(100 * ratio)


def test_a_recipe_without_one_of_the_values_is_left_out() -> None:
    study = definition(archs=("unet",), further={"optimizer": ("adamw", "muon")})
    first, second = ("sr", "muon"), ("full", "adamw")  # which these recipes do not have
    tables = tables_of(
        study, lambda cell: 0.0, done=lambda c: (c.recipe, dict(c.further)["optimizer"]) not in (first, second)
    )
    assert set(between_variants(tables)["recipe"]) == {"bf16", "chain_rule"}


def test_folds_share_as_many_patients_as_the_runs_say_or_as_equal_folds_would() -> None:
    tables = tables_of(definition(archs=("unet",), folds=(0, 1, 2, 3, 4), seeds=(0,)), lambda cell: 0.0)
    pairs = paired(tables)
    differences = pairs.query("metric == 'auprc' and recipe == 'sr'")["difference"]
    unknown = replace(tables, cells=tables.cells.assign(train_patients=math.nan))
    for study, overlap in ((tables, 18 / 70), (unknown, 1 / 4)):
        row = against_baseline(study, pairs).set_index(["metric", "recipe"]).loc[("auprc", "sr")]
        assert row["unit"] == "folds" and row["p"] == pytest.approx(paired_test(differences, 0.01, overlap=overlap).p)


def test_without_further_axes_there_is_nothing_to_compare(tables: StudyTables) -> None:
    assert between_variants(tables).empty


def test_a_cell_without_its_partner_is_in_no_pair(tmp_path: Path) -> None:
    def state(cell: Cell) -> CellStatus:
        return CellStatus.WAITING if (cell.recipe, cell.seed) in {("bf16", 1), ("sr", 0)} else CellStatus.DONE

    write_study(tmp_path, status=state, health=False)
    tables = collect(tmp_path)
    pairs = paired(tables, ["auprc"])
    assert set(pairs["seed"]) == {0, 2}
    rows = against_baseline(tables, paired(tables)).query("metric == 'auprc'").set_index(["model", "recipe"])
    assert rows.loc[("unet 500k", "full"), "n"] == 2 and rows.loc[("unet 500k", "sr"), "n"] == 1
    assert math.isnan(rows.loc[("unet 500k", "sr"), "p_holm"])


def test_folds_stand_in_where_there_is_one_seed(tmp_path: Path) -> None:
    write_study(tmp_path, definition(folds=(0, 1, 2, 3, 4), seeds=(0,)), health=False)
    tables = collect(tmp_path)
    row = (
        against_baseline(tables, paired(tables))
        .set_index(["metric", "model", "recipe"])
        .loc[("auprc", "unet 500k", "sr")]
    )
    assert row["unit"] == "folds" and row["n"] == 5
    differences = [
        cell_auprc(Cell("unet", "500k", "sr", fold)) - cell_auprc(Cell("unet", "500k", "bf16", fold))
        for fold in range(5)
    ]
    error = np.std(differences, ddof=1) * math.sqrt(1 / 5 + 2 / 8)  # two patients validated for eight trained
    assert row["p"] == pytest.approx(2 * stats.t.sf(abs(np.mean(differences)) / error, 4))


def test_seeds_come_before_folds_when_there_are_enough(tmp_path: Path) -> None:
    write_study(tmp_path, definition(folds=(0, 1, 2, 3), seeds=(0, 1, 2)), health=False)
    tables = collect(tmp_path)
    assert set(against_baseline(tables, paired(tables))["unit"]) == {"seeds of fold 0"}


def test_patients_are_compared_where_their_results_lie(tables: StudyTables) -> None:
    rows = by_patient(tables).set_index(["arch", "recipe"])
    assert len(rows) == 6 and set(rows["trainings"]) == {len(SEEDS)}
    assert set(rows["patients"]) == {11}, "the one without tumour has no AUPRC"
    assert rows.loc[("unet", "sr"), "mean"] == pytest.approx(-0.02, abs=0.006)
    assert rows.loc[("unet", "sr"), "high"] < 0
    assert rows.loc[("swin", "sr"), "low"] < 0 < rows.loc[("swin", "sr"), "high"] or (
        abs(rows.loc[("swin", "sr"), "mean"]) < 0.005
    )


def test_patients_of_a_training_that_is_not_finished_are_not_compared(tmp_path: Path) -> None:
    """Runs write them as they go: an early epoch beside BF16's best would be taken for the recipe's loss."""
    few = definition(archs=("unet",), recipes={"bf16": "bf16", "full": "full", "sr": "sr"}, seeds=(0,))

    def state(cell: Cell) -> CellStatus:
        return CellStatus.RUNNING if cell.recipe == "sr" else CellStatus.DONE

    tables = collect(write_study(tmp_path, few, status=state, health=False, patients=4).path)
    assert "sr" in set(tables.patients["recipe"])
    assert set(by_patient(tables)["recipe"]) == {"full"}


def test_without_patients_there_is_an_empty_table(tmp_path: Path) -> None:
    write_study(tmp_path, health=False)
    assert by_patient(collect(tmp_path)).empty


def test_calibrated_scores_have_little_error(tables: StudyTables) -> None:
    rows = calibration(tables)
    assert len(rows) == len(tables.done)
    # 4000 voxels a cell: what is left is the noise of counting.
    assert rows["ece"].max() < 0.02 and rows["ece"].min() > 0


def test_cost_is_relative_to_bf16(tables: StudyTables) -> None:
    rows = cost(tables).set_index(["arch", "recipe"])
    assert rows.loc[("unet", "bf16"), "epoch_seconds"] == 10 and rows.loc[("unet", "sr"), "times_baseline"] == 2
    assert rows.loc[("unet", "sr"), "cells"] == len(SEEDS)


def test_the_baseline_is_known_by_what_it_does(tmp_path: Path) -> None:
    write_study(tmp_path / "renamed", definition(recipes={"plain": "bf16", "sr": "sr"}), health=False)
    assert collect(tmp_path / "renamed").baseline == "plain"
    write_study(tmp_path / "none", definition(recipes={"sr": "sr"}), health=False)
    tables = collect(tmp_path / "none")
    assert tables.baseline is None
    assert against_baseline(tables, paired(tables)).empty and paired(tables, ["auprc"]).empty
