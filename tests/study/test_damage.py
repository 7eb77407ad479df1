"""What becomes of a study whose files are damaged, gone or another's, between two sweeps and within one."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_cells import CELL, Scripted, definition, done, finish, study

from monai_fp4.errors import ConfigError
from monai_fp4.study.commands import write_study
from monai_fp4.study.layout import Cell, CellStatus, StudyFolder
from monai_fp4.study.progress import SweepProgress
from monai_fp4.study.sweep import Sweep
from monai_fp4.study.worker import Outcome, Task, run_task

Damage = Callable[[Path], Any]
VICTIM, OTHER = Cell("unet", "500k", "bf16"), Cell("unet", "500k", "sr")


def _another(folder: Path) -> None:
    folder.joinpath("config.json").write_text(json.dumps({"arch": "unet", "scale": "500k", "seed": 7}))


def _cut(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def _linked(folder: Path) -> None:
    """To the run of another cell."""
    shutil.rmtree(folder)
    other = folder.parents[1] / "sr" / folder.name
    (other / "config.json").write_text(json.dumps({"recipe": {"name": "sr"}, "seed": 0}))
    folder.symlink_to(other)


def _replaced(by: Damage) -> Damage:
    return lambda folder: (shutil.rmtree(folder), by(folder))


RESULTS: dict[str, Damage] = {
    "cut": _cut("metrics.json", '{"finished": tr'),
    "empty": _cut("metrics.json", ""),
    "another type": _cut("metrics.json", "[true]"),
    "gone": lambda folder: (folder / "metrics.json").unlink(),
    "a folder": lambda folder: ((folder / "metrics.json").unlink(), (folder / "metrics.json").mkdir()),
    "another cell's": _another,
    "cell gone": shutil.rmtree,
    "cell renamed": lambda folder: folder.rename(folder.with_name("before")),
    "cell a file": _replaced(lambda folder: folder.write_text("")),
    "cell a dangling link": _replaced(lambda folder: folder.symlink_to("nowhere")),
    "cell a link to itself": _replaced(lambda folder: folder.symlink_to(folder)),
    "cell a link to another": _linked,
}
RECORDS: dict[str, Damage] = {
    content or "empty": _cut("cell.json", content)
    for content in ("", '{"status": "do', "[]", '{"status": "flying"}', '{"status": "done", "attempts": NaN}')
} | {"a folder": lambda folder: ((folder / "cell.json").unlink(), (folder / "cell.json").mkdir())}


def begun(tmp_path: Path) -> StudyFolder:
    folder, defined = study(tmp_path, seeds=(0,))
    write_study(folder, defined, "phantom")
    return folder


def sweep(folder: StudyFolder, executor: Scripted, stream: io.StringIO | None = None, retries: int = 0) -> Sweep:
    defined = folder.read_definition()
    return Sweep(folder, defined, defined.cells(), executor, SweepProgress(stream or io.StringIO()), retries=retries)


@pytest.mark.parametrize("damage", RESULTS.values(), ids=RESULTS)
def test_a_cell_without_good_results_of_its_own_is_not_done(tmp_path: Path, damage: Damage) -> None:
    folder = begun(tmp_path)
    for cell in (VICTIM, OTHER):
        finish(folder, cell)
    assert folder.finished(VICTIM)
    damage(folder.run_dir(VICTIM))
    executor = Scripted(lambda *_: {"status": "failed", "error": "what the run says", "seconds": 1.0})
    result = sweep(folder, executor).run()
    assert executor.started == [VICTIM.id] and result.done == [OTHER]
    assert result.failed == {VICTIM: "what the run says"} and result.exit_code == 1


@pytest.mark.parametrize("damage", RESULTS.values(), ids=RESULTS)
def test_a_cell_that_was_done_and_is_damaged_before_the_sweep_ends_is_named(tmp_path: Path, damage: Damage) -> None:
    folder = begun(tmp_path)

    def script(task: Task, attempt: int) -> Outcome:
        outcome = done(task)
        if task["cell"] == OTHER.id:
            damage(folder.run_dir(VICTIM))
        return outcome

    result = sweep(folder, Scripted(script, at_once=1)).run()
    assert result.done == [OTHER] and "gone or damaged" in result.failed[VICTIM] and result.exit_code == 1


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("when", ["between", "within"])
def test_a_damaged_record_is_named_and_costs_no_result(tmp_path: Path, damage: Damage, when: str) -> None:
    folder, said = begun(tmp_path), io.StringIO()
    if when == "between":
        finish(folder, VICTIM)
        damage(folder.run_dir(VICTIM))

    def script(task: Task, attempt: int) -> Outcome:
        outcome = done(task)
        if when == "within" and task["cell"] == VICTIM.id:
            damage(folder.run_dir(VICTIM))
        return outcome

    executor = Scripted(script)
    result = sweep(folder, executor, said).run()
    assert result.exit_code == 0 and (VICTIM.id in executor.started) is (when == "within")
    assert ("cell.json must hold" in said.getvalue()) is (when == "between")
    if not (folder.run_dir(VICTIM) / "cell.json").is_dir():
        assert folder.record(VICTIM).status is CellStatus.DONE


def test_a_disk_that_cannot_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path)
    for cell in (VICTIM, OTHER):
        finish(folder, cell)
    stat = Path.stat

    def broken(path: Path, **options: Any) -> os.stat_result:
        if path.is_relative_to(folder.run_dir(VICTIM)):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", broken)
    with pytest.raises(ConfigError, match=r"metrics\.json must hold JSON.*Input/output error"):
        folder.metrics(VICTIM)
    said = io.StringIO()
    result = sweep(folder, Scripted(lambda task, _: run_task(task)), said).run()
    assert result.done == [OTHER] and "Input/output error" in result.failed[VICTIM]


def test_what_the_system_refuses_a_worker_is_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path)
    values = {"study": str(folder.path), "cell": CELL, "arguments": [], "threads": 1, "version": ""}
    task = Task(**values, stop_file=str(folder.path / ".stop"))  # type: ignore[typeddict-item]

    def broken(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", broken)
        assert "Permission denied" in run_task(task)["error"]
    folder.definition_path.unlink()
    assert "study.json" in run_task(task)["error"]


def test_a_study_that_is_moved_while_its_cells_run_is_not_begun_anew_where_it_lay(tmp_path: Path) -> None:
    folder = begun(tmp_path)

    def script(task: Task, attempt: int) -> Outcome:
        if folder.path.exists():
            folder.path.rename(tmp_path / "moved")
        return {"status": "failed", "error": "the folder went away", "seconds": 1.0}

    result = sweep(folder, Scripted(script)).run()
    assert len(result.failed) == 2 and not folder.path.exists()
    moved = StudyFolder(tmp_path / "moved")
    assert sweep(moved, Scripted(done)).run().exit_code == 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epochs": 0}', '{"epochs": "many"}'])
def test_a_damaged_bundle_of_a_study_is_a_sentence(tmp_path: Path, content: str) -> None:
    folder, defined = study(tmp_path, options={"image_size": [32, 32]}, further={"optimizer": ("sgd",)})
    write_study(folder, defined, "phantom")
    path = folder.bundles_path / f"{defined.bundle(defined.cells()[0])}.json"
    path.write_text(content)
    if not content.startswith('{"'):
        with pytest.raises(ConfigError, match=path.name):
            write_study(folder, defined, "phantom")
    defined = definition(options={"image_size": [32, 32]})

    def script(task: Task, attempt: int) -> Outcome | None:
        cell = next(cell for cell in defined.cells() if cell.id == task["cell"])
        (folder.run_dir(cell)).mkdir(parents=True, exist_ok=True)
        (folder.run_dir(cell) / "cell.json").write_text('{"status": "running"}')
        return done(task) if attempt else {"status": "failed", "error": "what the run says", "seconds": 1.0}

    folder.write_definition(defined)
    assert sweep(folder, Scripted(script), retries=1).run().exit_code == 0
