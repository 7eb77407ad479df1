"""What Ray and the driver take of the processor beside real cells: watches a sweep that runs, from outside.

    python benchmarks/sweep_watch.py lgg_500k --pid 1234 --seconds 1200     # the process of `monai-fp4 sweep`

`sweep_overhead` measures the same with cells that only wait, and `study_overhead` reads from a study's files how long
places stood empty. This is the third part: processor time that the cells did not get, as a share of what they got.
Everything below the sweep's process is counted, by process; what is below a worker is the cell itself. Processes are
looked at every few seconds, so the last moments of one that ends are missed, of cells and of Ray alike.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import RESULTS, write_whole
from lgg import machine
from sweep_overhead import name_of, processor_seconds

EVERY_SECONDS = 2.0
CELL = "monai.bundle"
"""In the command line of a cell's process and of the processes that it starts."""


def kind(pid: int, sweep: int) -> str:
    """What a process is: "cell", "driver", or the name of one of Ray's."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    return "driver" if pid == sweep else "cell" if CELL in command else name_of(pid)


def watch(sweep: int, seconds: float) -> dict[str, float]:
    """Processor seconds by kind of process, in a stretch of wall time; ends early with the sweep."""
    taken: defaultdict[str, float] = defaultdict(float)
    kinds: dict[int, str] = {}
    before, until = processor_seconds(sweep), time.perf_counter() + seconds
    while time.perf_counter() < until and Path(f"/proc/{sweep}").exists():
        time.sleep(EVERY_SECONDS)
        now = processor_seconds(sweep)
        for pid, value in now.items():
            kinds[pid] = kind(pid, sweep) or kinds.get(pid, "")  # not once: between fork and exec it is its parent
            taken[kinds[pid]] += value - before.get(pid, 0.0)  # all of it, of a process that is new
        before = now
    return dict(sorted(taken.items(), key=lambda item: -item[1]))


def main() -> None:
    """Watch, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the study, as benchmarks/study.py calls it")
    parser.add_argument("--pid", type=int, required=True, help="process of the sweep")
    parser.add_argument("--seconds", type=float, default=600.0)
    args = parser.parse_args()
    begin = time.perf_counter()
    taken = watch(args.pid, args.seconds)
    wall = time.perf_counter() - begin
    cells = taken.pop("cell", 0.0)
    content: dict[str, Any] = {
        "wall_seconds": round(wall, 1),
        "cell_processor_seconds": round(cells, 2),
        "sweep_processor_seconds": round(sum(taken.values()), 2),
        "by_process": {name: round(value, 2) for name, value in taken.items()},
        "share_of_cells": round(sum(taken.values()) / cells, 5) if cells else None,
        "machine": machine(),
        "load_average_after": os.getloadavg()[0],
    }
    write_whole(RESULTS / f"sweep_watch_{args.name}.json", json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
