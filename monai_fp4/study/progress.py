"""Show the progress of a sweep: bars in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from monai_fp4.durations import format_seconds
from monai_fp4.errors import printable
from monai_fp4.study.layout import Cell

__all__ = ["State", "SweepProgress"]

SHOWN = 12
"""Running cells that get a bar of their own."""

LONGEST = 600.0
"""Seconds after which a log says in any case how far a sweep is."""


@dataclass(frozen=True)
class State:
    """Progress of a sweep.

    Attributes:
        total: cells that it is to run, those that were complete before included.
        done: cells that are complete.
        failed: cells that have failed for good.
        running: running cell -> share of its epochs that is done.
        left: seconds until all is done, or None where that is not known.
    """

    total: int
    done: int
    failed: int
    running: Mapping[Cell, float]
    left: float | None

    def words(self) -> str:
        """One line.

        >>> State(16, 3, 0, {}, 75.0).words()
        '3 of 16 cells done, 0 running, 1 min 15 s left'
        """
        failed = f", {self.failed} failed" if self.failed else ""
        if self.left is None:
            left = "time left not known yet"
        else:  # a cell evaluates after its last epoch
            left = f"{format_seconds(self.left)} left" if self.left or not self.running else "the last steps are left"
        return f"{self.done} of {self.total} cells done, {len(self.running)} running{failed}, {left}"


class SweepProgress:
    """Shows a sweep's state and says what became of each cell.

    Args:
        stream: where to; None is standard error.
        every: seconds to the first line where nothing ends and there is no terminal; each further one takes twice as
            long, ten minutes at most.
        clock: seconds; for tests.
    """

    def __init__(
        self, stream: TextIO | None = None, every: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.every = every
        self.clock = clock
        self._spoken = clock()
        self._bars: Progress | None = None
        self._overall: TaskID | None = None
        self._cells: dict[Cell, TaskID] = {}
        if self.stream.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}")
            self._bars = Progress(*columns, console=Console(file=self.stream), transient=True)
            self._overall = self._bars.add_task("cells", total=1.0, said="")
            self._bars.start()

    def say(self, text: str) -> None:
        """Write one line, above the bars where there are any."""
        self._spoken, text = self.clock(), printable(text)
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def ended(self, cell: Cell, outcome: Mapping[str, Any], auprc: float | None, state: State) -> None:
        """Say what became of a cell."""
        words = [f"{outcome['status']} {cell.id}"]
        if auprc is not None and outcome["status"] == "done":
            words.append(f"AUPRC {auprc:.4f}")
        if outcome.get("seconds"):
            words.append(f"in {format_seconds(outcome['seconds'])}")
        if outcome.get("error"):
            words.append(f"({outcome['error']})")
        self.say(f"{' '.join(words)}; {state.words()}")
        self.show(state)

    def show(self, state: State) -> None:
        """Bring the bars up to date, or write a line when it is time for one."""
        if self._bars is None or self._overall is None:
            if self.clock() - self._spoken >= self.every:
                self.every = max(self.every, min(2 * self.every, LONGEST))
                self.say(state.words())
            return
        progress = state.done + state.failed + sum(state.running.values())
        self._bars.update(self._overall, total=state.total, completed=progress, said=state.words())
        for cell in [cell for cell in self._cells if cell not in state.running]:
            self._bars.remove_task(self._cells.pop(cell))
        for cell, share in state.running.items():
            if cell not in self._cells and len(self._cells) < SHOWN:
                self._cells[cell] = self._bars.add_task(cell.id, total=1.0, said="")
            if cell in self._cells:
                self._bars.update(self._cells[cell], completed=share, said=f"{share:.0%}")

    def close(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
