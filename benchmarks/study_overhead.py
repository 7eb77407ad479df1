"""What a sweep cost beside its cells, from the files that it left: the time in which a place for a cell stood empty.

A sweep of n cells at a time has n places. A place is empty while Ray starts, and between the end of a cell's process
and the start of the next one's. The starting of a cell's own process, its imports and its reading of data count as the
cell: a run started by hand has them too. What Ray and the driver take from the cells' processor time cannot be seen
here; it makes cells longer and leaves no gap, and benchmarks/sweep_overhead.py measures it.
"""

from __future__ import annotations

import bisect
from datetime import datetime
from pathlib import Path
from typing import Any

from monai_fp4.study.layout import CellStatus, StudyFolder

PAUSE = 30.0
"""Seconds from which on a gap is no cost of the sweep: it had been stopped, or the files of an attempt are gone."""


def gaps(path: Path) -> dict[str, Any] | None:
    """Empty time of the places of a sweep; None where fewer than two cells are done.

    Only the last attempt of a cell is on record, and nothing of the time in which no sweep was at work. Both leave gaps
    of `PAUSE` or more, which are counted apart and are no part of the share.

    Returns:
        `places`, `cells`, `start_seconds` (until the first process began), `cell_seconds`, `gap_seconds`, `gaps`,
        `longest_gap_seconds`, `empty_share` (starts of the places and gaps, of those and the cells), `pauses` and
        `pause_seconds`. Times are recorded in whole seconds, so a single gap is known to a second.
    """
    folder = StudyFolder(path)
    definition = folder.read_definition()
    records = [folder.record(cell) for cell in definition.cells()]
    done = [record for record in records if record.status is CellStatus.DONE and record.started and record.finished]
    if len(done) < 2 or not definition.created:
        return None
    begin = _seconds(definition.created)
    free: list[float] = []  # ends of the places, in order
    starts: list[float] = []
    between: list[float] = []
    cell_seconds = 0.0
    for start, end in sorted((_seconds(record.started), _seconds(record.finished)) for record in done):
        at = bisect.bisect_right(free, start) - 1  # the place that became free last before this start
        if at >= 0:
            between.append(start - free.pop(at))
        else:
            starts.append(start - begin)
        bisect.insort(free, end)
        cell_seconds += end - start
    gaps = [gap for gap in between if gap < PAUSE]
    pauses = [gap for gap in between if gap >= PAUSE]
    empty = sum(gaps) + sum(start for start in starts if start < PAUSE)
    return {
        "places": len(free),
        "cells": len(done),
        "start_seconds": round(min(starts), 1),
        "cell_seconds": round(cell_seconds, 1),
        "gap_seconds": round(sum(gaps), 1),
        "gaps": len(gaps),
        "longest_gap_seconds": round(max(gaps, default=0.0), 1),
        "empty_share": round(empty / (empty + cell_seconds), 5),
        "pauses": len(pauses),
        "pause_seconds": round(sum(pauses), 1),
    }


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
