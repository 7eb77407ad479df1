"""benchmarks/study.py and the tables of docs/: a partial study is written down as partial, and no path leaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_modules import imported
from synthetic_study import definition, write_study

from monai_fp4.report.analyse import analyse
from monai_fp4.study.layout import Cell, CellRecord, CellStatus, StudyFolder

NAMES = ("study", "study_overhead", "study_picture", "study_tables", "result_tables", "common", "picture", "ratios")
WATCHING = ("sweep_watch", "sweep_overhead", "lgg", "common")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    with imported(NAMES) as modules:
        yield modules


def partly(cell: Cell) -> CellStatus:
    """swin: `sr` has two of three seeds and `chain_rule` none; a cell of the unet failed."""
    if cell.arch == "swin" and (cell.recipe == "chain_rule" or (cell.recipe, cell.seed) == ("sr", 2)):
        return CellStatus.WAITING
    return CellStatus.FAILED if (cell.arch, cell.recipe, cell.seed) == ("unet", "full", 1) else CellStatus.DONE


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory, scripts: dict[str, ModuleType]) -> dict[str, Any]:
    """What is written for that study, as a reader gets it back."""
    folder = write_study(tmp_path_factory.mktemp("study"), status=partly, health=False)
    record = folder.record(Cell("unet", "500k", "full", 0, 1))
    folder.write_record(
        Cell("unet", "500k", "full", 0, 1),
        replace(record, error="/home/somebody/scans/a.tif must be a TIFF, but is not; see /home/somebody/run.log"),
    )
    tables = scripts["study"].merged([folder.path])
    found: dict[str, Any] = json.loads(scripts["study"].to_text(scripts["study"].compact(analyse(tables), None)))
    return found


def test_every_cell_has_a_row_and_only_finished_ones_have_numbers(content: dict[str, Any]) -> None:
    assert len(content["cells"]) == content["protocol"]["cells"] == 24
    assert content["protocol"]["statuses"] == {"done": 19, "waiting": 4, "failed": 1}
    for cell in content["cells"]:
        assert ("recall" in cell) == (cell["status"] in ("done", "failed")), cell["id"]
    assert all(cell["version"] for cell in content["cells"] if cell["status"] == "done")


def test_no_path_of_the_machine_is_written_down(content: dict[str, Any]) -> None:
    text = json.dumps(content)
    assert "somebody" not in text and "/home" not in text and "/tmp" not in text
    failed = [cell for cell in content["cells"] if cell["status"] == "failed"]
    assert failed[0]["problem"] == "a.tif must be a TIFF, but is not; see run.log"
    assert len(text) < 150_000 * len(content["cells"]) / 99


def test_partial_cells_are_shown_as_partial(content: dict[str, Any], scripts: dict[str, ModuleType]) -> None:
    table = scripts["study_tables"].quality(content, "x", metric="auprc")
    rows = {line.split(" | ")[0].strip("| `"): line.split(" | ") for line in table.splitlines() if line.startswith("|")}
    assert rows["chain_rule"][2].strip(" |") == "not run"
    assert rows["sr"][2].strip(" |").endswith("(2 of 3)") and rows["full"][1].endswith("(2 of 3)")
    assert "(" not in rows["bf16"][1] and "±" in rows["bf16"][1]
    values = [cell["auprc"] for cell in content["cells"] if cell["id"].startswith("unet_500k/bf16/")]
    assert rows["bf16"][1].startswith(f"{sum(values) / 3:.3f} ± ") and "%" not in rows["bf16"][1]


def test_an_unfinished_mean_is_of_the_finished_cells_only(
    content: dict[str, Any], scripts: dict[str, ModuleType]
) -> None:
    """The failed cell has numbers of its first epochs; they are in no mean."""
    done = [
        cell["recall"] for cell in content["cells"] if cell["id"].startswith("unet_500k/full/") and cell["seed"] != 1
    ]
    assert f"{sum(done) / 2:.3f} ± " in scripts["study_tables"].quality(content, "x", metric="recall")


def test_every_table_can_be_written_of_it(content: dict[str, Any], scripts: dict[str, ModuleType]) -> None:
    tables = scripts["study_tables"]
    written = {kind: table(content, "x") for kind, table in tables.KINDS.items()}
    assert "**Partial:** 19 of 24 cells (19 done, 1 failed, 4 waiting)" in written["protocol"]
    assert "8 to train on" in written["protocol"].replace("patients ", "")
    assert (
        written["comparisons"].count("too few seeds") >= 2 and "swin 500k | `chain_rule`" not in written["comparisons"]
    )
    assert written["claims"].count("**not tested**") >= 5
    assert written["overhead"].startswith("Not computed")
    blocks = [(kind, block) for kind, text in written.items() for block in text.split("\n\n")]  # "brief" has several
    for kind, block in blocks:
        widths = {line.count(" | ") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, f"{kind}: a bar within a cell breaks the table"


def test_claims_are_judged_again_from_the_file_alone(content: dict[str, Any], scripts: dict[str, ModuleType]) -> None:
    kept = json.loads(json.dumps(content))
    assert scripts["study"].judged_again(kept) == kept
    changed = {**kept, "cells": [{**cell, "distinct_scores": 9.0} for cell in kept["cells"]], "claims": []}
    again = scripts["study"].judged_again(changed)["claims"]
    assert [claim["claim"] for claim in again] == [claim["claim"] for claim in kept["claims"]] and again != kept[
        "claims"
    ]
    with pytest.raises(SystemExit, match="axes"):
        scripts["study"].judged_again({**kept, "protocol": {**kept["protocol"], "further": {"amp": [True]}}})


def test_only_what_is_tested_counts_for_the_correction(scripts: dict[str, ModuleType]) -> None:
    single = {"metric": "auprc", "model": "unet 500k", "recipe": "sr", "n": 1, "mean": 0.01}
    tested = {"recipe": "rht", "n": 3, "low": 0.0, "high": 0.02, "p_holm": 0.04, "p_margin_holm": 0.01}
    content = {
        "cells": [{"model": "unet 500k", "recipe": recipe} for recipe in ("sr", "rht")],
        "protocol": {"recipes": ["sr", "rht"]},
        "comparisons": [single, single | tested],
        "margin": 0.01,
    }
    assert "over the rows with two pairs or more (1);" in scripts["study_tables"].comparisons(content, "x")


def test_an_empty_study_is_said_to_be_empty(tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    write_study(tmp_path, status=lambda cell: CellStatus.WAITING)
    found = scripts["study"].compact(analyse(scripts["study"].merged([tmp_path])), None)
    for kind, table in scripts["study_tables"].KINDS.items():
        assert table(json.loads(json.dumps(found)), "x"), kind
    assert "**Partial:** 0 of 24" in scripts["study_tables"].protocol(found, "x")


def test_studies_with_the_same_protocol_are_read_as_one(tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    """The second study has recipes of its own and cells of the first that waited there; BF16 comes from the first."""

    def without_sr(cell: Cell) -> CellStatus:
        return CellStatus.WAITING if cell.recipe == "sr" else CellStatus.DONE

    write_study(tmp_path / "one", status=without_sr, health=False)
    more = {"sr": "sr", "sr+attention": {"base": "sr", "attention": "fp4"}}
    write_study(tmp_path / "two", definition(recipes=more, archs=("swin",)), health=False, patients=3)
    tables = scripts["study"].merged([tmp_path / "one", tmp_path / "two"])
    assert not tables.cells.duplicated(["model", "recipe", "fold", "seed"]).any()
    counts = tables.done.groupby(["arch", "recipe"]).size().to_dict()
    assert counts["swin", "sr"] == counts["swin", "sr+attention"] == 3 and ("unet", "sr") not in counts
    comparisons = analyse(tables).frames["comparisons"]
    assert set(comparisons.loc[comparisons["arch"] == "swin", "recipe"]) >= {"sr", "sr+attention"}
    text = scripts["study_tables"].quality(scripts["study"].compact(analyse(tables), None), "x", metric="auprc")
    assert "not planned" in text, "the unet has no sr+attention"


def test_studies_with_other_protocols_are_not_read_as_one(tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    write_study(tmp_path / "one", health=False)
    write_study(tmp_path / "two", definition(options={"epochs": 9}), health=False)
    with pytest.raises(SystemExit, match="two cannot be read with one: options"):
        scripts["study"].merged([tmp_path / "one", tmp_path / "two"])


def timed(path: Path, spans: list[tuple[int, int]]) -> StudyFolder:
    """A study whose cells began and ended so many seconds after it was written."""
    folder = StudyFolder(path)
    study = definition(archs=("unet",), recipes={"bf16": "bf16"}, seeds=tuple(range(len(spans) + 1)), created=moment(0))
    folder.write_definition(study)
    for cell, (start, end) in zip(study.cells(), spans, strict=False):
        record = CellRecord(status=CellStatus.DONE, attempts=1, started=moment(start), finished=moment(end))
        folder.write_record(cell, record)
    return folder


def moment(second: int) -> str:
    return f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}+00:00"


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        # Two places: both start after 5 s, one gap of 2 s and one of none.
        ([(5, 105), (5, 205), (107, 307), (205, 405)], {"places": 2, "gaps": 2, "gap_seconds": 2.0, "pauses": 0}),
        # One place, and the sweep stopped for an hour in between.
        ([(5, 105), (3705, 3805)], {"places": 1, "gaps": 0, "gap_seconds": 0.0, "pauses": 1, "pause_seconds": 3600.0}),
    ],
)
def test_the_empty_time_of_a_sweep(
    tmp_path: Path, scripts: dict[str, ModuleType], spans: list[tuple[int, int]], expected: dict[str, float]
) -> None:
    found = scripts["study_overhead"].gaps(timed(tmp_path, spans).path)
    assert {name: found[name] for name in expected} == expected
    cells = sum(end - start for start, end in spans)
    empty = 5 * expected["places"] + expected["gap_seconds"]
    assert found["cell_seconds"] == cells and found["start_seconds"] == 5
    assert found["empty_share"] == pytest.approx(empty / (empty + cells), abs=1e-5)


def test_one_cell_has_no_overhead_yet(tmp_path: Path, scripts: dict[str, ModuleType]) -> None:
    assert scripts["study_overhead"].gaps(timed(tmp_path, [(5, 105)]).path) is None


def test_a_study_in_short_counts_its_verdicts_and_names_the_rare_ones(scripts: dict[str, ModuleType]) -> None:
    rows = [("sr", 97.0, "hint of loss"), *((f"r{at}", 100.0 + at, "open") for at in range(6))]
    pairs = [
        {"model": "vit 500k", "recipe": r, "metric": m, "percent": v, "advice": a}
        for r, v, a in rows
        for m in ("auprc", "recall")
    ]
    variance = [
        {"source": "arch", "eta_squared": 0.5, "p": 0.04},
        {"source": "recipe", "eta_squared": 0.01, "p": 0.0001},
    ]
    said = scripts["study_tables"].summary({"comparisons": pairs, "variance": variance, "margin": 0.02}, "x")
    assert said.startswith("Of 7 comparisons with BF16: 6 *open*; 1 *hint of loss* (vit 500k `sr`).")
    assert "the margin is 0.02" in said and "Mean recall lies between 97.0 % (vit 500k `sr`) and 105.0 %" in said
    assert "the architecture 50.0 % (p = 0.040), the recipe 1.0 % (p < 0.001)." in said


def test_cells_that_were_run_twice_are_compared(content: dict[str, Any], scripts: dict[str, ModuleType]) -> None:
    done = [cell for cell in content["cells"] if cell["status"] == "done"]
    assert scripts["study"].repeated(content["cells"], content)["identical"] == len(done) == 19
    other = {**content, "cells": [{**done[0], "recall": done[0]["recall"] + 1e-6}, *done[1:5]]}
    found = scripts["study"].repeated(content["cells"], other)
    assert (found["cells"], found["identical"]) == (5, 4)
    said = scripts["study_tables"].protocol({**content, "repeated": found}, "x")
    assert "| Repeated | 5 of the cells had been run before" in said and "4 of them" in said


def test_the_processor_time_of_cells_and_of_the_rest_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = "while True: pass"
    sweep = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}, 'monai.bundle'])"
    # A session of its own, so that both end together.
    process = subprocess.Popen([sys.executable, "-c", sweep], start_new_session=True)
    try:
        with imported(WATCHING) as modules:
            monkeypatch.setattr(modules["sweep_watch"], "EVERY_SECONDS", 0.1)
            deadline = time.monotonic() + 60
            taken: dict[str, float] = {}
            while taken.get("cell", 0) < 0.5 and time.monotonic() < deadline:
                taken = modules["sweep_watch"].watch(process.pid, 1.0)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert taken["cell"] > 10 * taken["driver"]


def test_the_picture_has_a_dot_for_every_finished_pair(
    content: dict[str, Any], scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    percents = scripts["study_picture"].percents(content, "swin 500k", "recall")
    assert {recipe: len(values) for recipe, values in percents.items()} == {"full": 3, "chain_rule": 0, "sr": 2}
    drawn = scripts["study_picture"].draw("x", content, tmp_path)
    assert [path.name for path in drawn] == ["study-x-light.svg", "study-x-dark.svg"]
    assert all(path.read_text("utf-8").count("<!-- not run -->") == 2 for path in drawn), "recall and AUPRC"
