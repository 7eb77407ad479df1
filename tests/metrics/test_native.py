"""The compiled splitting and sorting against NumPy, bit by bit; without a compiler there is nothing to compare."""

from __future__ import annotations

import numpy as np
import pytest
from compiled_kernels import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monai_fp4.errors import DataError, NumericsError
from monai_fp4.metrics import ScoreHistogram, cells
from monai_fp4.metrics import keys as module
from monai_fp4.metrics.cells import _partition
from monai_fp4.metrics.keys import SortedScores, score_keys, sort_keys, split_keys
from monai_fp4.metrics.native import cells_natively, library, sort_natively, split_natively
from monai_fp4.metrics.sources import score_source

pytestmark = needs_compiler

BITS = hnp.arrays(np.uint32, st.integers(1, 70))


@settings(deadline=None, max_examples=200)
@given(BITS, st.integers(0, 2**32))
def test_keys_of_any_float_are_numpys(bits: np.ndarray, seed: int) -> None:
    scores = bits.view(np.float32)
    scores = np.where(np.isnan(scores), np.float32(-0.0), scores)
    labels = np.random.default_rng(seed).random(scores.size) < 0.4
    split = split_natively(scores, labels.view(np.uint8))
    assert split is not None
    for got, wanted in zip(split, (score_keys(scores[~labels]), score_keys(scores[labels])), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("top", [1, 200, 2**8, 2**16 + 3, 2**25, 2**32])
@pytest.mark.parametrize("count", [2**14, 50_001])
def test_order_is_numpys_whichever_digits_differ(top: int, count: int) -> None:
    keys = np.random.default_rng(top).integers(0, top, count, dtype=np.uint32)
    before = keys.copy()
    ordered = sort_natively(keys)
    np.testing.assert_array_equal(ordered, np.sort(keys))
    np.testing.assert_array_equal(keys, before)
    assert not np.shares_memory(ordered, keys)
    np.testing.assert_array_equal(
        sort_natively(keys[::-2]) if count > 2**15 else np.sort(keys[::-2]), np.sort(keys[::-2])
    )


def test_few_keys_are_left_to_numpy() -> None:
    keys = np.array([3, 1, 2], np.uint32)
    assert sort_natively(keys) is None
    assert sort_keys(keys).tolist() == [1, 2, 3]


def test_strided_scores_and_labels_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(400, 6)).astype(np.float32)[:, ::2], rng.random((400, 3)) < 0.3
    given = [labels, labels.astype(np.uint8), labels.astype(np.int64), labels.astype(np.float32)]
    native = [split_keys(scores, each) for each in given]
    monkeypatch.setattr(module, "split_natively", lambda *_: None)
    wanted = split_keys(scores, labels)
    for split in native:
        for got, expected in zip(split, wanted, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_what_is_wrong_is_said_as_without_it() -> None:
    with pytest.raises(NumericsError, match="NaN in 1 of 2"):
        split_keys(np.array([0.5, np.nan], np.float32), np.array([0, 1], np.uint8))
    for odd in (2, 3, 255):
        with pytest.raises(DataError, match=f"found {odd}"):
            split_keys(np.array([0.5, 0.1], np.float32), np.array([1, odd], np.uint8))


def test_the_library_that_this_machine_can_build_is_available() -> None:
    """One that miscalculates is refused, and everything else here would be computed without it."""
    assert library() is not None


@settings(deadline=None)
@given(BITS, st.integers(0, 2**32), st.floats(0, 0.5), st.integers(1, 80))
def test_cells_are_numpys(bits: np.ndarray, seed: int, share: float, limit: int) -> None:
    positive = np.random.default_rng(seed).random(bits.size) < 0.4
    negatives, positives = np.sort(bits[~positive]), np.sort(bits[positive])
    sources = [score_source(keys, label) for keys, label in ((negatives, False), (positives, True)) if keys.size]
    wanted = _partition(sources, bits.size, share, limit)
    found = cells_natively(negatives, positives, share, limit)
    assert found is not None
    if wanted is None:
        assert not found[0].size
        return
    for got, right in zip(found, (wanted.low, wanted.level, wanted.positives, wanted.negatives), strict=True):
        assert got.dtype == right.dtype
        np.testing.assert_array_equal(got, right)


def test_a_scan_of_many_scores_gets_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores = 1 / (1 + np.exp(-6 * rng.standard_normal(60_000))).astype(np.float32)
    ordered = SortedScores.of(scores, rng.random(60_000) < 0.02)
    native = ScoreHistogram(4096).add_sorted(ordered).cells
    monkeypatch.setattr(cells, "cells_natively", lambda *_: None)
    plain = ScoreHistogram(4096).add_sorted(ordered).cells
    for name in ("low", "level", "positives", "negatives"):
        np.testing.assert_array_equal(getattr(native, name), getattr(plain, name))
    assert native.merged.any() and 2000 < native.low.size <= 4096
