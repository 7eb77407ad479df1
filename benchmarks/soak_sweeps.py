"""The part of benchmarks/soak.py that ends sweeps, their drivers, workers and cells, and gives them again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from soak_runs import LONG, OPTIONS, SIGNALS, Faults, Runs, epochs_done, run_outcome, start, whole


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def worker_of(pid: int) -> int:
    """The process of Ray that started a cell's.

    Raises:
        ProcessLookupError: it is gone; the cell's has another parent then, and ends.
    """
    parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    if b"ray::" not in Path(f"/proc/{parent}/cmdline").read_bytes():
        raise ProcessLookupError(parent)
    return parent


class Sweeps:
    """Sweeps of two cells that train at once, until the time is over; the first one is left alone.

    Args:
        runs: the same runs outside of sweeps; the first cell is one of them.
        rng: draws faults and moments.
    """

    def __init__(self, runs: Runs, rng: random.Random) -> None:
        self.runs, self.rng, self.counts = runs, rng, Counter[str]()
        self.study, self.said = runs.run.with_name("study"), runs.said
        ended = [f"drivers of sweeps ended by {number.name}" for number in SIGNALS]
        self.faults = Faults([*ended, "cells ended by SIGKILL", "workers of cells ended by SIGKILL"], rng)
        whole(self.command())
        self.right = [run_outcome(cell) for cell in self.cells()]
        alone = {name: runs.right[name] for name in self.right[0]}
        assert len(self.right) == 2 and self.right[0] == alone, "a cell of a sweep has other numbers than the run"
        shutil.rmtree(self.study)

    def command(self) -> list[str]:
        """The command line of the sweep."""
        grid = {"archs": "unet", "scales": "500k", "recipes": "sr", "seeds": 2, "folds": 0, "cpus_per_cell": 1}
        where = {"manifest": self.runs.manifest, "dataset_dir": self.runs.data, "output_dir": self.study}
        given = (grid | where | OPTIONS).items()
        return [
            *(sys.executable, "-m", "monai_fp4", "sweep"),
            *(word for name, value in given for word in (f"--{name}", str(value))),
        ]

    def cells(self) -> list[Path]:
        """The run folders of the cells that have begun."""
        return sorted(path.parent for path in self.study.glob("cells/**/cell.json"))

    def go(self, until: float) -> None:
        """Sweep after sweep, until the time is over and each fault has happened."""
        while time.monotonic() < until or not self.faults.all_tried:
            while not self._ended_by_itself():
                self.counts["sweeps given again"] += 1
            assert [run_outcome(cell) for cell in self.cells()] == self.right, "a cell ends with other numbers"
            records = [json.loads((cell / "cell.json").read_text()) for cell in self.cells()]
            assert all(record["status"] == "done" and not record["error"] for record in records), records
            left = [path.name for path in self.study.iterdir() if path.name.startswith(".")]
            assert not left, left
            shutil.rmtree(self.study)
            self.counts["sweeps finished"] += 1
            self.counts |= self.faults.counts
            print(dict(self.counts), file=sys.stderr, flush=True)

    def _ended_by_itself(self) -> bool:
        """Start the sweep and let faults happen until one of them ends it; whether none did."""
        sweep = start(self.command(), self.said)
        while (fault := self.faults.next).endswith("cells ended by SIGKILL"):
            victim = self._training(sweep)
            if victim is None:
                break
            cell, pid = victim
            lost, before = f"lost {cell.relative_to(self.study / 'cells')}", self.said.read_text()
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                os.kill(worker_of(pid) if fault.startswith("workers") else pid, signal.SIGKILL)
                told = lambda lost=lost, before=before: self.said.read_text().count(lost) > before.count(lost)  # noqa: E731
                self._wait(lambda told=told: told() or sweep.poll() is not None)  # type: ignore[misc]
                if told():
                    self.faults.happened()
        if self._training(sweep) is None:
            assert sweep.wait(LONG) == 0, self.said.read_text()
            return True
        number = next(number for number in SIGNALS if fault.endswith(number.name))
        pids = [json.loads((cell / "cell.json").read_text()).get("pid", 0) for cell in self.cells()]
        sweep.send_signal(number)
        status, said = sweep.wait(LONG), self.said.read_text()
        assert status in (0, -number if number == signal.SIGKILL else 128 + number), (number, status, said)
        assert "Traceback" not in said, said
        assert status == 0 or number == signal.SIGKILL or "the same command goes on" in said, said
        self._wait(lambda: not any(alive(pid) for pid in pids))  # a cell never outlives its sweep
        if status:
            self.faults.happened()
        return status == 0

    def _training(self, sweep: subprocess.Popen[bytes]) -> tuple[Path, int] | None:
        """A cell that has trained an epoch more, and its process, at a moment of chance; None when the sweep ends."""
        before = {cell: epochs_done(cell) for cell in self.cells()}
        found: list[tuple[Path, int]] = []

        def look() -> bool:
            for cell in self.cells():
                record = json.loads((cell / "cell.json").read_text())
                if record["status"] == "running" and epochs_done(cell) > before.get(cell, 0) and alive(record["pid"]):
                    found.append((cell, record["pid"]))
            return bool(found) or sweep.poll() is not None

        self._wait(look)
        time.sleep(self.rng.uniform(0, 0.02) * self.runs.seconds[0])
        return self.rng.choice(found) if found else None

    def _wait(self, condition: Callable[[], bool]) -> None:
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < LONG, self.said.read_text()
            time.sleep(0.01)
