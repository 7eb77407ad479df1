"""A study and a report folder that somebody hostile has made: nothing is deleted, computed or obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import definition, write_study

from monai_fp4.errors import ConfigError
from monai_fp4.report.pages import write_report
from monai_fp4.study.layout import Cell, StudyDefinition

RECIPES = {"bf16": "bf16", "sr": "sr"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_study(tmp_path / "study", definition(archs=("unet",), recipes=RECIPES, seeds=(0,)), patients=2)
    return tmp_path / "study"


def test_a_report_that_was_cut_off_is_written_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_fp4.report.pages.write._write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        write_report(study)
    monkeypatch.undo()
    page, _ = write_report(study)
    assert page.is_file() and "index.html" in json.loads((study / "report" / "report.json").read_text())["files"]


def test_nothing_outside_the_report_is_deleted_or_written(study: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    victims = [outside / name for name in ("victim.png", "index.html", "notes.txt")]
    for victim in victims:
        victim.write_text("mine")
    report = tmp_path / "report"
    report.mkdir()
    (report / "old.html").write_text("an earlier page")
    (report / "mine.txt").write_text("mine")
    (report / "elsewhere").symlink_to(outside)
    (report / "index.html").symlink_to(outside / "index.html")
    names = ["figures/victim.png", "elsewhere/notes.txt", "../outside/notes.txt", str(outside / "notes.txt"), "",
             "mine.txt", ".", "old.html", 7, None, "elsewhere", "figures/../../outside/victim.png"]  # fmt: skip
    (report / "report.json").write_text(json.dumps({"files": names}))
    (report / "figures").symlink_to(outside)
    with pytest.raises(ConfigError, match="figures is a link"):
        write_report(study, report)
    (report / "figures").unlink()
    write_report(study, report)
    assert all(victim.read_text() == "mine" for victim in victims) and (report / "mine.txt").exists()
    assert not (report / "old.html").exists() and not (report / "index.html").is_symlink()


@pytest.mark.parametrize("mark", ["[]", "7", '{"files": 7}', "[" * 100_000, '{"files": {"a": 1}}'])
def test_a_damaged_list_of_files_deletes_nothing(study: Path, tmp_path: Path, mark: str) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(mark)
    (tmp_path / "report" / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match="other files"):
        write_report(study, tmp_path / "report")
    assert (tmp_path / "report" / "index.html").read_text() == "mine"


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_no_cell_of_a_table_is_a_formula_and_no_name_is_obeyed(study: Path, tmp_path: Path) -> None:
    run = study / "cells" / Cell("unet", "500k", "sr").id
    change(run / "cell.json", host='=HYPERLINK("http://x")', device="+1", version="@SUM(1)", error="-2\x1b[2J")
    evaluation = next(run.glob("*/metrics.json"), run / "metrics.json")
    rows = json.loads(evaluation.read_text())["per_patient"]
    for row, name in zip(rows, ("=1+1", "\x1b]0;x\x07$a_b$"), strict=True):
        row["patient"] = name
    change(evaluation, per_patient=rows)
    write_report(study, tmp_path / "report")
    tables = {path.name: path.read_text() for path in (tmp_path / "report" / "data").glob("*.csv")}
    assert "'=HYPERLINK" in tables["cells.csv"] and "'+1" in tables["cells.csv"] and "'@SUM(1)" in tables["cells.csv"]
    assert "'=1+1" in tables["patients.csv"]
    for name, text in tables.items():
        assert "\x1b" not in text, name
        cells = [cell for line in text.splitlines() for cell in line.replace('"', "").split(",")]
        assert not [cell for cell in cells if cell[:1] in ("=", "@")], name
    assert all("\x1b" not in path.read_text() for path in (tmp_path / "report").glob("*.html"))


@pytest.mark.parametrize(
    "fields",
    [
        {"folds": ["/../../../../tmp/x"]}, {"folds": [1.5]}, {"seeds": ["../x"]}, {"seeds": [True]},
        {"manifest": "../../x.json"}, {"manifest": "/etc/x.json"}, {"manifest": ".x"},
        {"recipes": {"$\\frac{": "sr"}}, {"recipes": {"\x1b[2J": "sr"}}, {"further": {"$a$": [1]}}, {"version": 7},
    ],
)  # fmt: skip
def test_a_definition_leads_nowhere_else(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must define a study"):
        StudyDefinition.from_json(definition().to_json() | fields)
