"""The slow steps of the metrics in C++: splitting scores into keys, sorting the keys, and dividing them into cells.

All give the same bits as NumPy (`monai_fp4.metrics.keys`, `monai_fp4.metrics.cells`), which stays the definition and
takes over wherever no compiler is at hand. The source is `histogram.cpp` beside this module; `monai_fp4.compiler`
builds, caches and reports it.
"""

from __future__ import annotations

from ctypes import CDLL, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.compiler import load

__all__ = ["SOURCE", "cells_natively", "library", "sort_natively", "split_natively"]

SOURCE = Path(__file__).with_name("histogram.cpp")
"""The C++ file that is compiled."""

_Keys = tuple[NDArray[np.uint32], NDArray[np.uint32]]
_WORTH = 2**14
"""Fewer keys than this are sorted as quickly by NumPy, whose sort has no tables to fill."""


def library() -> CDLL | None:
    """The compiled functions, with their arguments declared; None where they cannot be had."""
    built = load(SOURCE, _check)
    return None if built is None else _declare(built)


def split_natively(scores: NDArray[np.float32], labels: NDArray[np.uint8]) -> _Keys | None:
    """Keys of the negatives and of the positives, unsorted.

    Args:
        scores: one axis.
        labels: as many bytes.

    Returns:
        None where there is no library, or where a score is NaN or a label neither 0 nor 1; NumPy then says which.
    """
    built = library() if scores.size else None
    return None if built is None else _split(built, scores, labels)


def sort_natively(keys: NDArray[np.uint32]) -> NDArray[np.uint32] | None:
    """The keys in rising order, in an array of their own; None where there is no library, or too few to be worth it."""
    built = library() if keys.size >= _WORTH else None
    return None if built is None else _sort(built, keys)


def cells_natively(
    negatives: NDArray[np.uint32], positives: NDArray[np.uint32], share: float, limit: int
) -> tuple[NDArray[Any], ...] | None:
    """Low key, level, positives and negatives of each cell of sorted keys, see `monai_fp4.metrics.cells`.

    Returns:
        Four arrays, empty where there would be more cells than the limit; None where there is no library.
    """
    built = library()
    return None if built is None else _cells(built, negatives, positives, share, limit)


def _cells(
    library: CDLL, negatives: NDArray[np.uint32], positives: NDArray[np.uint32], share: float, limit: int
) -> tuple[NDArray[Any], ...]:
    room = min(limit, negatives.size + positives.size)
    found = [np.empty(room, dtype) for dtype in (np.uint32, np.uint8, np.int64, np.int64)]
    negatives, positives = np.ascontiguousarray(negatives), np.ascontiguousarray(positives)
    count = library.histogram_cells(
        _address(negatives), negatives.size, _address(positives), positives.size, share, room, *map(_address, found)
    )
    return tuple(each[: max(count, 0)].copy() for each in found)


def _split(library: CDLL, scores: NDArray[np.float32], labels: NDArray[np.uint8]) -> _Keys | None:
    scores, labels = np.ascontiguousarray(scores), np.ascontiguousarray(labels)
    negatives, positives = np.empty(scores.size, np.uint32), np.empty(scores.size, np.uint32)
    found = np.zeros(2, np.int64)
    count = library.histogram_split(
        _address(scores), _address(labels), scores.size, _address(negatives), _address(positives), _address(found)
    )
    if found[0] or found[1] > 1:
        return None
    return negatives[: scores.size - count], positives[:count].copy()  # the copy lets go of an array for all


def _sort(library: CDLL, keys: NDArray[np.uint32]) -> NDArray[np.uint32]:
    ordered = np.array(keys, np.uint32, order="C")
    scratch = np.empty_like(ordered)
    library.histogram_sort(_address(ordered), _address(scratch), ordered.size)
    return ordered


def _declare(library: CDLL) -> CDLL:
    library.histogram_split.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p]
    library.histogram_split.restype = c_int64
    library.histogram_sort.argtypes = [c_void_p, c_void_p, c_int64]
    library.histogram_sort.restype = None
    library.histogram_cells.argtypes = [
        *(c_void_p, c_int64, c_void_p, c_int64),
        *(c_double, c_int64, c_void_p, c_void_p, c_void_p, c_void_p),
    ]
    library.histogram_cells.restype = c_int64
    return library


def _check(library: CDLL) -> str | None:
    """Compare the functions with NumPy on scores of every exponent and both signs."""
    _declare(library)
    bits = np.arange(1 << 12, dtype=np.uint32) * np.uint32(0x9E3779B1)  # odd, so that multiples are spread evenly
    scores = bits.view(np.float32)
    scores = np.append(scores[np.isfinite(scores)], np.float32(-0.0))
    labels = (np.arange(scores.size) % 3 == 1).view(np.uint8)
    keys = np.where(np.signbit(scores + 0), ~(scores + 0).view(np.uint32), (scores + 0).view(np.uint32) | 1 << 31)
    found = _split(library, scores, labels)
    wanted = (keys[labels == 0].astype(np.uint32), keys[labels == 1].astype(np.uint32))
    if found is None or not all(np.array_equal(*pair) for pair in zip(found, wanted, strict=True)):
        return "its keys are not NumPy's"
    if not np.array_equal(_sort(library, wanted[0]), np.sort(wanted[0])):
        return "its order is not NumPy's"
    # 3 of 7 keys are few enough for one cell; so are 2 of the upper 4, but not the last 2.
    low, level, positives, negatives = _cells(
        library, np.array([1, 2, 9, 12, 15], np.uint32), np.array([3, 10], np.uint32), 0.5, 7
    )
    right = [low.tolist(), level.tolist(), positives.tolist(), negatives.tolist()]
    return None if right == [[0, 8, 12, 15], [2, 2, 0, 0], [1, 1, 0, 0], [2, 1, 1, 1]] else "its cells are not NumPy's"


def _address(array: NDArray[Any]) -> int:
    return array.ctypes.data
