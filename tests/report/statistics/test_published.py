"""The published figures, what they support, and a study's own beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_study import definition, tables_of

from monai_fp4.report.statistics import PUBLISHED, beside_published, published_differences, published_findings
from monai_fp4.report.tables import StudyTables


def paper_study(effect: float = 0.0, **changes: Any) -> StudyTables:
    grid: dict[str, Any] = {"archs": ("paper_swin", "paper_cnn"), "scales": ("500k", "4m"), "seeds": (0, 1)}
    grid |= {"folds": tuple(range(5)), "recipes": {name: name for name in ("bf16", "sr_rht_2d")}, "protocol": "paper"}
    defined = definition(**grid | changes)
    tables = tables_of(defined, lambda cell: effect * (cell.recipe != "bf16"), noise=0.0)
    cells = tables.cells.assign(test_auprc=tables.cells["auprc"] - 0.1)
    return StudyTables(defined, "synthetic", cells, **{k: getattr(tables, k) for k in LONG}, notes=())


LONG = ("epochs", "scores", "curves", "health", "attention", "patients")


def test_each_cell_of_the_paper_s_table_has_the_study_s_beside_it() -> None:
    tables = paper_study()
    table = beside_published(tables)
    assert list(table["source"]) == ["published", "this study"] * 4 and not table["missing"].any()
    row = table[(table["arch"] == "paper_cnn") & (table["recipe"] == "bf16")].set_index("source")
    assert row.loc["published", [f"fold {k}" for k in range(5)]].tolist() == list(PUBLISHED["paper_cnn", "bf16"])
    own = tables.cells.query("model == 'paper_cnn 4m' and recipe == 'bf16' and fold == '3'")
    assert row.loc["this study", "fold 3"] == pytest.approx(own["test_auprc"].mean()) and len(own) == 2
    assert row.loc["published", ["mean", "sd"]].tolist() == pytest.approx([0.7469, 0.0645], abs=5e-5)


def test_what_is_missing_is_said_fold_by_fold() -> None:
    tables = paper_study(folds=(0, 1, 2, "holdout"))
    waits = (tables.cells["arch"] == "paper_swin") & (tables.cells["fold"] == "2")
    tables.cells.loc[waits, "status"] = "waiting"
    said = beside_published(tables).set_index(["arch", "recipe", "source"])["missing"]
    assert said["paper_swin", "bf16", "this study"] == "fold 2 not finished; folds 3, 4 not planned"
    assert said["paper_cnn", "bf16", "this study"] == "folds 3, 4 not planned"
    none = beside_published(paper_study(scales=("500k",)))
    assert set(none["missing"]) == {"", "folds 0, 1, 2, 3, 4 not planned"}
    assert none.loc[none["source"] == "this study", "mean"].isna().all()


def test_differences_are_those_of_the_folds_by_both_statistics() -> None:
    table = published_differences(beside_published(paper_study(effect=-0.02)), 0.01)
    theirs = table[table["source"] == "published"].set_index("difference")
    assert theirs["mean"].round(4).tolist() == [0.0070, -0.0217, 0.0456, 0.0743]
    assert theirs["p"].round(2).tolist() == [1.0, 1.0, 0.19, 0.31] and set(theirs["floor"]) == {0.0625}
    gap = np.subtract(PUBLISHED["paper_swin", "bf16"], PUBLISHED["paper_cnn", "bf16"])
    half = stats.t.ppf(0.975, 4) * gap.std(ddof=1) * math.sqrt(1 / 5 + 1 / 8)  # Nadeau and Bengio: 11 of 88 patients
    row = theirs.loc["Swin less CNN: baseline"]
    assert (row["low"], row["high"]) == pytest.approx((gap.mean() - half, gap.mean() + half))
    ours = table[table["source"] == "this study"].set_index("difference")
    assert ours["mean"].iloc[:2].tolist() == pytest.approx([-0.02, -0.02]) and set(ours["n"]) == {5}
    few = published_differences(beside_published(paper_study(folds=(0, 1))), 0.01)
    assert few.loc[few["source"] == "this study", "p"].isna().all() and set(few["n"]) == {2, 5}


def test_the_sentences_say_what_the_figures_support() -> None:
    significance, gap, change, ahead = published_findings()
    assert significance.startswith("None of the 4") and "0.188" in significance and "0.0625" in significance
    assert "0.0456" in gap and "0.0743" in gap and "fold 3 has 89 % of the first" in gap
    assert "-0.0217 for CNN and +0.0022 without fold 0" in change
    assert ahead == "In 2 of the 10 pairs the CNN is ahead: fold 4 (baseline), fold 2 (2D+RHT+SR)."
