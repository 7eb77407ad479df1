"""What a sweep costs over bare runs: the figures of docs/howto/sweep.md.

    python benchmarks/sweep_overhead.py --output benchmarks/results/sweep_overhead.json

A cell's own process is what a user would start, so all that a sweep adds is: once, starting Ray and writing the study;
between two cells, handing over the next; and the processor time that the driver and Ray take from the cells. Each is
measured with cells that only wait, so that a busy machine disturbs as little as possible; beside them the same commands
are started one after another from a plain loop. The share of a real study follows from the length of its cells.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lgg import machine

from monai_fp4.study.commands import write_study
from monai_fp4.study.executor import RayExecutor
from monai_fp4.study.layout import StudyDefinition, StudyFolder
from monai_fp4.study.progress import SweepProgress
from monai_fp4.study.sweep import POLL_SECONDS, Sweep
from monai_fp4.study.worker import Task

SETTLING_SECONDS = 5.0
WAIT = """
import json, pathlib, sys, time
time.sleep(float(sys.argv[2]))
pathlib.Path(sys.argv[1], "metrics.json").write_text(json.dumps({"finished": True, "auprc": 0.5, "history": []}))
"""


class WaitingCells(Sweep):
    """A sweep whose cells wait in place of training."""

    seconds = 1.0

    def _task(self, cell: Any) -> Task:
        task = super()._task(cell)
        task["arguments"] = ["-I", "-S", "-c", WAIT, str(self.folder.run_dir(cell).resolve()), str(self.seconds)]
        return task


def processor_seconds(root: int | None = None) -> dict[int, float]:
    """User and system time of a process (default: this one) and of each below it that lives, in seconds."""
    ticks, own = os.sysconf("SC_CLK_TCK"), os.getpid() if root is None else root
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            stats[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:13])) / ticks)
    below = {own}
    for _ in range(6):
        below |= {pid for pid, (parent, _) in stats.items() if parent in below}
    return {pid: stats[pid][1] for pid in below if pid in stats}


def name_of(pid: int) -> str:
    """What a process is: its program, its script or what Ray calls it; empty where it has ended."""
    if pid == os.getpid():
        return "driver"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    scripts = [word for word in words if word.endswith(".py")]
    name = Path(scripts[0]).stem if scripts else Path(words[0].split(" ")[0]).name
    return "worker" if words[0].startswith("ray::") and "Agent" not in words[0] else name


def shares(sweep: WaitingCells, cell: Any, seconds: float) -> dict[str, float]:
    """Share of one core that each of our processes takes, while a sweep waits for a long cell as for a training."""
    sweep.seconds = seconds + 60.0
    handle = sweep.executor.submit(sweep._task(cell), sweep._needs[cell.scale])
    sweep._running[handle] = cell
    begin = time.perf_counter()
    while time.perf_counter() - begin < SETTLING_SECONDS:  # a worker that has just started is still at work
        sweep.executor.wait([handle], POLL_SECONDS)
    before, begin = processor_seconds(), time.perf_counter()
    names = {pid: name_of(pid) for pid in before}
    while time.perf_counter() - begin < seconds:
        sweep.executor.wait([handle], POLL_SECONDS)
        sweep._poll()
    after, elapsed = processor_seconds(), time.perf_counter() - begin
    found: dict[str, float] = {}
    for pid in before.keys() & after.keys():
        found[names[pid]] = found.get(names[pid], 0.0) + (after[pid] - before[pid]) / elapsed
    sweep._running.clear()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def bare(cells: int, seconds: float, folder: Path) -> float:
    """Wall seconds a cell of a plain loop over the same command."""
    begin = time.perf_counter()
    for number in range(cells):
        run_dir = folder / str(number)
        run_dir.mkdir(parents=True)
        subprocess.run([sys.executable, "-I", "-S", "-c", WAIT, str(run_dir), str(seconds)], check=True)
    return (time.perf_counter() - begin) / cells


def measure(cells: int, seconds: float, idle: float, folder: Path) -> dict[str, Any]:
    """One sweep of waiting cells, one at a time."""
    definition = StudyDefinition(
        archs=("unet",), scales=("500k",), recipes={"bf16": "bf16"}, folds=(0,), seeds=tuple(range(cells)),
        manifest="phantom", dataset_dir="data/phantom", options={"epochs": 1},
    )  # fmt: skip
    study = StudyFolder(folder)
    begin = time.perf_counter()
    executor = RayExecutor()
    ray_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    write_study(study, definition, "phantom")
    write_seconds = time.perf_counter() - begin
    cores = executor.largest_machine().cpus
    with Path(os.devnull).open("w") as nowhere:
        sweep = WaitingCells(study, definition, definition.cells(), executor, SweepProgress(nowhere), cpus=cores)
        sweep.seconds = seconds
        # One cell first: the first of all waits for Ray to start its worker.
        begin = time.perf_counter()
        handle = executor.submit(sweep._task(definition.cells()[0]), sweep._needs["500k"])
        while not executor.wait([handle], 1.0):
            pass
        first = time.perf_counter() - begin - seconds
        begin = time.perf_counter()
        close, executor.close = executor.close, lambda: None  # type: ignore[method-assign]
        sweep.run()
        wall = time.perf_counter() - begin
        by_process = shares(sweep, definition.cells()[0], idle)
        begin = time.perf_counter()
        close()
    return {
        "start_ray_seconds": ray_seconds,
        "write_study_seconds": write_seconds,
        "first_worker_seconds": first,
        "close_seconds": time.perf_counter() - begin,
        "wall_seconds_a_cell": wall / (cells - 1),
        "processor_share_of_one_core": sum(by_process.values()),
        "processor_share_by_process": {name: round(value, 5) for name, value in by_process.items()},
    }


TIMES = ("start_ray_seconds", "write_study_seconds", "first_worker_seconds", "close_seconds", "wall_seconds_a_cell")
"""By the clock, so that a busy machine makes them longer; the shares of a core are in processor time."""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.3, help="how long each waits")
    parser.add_argument("--idle", type=float, default=60.0, help="how long to watch what Ray itself takes")
    parser.add_argument("--keep_times", action="store_true", help="keep the file's times, for a busy machine")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sweep_overhead.json")
    args = parser.parse_args()
    before = json.loads(args.output.read_text()) if args.keep_times else {}
    with tempfile.TemporaryDirectory() as folder:
        alone = before.get("bare_seconds_a_cell") or bare(args.cells, args.seconds, Path(folder) / "bare")
        found = measure(args.cells, args.seconds, args.idle, Path(folder) / "study")
    found |= {name: before[name] for name in TIMES if name in before}
    once = sum(found[f"{name}_seconds"] for name in ("start_ray", "write_study", "first_worker", "close"))
    between = found["wall_seconds_a_cell"] - alone
    share = found["processor_share_of_one_core"]
    # The shortest kind of cell in docs/results.md, and one architecture of eleven recipes and three seeds.
    cell_seconds, cells = 268.0, 33
    overhead = (once / cells + between) / cell_seconds
    percent = {str(cores): round(100 * (overhead + share / cores), 3) for cores in (2, 4, 8, 16, 64)}
    content = {
        "cells": args.cells,
        "bare_seconds_a_cell": round(alone, 4),
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()},
        "once_seconds": round(once, 3),
        "between_cells_seconds": round(between, 4),
        "study_of": {"cells": cells, "seconds_a_cell": cell_seconds, "overhead_percent_by_cores": percent},
        "machine": machine(),
        "load_average_before": os.getloadavg()[0],
    }
    if before:
        kept = before.get("times_kept_from", before)
        content["times_kept_from"] = {name: kept[name] for name in ("machine", "load_average_before")}
    args.output.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
