"""Counts by score in a bounded number of cells: which scores share a cell, and what that does to AUPRC.

A cell is a dyadic interval of score keys: the keys with some top bits in common, from one single key up. Such intervals
nest or are disjoint, so that the counts of different patients or ranks add up whatever each of them has merged.

Where every distinct score cannot have a cell of its own, `partition` splits the range of keys from the top down, and
stops where an interval holds no more than a small share of the voxels that rank at or above it. That is where AUPRC
is least sensitive: precision at a voxel of rank r moves by at most share * r / r. The head of the ranking stays
exact, the long tail of background is what is merged. Within a merged cell the order is unknown, and taken as evenly
mixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from monai_fp4.metrics.keys import Keys
from monai_fp4.metrics.native import cells_natively
from monai_fp4.metrics.sources import Source, cell_source, score_source

__all__ = ["Cells", "average_precision", "average_precision_bounds", "combine"]

_ROOT = 32  # level of the interval that holds every key
_NO_COUNTS = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Cells:
    """Counts by dyadic interval of keys, from the lowest up.

    Attributes:
        low: the lowest key of each cell.
        level: the interval holds `2**level` keys; 0 is a single score.
        positives: tumour voxels in the cell.
        negatives: background voxels.
    """

    low: Keys
    level: NDArray[np.uint8]
    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]

    @classmethod
    def empty(cls) -> Cells:
        """No cells."""
        return cls(np.empty(0, np.uint32), np.empty(0, np.uint8), _NO_COUNTS, _NO_COUNTS)

    @property
    def high(self) -> Keys:
        """The highest key of each cell."""
        return (self.low + (np.uint64(1) << self.level.astype(np.uint64)) - np.uint64(1)).astype(np.uint32)

    @property
    def merged(self) -> NDArray[np.bool_]:
        """True for the cells that may hold several scores."""
        return self.level > 0


def combine(parts: Sequence[Cells], negatives: Keys | Tensor, positives: Keys | Tensor, capacity: int | None) -> Cells:
    """Add up cells and scores.

    Args:
        parts: cells, each with any partition.
        negatives: keys of more background scores, rising; a tensor of signed keys stays on its device.
        positives: keys of more tumour scores, likewise.
        capacity: the most cells of the result; None is no limit.

    Returns:
        One cell for every distinct score where they fit and where no part has merged them, else larger ones.
    """
    parts = [part for part in parts if part.low.size]
    if len(parts) > 1:
        parts = [_union(parts)]
    if parts and capacity is None and not len(negatives) and not len(positives):
        return parts[0]
    sources: list[Source] = [
        cell_source(part.low, part.high, part.level, part.positives, part.negatives) for part in parts
    ]
    sources += [score_source(keys, positive) for keys, positive in ((negatives, False), (positives, True)) if len(keys)]
    if not sources:
        return Cells.empty()
    limit = 2**_ROOT if capacity is None else capacity
    if not any(part.merged.any() for part in parts):
        distinct = [own for source in sources if (own := source.distinct(limit)) is not None]
        if len(distinct) == len(sources) and (keys := np.unique(np.concatenate(distinct))).size <= limit:
            edges = [(source.search(keys), source.search(keys, "right")) for source in sources]
            return _gather(sources, edges, keys, keys)
    total = sum(int(_mass_below(source, np.array([source.size]))[0]) for source in sources)
    share = 0.0 if capacity is None else _first_share(total, capacity)
    while True:
        found = None
        if not parts and isinstance(negatives, np.ndarray) and isinstance(positives, np.ndarray):
            found = cells_natively(negatives, positives, share, limit)
        if found is not None and found[0].size:
            return Cells(*found)
        if found is None and (cells := _partition(sources, total, share, limit)) is not None:
            return cells
        share *= 1.5


def _union(parts: Sequence[Cells]) -> Cells:
    """Add up cells alone: of those that nest the largest stays, with the counts of all that it holds."""
    low, level = (np.concatenate([getattr(part, name) for part in parts]) for name in ("low", "level"))
    order = np.argsort(low.astype(np.uint64) << np.uint64(6) | (_ROOT - level).astype(np.uint64), kind="stable")
    low, level = low[order], level[order]
    high = low + ((np.uint64(1) << level.astype(np.uint64)) - np.uint64(1))
    first = np.flatnonzero(np.append(True, low[1:] > np.maximum.accumulate(high)[:-1]))
    positives, negatives = (
        np.add.reduceat(np.concatenate([getattr(part, name) for part in parts])[order], first)
        for name in ("positives", "negatives")
    )
    return Cells(low[first], level[first], positives, negatives)


def _mass_below(source: Source, at: NDArray[np.int64]) -> NDArray[np.int64]:
    positives, negatives = source.below(at)
    if positives is None or negatives is None:
        return positives if positives is not None else negatives  # type: ignore[return-value]
    return positives + negatives


def _first_share(total: int, capacity: int) -> float:
    """Solve for the share whose cells about fill the capacity: 1 / share an e-fold of ranks beyond the exact head."""
    share = 1 / capacity
    while 1.5 / share * (1 + math.log(max(total * share, 1))) > capacity:
        share *= 1.2
    return share


def _partition(sources: Sequence[Source], total: int, share: float, limit: int) -> Cells | None:
    """Split from the top down; None if there are more cells than the limit."""
    low = np.zeros(1, np.uint32)
    edges = [(np.zeros(1, np.int64), np.full(1, source.size)) for source in sources]
    done: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = [[] for _ in sources]
    count = 0
    for level in range(_ROOT, -1, -1):
        below = sum(_mass_below(source, start) for source, (start, _) in zip(sources, edges, strict=True))
        mass = sum(_mass_below(source, end) for source, (_, end) in zip(sources, edges, strict=True)) - below
        final = mass <= np.maximum(share * (total - below), 1)
        for source, (start, end) in zip(sources, edges, strict=True):
            if source.level is not None:  # a cell of this source is the whole interval, and cannot be split
                at = np.minimum(start, source.size - 1)
                final |= (end > start) & (source.low(at) == low) & (source.level[at] == level)
        if level == 0:
            final[:] = True
        for kept, (start, end) in zip(done, edges, strict=True):
            kept.append((start[final], end[final]))
        rest = ~final
        count += int(np.count_nonzero(final))
        if count + np.count_nonzero(rest) > limit:
            return None
        if final.all():
            break
        low = low[rest]
        middle = low + np.uint32(1 << (level - 1))
        halves = []
        for source, (start, end) in zip(sources, edges, strict=True):
            start, end = start[rest], end[rest]
            cut = source.search(middle)
            halves.append((np.stack([start, cut], 1).ravel(), np.stack([cut, end], 1).ravel()))
        low = np.stack([low, middle], 1).ravel()
        filled = np.any([end > start for start, end in halves], axis=0)
        low, edges = low[filled], [(start[filled], end[filled]) for start, end in halves]
    joined = [tuple(np.concatenate(side) for side in zip(*kept, strict=True)) for kept in done]
    lows, highs = [], []
    for source, (start, end) in zip(sources, joined, strict=True):
        has, last = end > start, source.size - 1
        lows.append(np.where(has, source.low(np.minimum(start, last)), np.uint32(2**32 - 1)))
        highs.append(np.where(has, source.high(np.maximum(end - 1, 0)), np.uint32(0)))
    first, final_high = np.min(lows, axis=0), np.max(highs, axis=0)
    order = np.argsort(first)
    return _gather(sources, [(start[order], end[order]) for start, end in joined], first[order], final_high[order])


def _gather(sources: Sequence[Source], edges: Sequence[tuple], first: Keys, last: Keys) -> Cells:
    """Sum the sources between edges, into the smallest dyadic intervals from the first to the last key within."""
    counts = [np.zeros(first.size, np.int64) for _ in range(2)]
    for source, (start, end) in zip(sources, edges, strict=True):
        for total, upper, lower in zip(counts, source.below(end), source.below(start), strict=True):
            if upper is not None and lower is not None:
                total += upper - lower
    level = np.frexp((first ^ last).astype(np.float64))[1].astype(np.uint8)  # bits in which they differ
    low = (first.astype(np.uint64) >> level << level).astype(np.uint32)
    return Cells(low, level, counts[0], counts[1])


def average_precision(
    positives: NDArray[np.float64] | NDArray[np.int64],
    negatives: NDArray[np.float64] | NDArray[np.int64],
    merged: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Average precision of rows of counts, `[rows, cells]`, from the lowest score up.

    A cell of one score is one step of the curve, at its far end. In a merged cell the order is unknown: with positives
    evenly among negatives, the mean over its positives is about the precision halfway through it.

    Args:
        positives: tumour voxels, one or more in each row.
        negatives: background voxels.
        merged: `[cells]`, True where a cell may hold several scores.

    Returns:
        `[rows]`.
    """
    pos, neg = positives[:, ::-1], negatives[:, ::-1]
    tp = np.cumsum(pos, axis=1, dtype=np.float64)
    rank = tp + np.cumsum(neg, axis=1, dtype=np.float64)
    half = merged[::-1] / 2
    precision = (tp - half * np.maximum(pos - 1, 0)) / np.maximum(rank - half * np.maximum(pos + neg - 1, 0), 1)
    return np.asarray((pos * precision).sum(axis=1) / tp[:, -1])


def average_precision_bounds(cells: Cells) -> tuple[float, float]:
    """The least and the most that any order within the merged cells could give, with at least one positive."""
    pos, neg, merged = cells.positives[::-1], cells.negatives[::-1], cells.merged[::-1]
    tp, fp = np.cumsum(pos), np.cumsum(neg)
    exact = tp / (tp + fp)
    best = np.where(merged, tp / np.maximum(tp + fp - neg, 1), exact)
    worst = np.where(merged, (tp - pos + 1) / (tp - pos + 1 + fp), exact)
    return float(pos @ worst) / int(tp[-1]), float(pos @ best) / int(tp[-1])
