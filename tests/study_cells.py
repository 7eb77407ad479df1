"""Studies whose cells are scripts of a line or two, so that what goes wrong with a cell can be played through."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from monai_fp4.study.executor import Resources
from monai_fp4.study.layout import Cell, CellRecord, CellStatus, StudyDefinition, StudyFolder
from monai_fp4.study.worker import Outcome, Task

CELL = "unet_500k/bf16/fold0_seed0"
TWO_CORES = Resources(2)


def definition(**changes: Any) -> StudyDefinition:
    values: dict[str, Any] = {
        "archs": ("unet",),
        "scales": ("500k",),
        "recipes": {"bf16": "bf16", "sr": "sr"},
        "folds": (0,),
        "seeds": (0, 1),
        "manifest": "phantom",
        "dataset_dir": "data/phantom",
        "options": {"epochs": 2, "image_size": [32, 32]},
    }
    return StudyDefinition(**(values | changes))


def study(path: Path, **changes: Any) -> tuple[StudyFolder, StudyDefinition]:
    folder, defined = StudyFolder(path / "study"), definition(**changes)
    folder.write_definition(defined)
    return folder, defined


def write_metrics(run_dir: Path, epochs: int, finished: bool = False) -> None:
    history = [{"epoch": number + 1, "auprc": 0.5} for number in range(epochs)]
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.json").write_text(json.dumps({"finished": finished, "auprc": 0.5, "history": history}))


def finish(folder: StudyFolder, cell: Cell, seconds: float = 10.0) -> None:
    """As a cell that is done looks."""
    write_metrics(folder.run_dir(cell), 2, finished=True)
    folder.write_record(cell, CellRecord(status=CellStatus.DONE, attempts=1, seconds=seconds))


class Scripted:
    """An executor whose tasks are a function of the cell's id and of how often it was started before."""

    description = "a script"

    def __init__(
        self, script: Callable[[Task, int], Outcome | None], at_once: int = 2, most: Resources | None = None
    ) -> None:
        self.script, self.at_once, self.largest = script, at_once, most or Resources(2)
        self.started: list[str] = []
        self.needs: list[Resources] = []
        self.tasks: dict[int, Task] = {}
        self.cancelled: list[str] = []
        self.closed = False

    def largest_machine(self) -> Resources:
        return self.largest

    def slots(self, needs: Resources) -> int:
        return self.at_once

    def submit(self, task: Task, needs: Resources) -> int:
        self.needs.append(needs)
        handle = len(self.needs)
        self.tasks[handle] = task
        return handle

    def wait(self, handles: Collection[int], seconds: float) -> list[tuple[int, Outcome]]:
        assert handles
        ended = []
        for handle in list(handles)[: self.at_once]:
            task = self.tasks[handle]
            if task["cell"] in self.cancelled:
                outcome: Outcome | None = {"status": "waiting", "error": ""}
            else:
                outcome = self.script(task, self.started.count(task["cell"]))
                self.started.append(task["cell"])
            if outcome is not None:  # None: it never ends
                ended.append((handle, outcome))
        return ended

    def cancel(self, handle: int) -> None:
        self.cancelled.append(self.tasks[handle]["cell"])

    def close(self) -> None:
        self.closed = True


def done(task: Task, _attempt: int = 0) -> Outcome:
    """As the worker leaves a cell that is done."""
    folder, run_dir = StudyFolder(task["study"]), Path(task["study"]) / "cells" / task["cell"]
    write_metrics(run_dir, 2, finished=True)
    cell = next(cell for cell in folder.read_definition().cells() if cell.id == task["cell"])
    folder.write_record(cell, CellRecord(status=CellStatus.DONE, attempts=1, seconds=4.0))
    return {"status": "done", "error": "", "seconds": 4.0}


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def gone(pid: int) -> bool:
    """Ended; a process that nobody has asked after yet has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
