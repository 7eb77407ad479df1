"""Patients that show the same become one person, and a manifest that is built again keeps them in one fold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from survey_scans import scan, write_scans

from monai_fp4.cli import main
from monai_fp4.data import build_manifest, load_manifest
from monai_fp4.errors import DataError
from monai_fp4.report.survey import Copies, Survey, survey_manifest
from monai_fp4.report.survey.persons import persons_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scans = {f"p{seed}": scan(seed) for seed in range(7)}
    scans["p5"] = scans["p2"][0] * 0.5 + 3, scans["p2"][1]
    return write_scans(tmp_path_factory.mktemp("scans"), scans)


@pytest.fixture(scope="module")
def found(folder: Path) -> Survey:
    fields = {
        f"p{n}": {"fold": str(n % 2), "group": "ab"[n < 4], "person": {1: "eve", 3: "eve"}.get(n, "")} for n in range(7)
    }
    return survey_manifest(build_manifest(folder, groups=fields), folder)


def persons(found: Survey, *pairs: tuple[int, int]) -> dict[str, str]:
    rows = persons_of(replace(found, copies=tuple(Copies(one, other, 1, 1) for one, other in pairs)))
    return dict(zip(rows["patient"], rows["person"], strict=True))


def test_copies_and_what_was_known_before_are_joined(found: Survey) -> None:
    own = {"p0": "p0", "p1": "eve", "p2": "p2", "p3": "eve", "p4": "p4", "p5": "p5", "p6": "p6"}
    assert persons(found) == own
    assert persons(found, (2, 5)) == own | {"p5": "p2"}
    assert persons(found, (2, 5), (4, 5)) == own | {"p4": "p2", "p5": "p2"}  # by way of a third
    assert persons(found, (3, 6)) == own | {"p6": "eve"}  # and so with the other entry of that person
    assert persons_of(found)["group"].tolist() == list("bbbbaaa")


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@x", "\uff1dcmd()"])
def test_a_name_that_is_a_formula_is_refused(found: Survey, name: str) -> None:
    first = found.measured[0]
    hostile = replace(first, patient=replace(first.patient, id=name))
    with pytest.raises(DataError, match="a spreadsheet computes, found"):
        persons_of(replace(found, measured=(hostile, *found.measured[1:])))


def test_the_table_keeps_them_in_one_fold(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, table, second = tmp_path / "first.json", tmp_path / "persons.csv", tmp_path / "second.json"
    build = ["manifest", "build", "--dataset_dir", str(folder), "--folds", "3", "--output"]
    report = ["manifest", "report", "--dataset_dir", str(folder), "--persons", str(table), "--output"]
    assert main([*build, str(first)]) == 0
    assert main([*report, str(tmp_path / "page.html"), str(first)]) == 0
    assert f"7 patients, 6 persons: {table}" in capsys.readouterr().out
    assert main([*build, str(second), "--groups", str(table)]) == 0
    built = {patient.id: patient for patient in load_manifest(second).patients}
    assert built["p2"].fold == built["p5"].fold and built["p5"].who == "p2"
    assert main([*report, str(tmp_path / "other.html"), str(first)]) == 1
    assert "found that" in capsys.readouterr().err and not (tmp_path / "other.html").exists()
    assert pd.read_csv(table)["person"].nunique() == 6 and np.all(pd.read_csv(table)["group"].isna())
