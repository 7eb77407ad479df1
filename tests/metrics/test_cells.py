from __future__ import annotations

from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from monai_fp4.metrics.cells import Cells, average_precision, average_precision_bounds, combine
from monai_fp4.metrics.keys import SortedScores, score_keys

SMALL = st.lists(st.integers(0, 40), max_size=60)


def keys(values) -> np.ndarray:
    return np.sort(np.array(values, np.uint32))


def none() -> np.ndarray:
    return np.empty(0, np.uint32)


def random_keys(seed: int, count: int, top: int = 2**32) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).integers(0, top, count, dtype=np.uint32))


def check_partition(cells: Cells) -> None:
    low, high = cells.low.astype(np.int64), cells.high.astype(np.int64)
    assert (low[1:] > high[:-1]).all(), "cells overlap or are not in order"
    assert (high - low + 1 == 2 ** cells.level.astype(np.int64)).all() and (low % (high - low + 1) == 0).all()
    assert (cells.positives + cells.negatives > 0).all()


@settings(deadline=None)
@given(SMALL, SMALL, SMALL, SMALL)
def test_exact_cells_are_a_counter(n1, p1, n2, p2):
    first = combine([], keys(n1), keys(p1), None)
    both = combine([first], keys(n2), keys(p2), None)
    negatives, positives = Counter(n1 + n2), Counter(p1 + p2)
    assert both.low.tolist() == sorted(negatives.keys() | positives.keys())
    assert not both.merged.any()
    assert both.negatives.tolist() == [negatives[int(k)] for k in both.low]
    assert both.positives.tolist() == [positives[int(k)] for k in both.low]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.sampled_from([2**10, 2**20, 2**32]), st.sampled_from([256, 1000]))
def test_merged_cells_partition_the_keys_and_lose_no_voxel(seed, top, capacity):
    negatives, positives = random_keys(seed, 3000, top), random_keys(seed + 1, 400, top)
    cells = combine([], negatives, positives, capacity)
    check_partition(cells)
    assert cells.low.size <= capacity
    for counts, own in ((cells.negatives, negatives), (cells.positives, positives)):
        inside = np.searchsorted(own, cells.high, "right") - np.searchsorted(own, cells.low, "left")
        np.testing.assert_array_equal(counts, inside)


def test_parts_with_different_partitions_add_up():
    parts = [combine([], random_keys(s, 4000), random_keys(s + 10, 300), 256) for s in range(3)]
    total = combine(parts, none(), none(), None)
    check_partition(total)
    assert total.negatives.sum() == 12000 and total.positives.sum() == 900
    for part in parts:  # no cell of a part is split
        at = np.searchsorted(total.low, part.low, "right") - 1
        assert (total.high[at] >= part.high).all()
    again = combine(parts[::-1], none(), none(), None)
    np.testing.assert_array_equal(total.low, again.low)


def test_the_head_of_the_ranking_stays_exact():
    negatives, positives = random_keys(0, 50_000), random_keys(1, 2000)
    cells = combine([], negatives, positives, 4096)
    assert cells.merged.any()
    assert not cells.merged[-300:].any()
    np.testing.assert_array_equal(cells.low[-300:], np.sort(np.concatenate([negatives, positives]))[-300:])


def test_bounds_hold_what_the_scores_say_and_close_when_exact():
    rng = np.random.default_rng(5)
    labels = rng.random(30_000) < 0.05
    ordered = SortedScores.of(rng.normal(size=labels.size) + 2 * labels, labels)
    exact = ordered.auprc()
    for capacity in (256, 2048, 8192):
        cells = combine([], ordered.negatives, ordered.positives, capacity)
        low, high = average_precision_bounds(cells)
        assert low <= exact <= high and high > low
        estimate = average_precision(cells.positives[None], cells.negatives[None], cells.merged)[0]
        assert low <= estimate <= high
        assert abs(estimate - exact) < 0.05 * (high - low) + 1e-7
    cells = combine([], ordered.negatives, ordered.positives, None)
    assert average_precision_bounds(cells) == pytest.approx((exact, exact), abs=1e-12)


def cells(levels, positives, negatives) -> Cells:
    low = np.arange(len(levels), dtype=np.uint32) * 16
    return Cells(low, np.array(levels, np.uint8), np.array(positives), np.array(negatives))


def in_every_order(made: Cells) -> list[float]:
    """The average precision of every order of the voxels within merged cells; in other cells they are all tied."""
    found = []
    inside = [
        sorted(set(permutations([1] * p + [0] * n))) if level else [None]
        for level, p, n in zip(made.level, made.positives, made.negatives, strict=True)
    ]
    for orders in product(*inside):
        labels, scores = [], []
        for number, (order, p, n) in enumerate(zip(orders, made.positives, made.negatives, strict=True)):
            own = [1] * p + [0] * n if order is None else list(order)
            labels += own
            scores += [number + (0 if order is None else at / 100) for at in range(len(own))]
        found.append(average_precision_score(labels, scores))
    return found


def test_only_cells_of_one_key_are_one_score():
    assert cells([0, 1, 2], [1, 1, 1], [1, 1, 1]).merged.tolist() == [False, True, True]


def test_bounds_are_the_least_and_the_most_of_every_order():
    for positives, negatives in (
        ([1, 1, 0, 2], [3, 2, 1, 1]),
        ([0, 1, 1, 1], [2, 1, 3, 0]),
        ([1, 1, 1, 1], [0, 3, 2, 2]),
    ):
        made = cells([0, 2, 3, 0], positives, negatives)
        every = in_every_order(made)
        assert average_precision_bounds(made) == pytest.approx((min(every), max(every)), abs=1e-12)
        estimate = average_precision(made.positives[None], made.negatives[None], made.merged)[0]
        assert min(every) <= estimate <= max(every)


def test_bounds_hold_every_order_of_several_positives():
    made = cells([2, 0, 3, 2], [2, 1, 3, 1], [2, 2, 1, 3])
    every = in_every_order(made)
    low, high = average_precision_bounds(made)
    assert low <= min(every) < max(every) <= high


def test_rows_are_independent():
    pos, neg = np.array([[1, 0, 2], [0, 1, 0]]), np.array([[3, 1, 0], [1, 1, 1]])
    merged = np.zeros(3, bool)
    both = average_precision(pos, neg, merged)
    single = [average_precision(pos[i : i + 1], neg[i : i + 1], merged)[0] for i in range(2)]
    assert both.tolist() == single == pytest.approx([(2 * 1 + 3 / 7) / 3, 1 / 3])


def test_no_scores_no_cells():
    assert combine([Cells.empty()], none(), none(), 256).low.size == 0


def test_many_equal_scores_are_never_merged_with_others_in_the_head():
    ones = np.full(5000, score_keys(np.array([1.0], np.float32))[0])
    cells = combine([], random_keys(2, 20_000, int(ones[0])), ones, 512)
    assert cells.low[-1] == ones[0] and cells.level[-1] == 0 and cells.positives[-1] == 5000


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 63), st.booleans()), max_size=30), max_size=5), st.integers(0, 9))
def test_cells_of_many_add_up_in_the_largest_of_those_that_nest(scores: list[list[tuple[int, bool]]], seed: int):
    rng, parts = np.random.default_rng(seed), []
    for part in scores:  # each in cells of its own: aligned intervals of random sizes
        level = rng.integers(0, 4, 64)
        level = np.array([level[key >> 3 << 3] for key in range(64)])
        counts = Counter((key >> level[key] << level[key], level[key], positive) for key, positive in part)
        intervals = sorted({(low, size) for low, size, _ in counts})
        parts.append(
            Cells(
                np.array([low for low, _ in intervals], np.uint32),
                np.array([size for _, size in intervals], np.uint8),
                *(np.array([counts[(*each, positive)] for each in intervals], np.int64) for positive in (True, False)),
            )
        )
    every = {(int(low), int(level)) for part in parts for low, level in zip(part.low, part.level, strict=True)}
    wanted = sorted(
        (low, level) for low, level in every
        if not any(o <= low and low + 2**level <= o + 2**size and size > level for o, size in every)
    )  # fmt: skip
    total = combine(parts, none(), none(), None)
    check_partition(total)
    assert list(zip(total.low.tolist(), total.level.tolist(), strict=True)) == wanted
    for positive, counts in ((True, total.positives), (False, total.negatives)):
        held = [[key for part in scores for key, each in part if each == positive and low <= key < low + 2**level]
                for low, level in wanted]  # fmt: skip
        assert counts.tolist() == [len(keys) for keys in held] and counts.dtype == np.int64
