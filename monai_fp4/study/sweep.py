"""Run the cells of a study until each is done or has failed too often.

What is done is never done again, since a finished run says so in its own folder; what was cut off goes on after its
last checkpoint, since its bundle does that; so this module only has to start the right commands, and can be killed at
any time. Nothing that matters is in its memory: a new sweep learns everything from the folders.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_fp4.errors import MonaiFP4Error
from monai_fp4.study import worker
from monai_fp4.study.commands import arguments_of, epochs_of
from monai_fp4.study.estimate import Estimate, time_left, timing_key, timings
from monai_fp4.study.executor import Executor, cell_resources
from monai_fp4.study.interrupt import interruptible
from monai_fp4.study.layout import Cell, CellStatus, StudyDefinition, StudyFolder
from monai_fp4.study.progress import State, SweepProgress
from monai_fp4.study.worker import Outcome, Task

__all__ = ["Sweep", "SweepResult"]

POLL_SECONDS = 5.0
"""How often to look how far the running cells are; one that ends, and Ctrl-C, are heard of sooner."""
STOP_SECONDS = worker.STOP_SECONDS + 5.0
"""How long the running cells have to end when a sweep is stopped."""


@dataclass
class SweepResult:
    """Result of a sweep.

    Attributes:
        done: cells that are complete, those from before included.
        failed: cell -> its last error.
        waiting: cells that were not run, or were cut off.
        ended_by: SIGINT or SIGTERM, if one stopped it.
        disk_full: whether a full disk stopped it.
    """

    done: list[Cell] = field(default_factory=list)
    failed: dict[Cell, str] = field(default_factory=dict)
    waiting: list[Cell] = field(default_factory=list)
    ended_by: signal.Signals | None = None
    disk_full: bool = False

    @property
    def exit_code(self) -> int:
        """0 when all is done, 128 and the signal's number when one stopped it, else 1."""
        return 128 + self.ended_by if self.ended_by else int(bool(self.failed or self.waiting))


class Sweep:
    """The cells of one study on one executor.

    Args:
        folder: the study folder, with its definition and bundles written.
        definition: the study.
        cells: which of its cells to run.
        executor: where they run.
        progress: what to tell the user.
        retries: how often a failed cell is started again. A cell whose worker was lost does not use one up if it got
            an epoch further than the time before.
        cpus: cores a cell; None chooses.
        gpus: GPUs a cell; None chooses.
        version: version of the package, for the records.
        trusted: run the bundles unchecked, see `monai_fp4.bundle.foreign`.

    Raises:
        ConfigError: when a cell asks for more than any machine has.
    """

    def __init__(
        self,
        folder: StudyFolder,
        definition: StudyDefinition,
        cells: Sequence[Cell],
        executor: Executor,
        progress: SweepProgress,
        *,
        retries: int = 2,
        cpus: float | None = None,
        gpus: float | None = None,
        version: str = "",
        trusted: bool = False,
    ) -> None:
        self.folder, self.definition, self.executor, self.progress = folder, definition, executor, progress
        self.retries, self.version, self._trusted = retries, version, trusted
        most = executor.largest_machine()
        if gpus is None and definition.options.get("device") == "cpu":
            gpus = 0.0
        self._needs = {scale: cell_resources(scale, most, cpus, gpus) for scale in definition.scales}
        self._cells = list(cells)
        self._stop_file = folder.path / f".stop-{time.time_ns()}"
        self._running: dict[Any, Cell] = {}
        self._failures: defaultdict[Cell, int] = defaultdict(int)
        self._epochs: dict[Cell, int] = {}
        self.result = SweepResult()
        self._todo: deque[Cell] = deque()
        self._times: dict[tuple[str, str], list[float]] = {}
        self._polled = 0.0

    def run(self) -> SweepResult:
        """Run until nothing is left to do, the disk is full, or SIGINT or SIGTERM arrives."""
        with interruptible() as come:
            try:
                self._begin()
                while not come and (self._running or (self._todo and not self.result.disk_full)):
                    self._submit()
                    for handle, outcome in self.executor.wait(self._running, POLL_SECONDS):
                        self._end(self._running.pop(handle), outcome)
                    if time.monotonic() - self._polled >= POLL_SECONDS:
                        self._polled = time.monotonic()
                        self.progress.show(self._state())
            except KeyboardInterrupt:
                come = come or [signal.SIGINT]
            finally:
                if come:
                    self.result.ended_by = come[0]
                    self._stop(come[0])
                self.progress.close()
                self.executor.close()  # ends what has not ended by itself
                with contextlib.suppress(OSError):
                    self._stop_file.unlink(missing_ok=True)
        done = self.result.done
        self.result.done = [cell for cell in self._cells if self.folder.finished(cell)]
        for cell in self._cells:
            if cell in self.result.done:  # it may have ended just when the sweep was stopped
                self.result.failed.pop(cell, None)
                self.folder.repair_record(cell, CellStatus.DONE)
            elif cell in done:
                self.result.failed[cell] = "its results were there, and are gone or damaged since; sweep again"
            elif cell not in self.result.failed:
                self.result.waiting.append(cell)
                self.folder.repair_record(cell, CellStatus.WAITING)
        return self.result

    def _begin(self) -> None:
        for left in self.folder.path.glob(".stop-*"):  # of a sweep that was killed while it stopped
            with contextlib.suppress(OSError):
                left.unlink()
        self._times = timings(self.folder, self.definition)
        for cell in self._cells:
            try:
                self.folder.record(cell)
            except MonaiFP4Error as error:
                self.progress.say(f"note: {error}; until then its attempts and seconds count from now")
            done = self.folder.finished(cell)
            (self.result.done if done else self._todo).append(cell)
            self.folder.repair_record(cell, CellStatus.DONE if done else CellStatus.WAITING)

    def _submit(self) -> None:
        while self._todo and not self.result.disk_full:
            # One more than fits, so that a worker that is free has something to begin with.
            smallest = min((self._needs[cell.scale] for cell in self._todo), key=lambda needs: (needs.gpus, needs.cpus))
            if len(self._running) > self.executor.slots(smallest):
                return
            cell = self._todo.popleft()
            self._epochs[cell] = self._epochs_done(cell)
            self._running[self.executor.submit(self._task(cell), self._needs[cell.scale])] = cell

    def _task(self, cell: Cell) -> Task:
        needs = self._needs[cell.scale]
        device = None if needs.gpus else "cpu"
        return {
            "study": str(self.folder.path.resolve()),
            "cell": cell.id,
            "arguments": arguments_of(self.definition, cell, device, self.folder, trusted=self._trusted),
            "threads": needs.threads,
            "version": self.version,
            "stop_file": str(self._stop_file.resolve()),
        }

    def _end(self, cell: Cell, outcome: Outcome) -> None:
        """Decide what follows from an attempt."""
        status, error = outcome["status"], outcome.get("error", "")
        if status == "done":
            self.result.done.append(cell)
            self._times.setdefault(timing_key(cell), []).append(self.folder.known_record(cell).seconds)
        elif status == "waiting":
            self._todo.append(cell)
        else:
            further = self._epochs_done(cell) > self._epochs[cell]
            self._failures[cell] += not (status == "lost" and further)
            if outcome.get("disk_full"):
                self.result.disk_full = True
                self._raise_stop_file()
            if self._failures[cell] > self.retries or self.result.disk_full:
                self.result.failed[cell] = error
            else:
                self._todo.append(cell)
            self.folder.repair_record(cell, CellStatus.FAILED, error)
        self.progress.ended(cell, dict(outcome), self._metrics(cell).get("auprc"), self._state())

    def _metrics(self, cell: Cell) -> dict[str, Any]:
        with contextlib.suppress(MonaiFP4Error):  # the cell's run says it, or the end of the sweep
            return self.folder.metrics(cell) or {}
        return {}

    def _epochs_done(self, cell: Cell) -> int:
        history = self._metrics(cell).get("history")
        return len(history) if isinstance(history, list) else 0

    def _state(self) -> State:
        running: dict[Cell, float] = {}
        for cell in self._running.values():
            if self.folder.known_record(cell).status is CellStatus.RUNNING:
                with contextlib.suppress(MonaiFP4Error):  # a damaged bundle, which the cell says
                    running[cell] = self._epochs_done(cell) / epochs_of(self.folder, self.definition, cell)
        estimate = Estimate(self._times)
        left = [estimate.seconds(*timing_key(cell)) for cell in self._todo]
        for cell in self._running.values():
            whole = estimate.seconds(*timing_key(cell))
            left.append(None if whole is None else whole * (1 - running.get(cell, 0.0)))
        slots = self.executor.slots(max(self._needs.values(), key=lambda needs: (needs.gpus, needs.cpus)))
        return State(
            total=len(self._cells),
            done=len(self.result.done),
            failed=len(self.result.failed),
            running=running,
            left=time_left(left, slots),
        )

    def _raise_stop_file(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk; then the few that are queued fail by themselves
            self._stop_file.touch()

    def _stop(self, number: signal.Signals) -> None:
        """End what runs, and wait for it to say so."""
        self.progress.close()  # a second signal would leave the terminal as the bars have it
        cells = f"{len(self._running)} cells end after their step"
        self.progress.say(f"{number.name}: {cells}; a second one ends them and the sweep at once")
        self._raise_stop_file()
        for handle in self._running:
            self.executor.cancel(handle)
        until = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < until:
            for handle, outcome in self.executor.wait(self._running, POLL_SECONDS):
                cell = self._running.pop(handle)
                if outcome["status"] == "done":
                    self.result.done.append(cell)
                elif outcome["status"] == "failed":
                    self.result.failed[cell] = outcome["error"]
