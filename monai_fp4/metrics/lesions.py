"""Lesions one by one: the parts of a mask that do not touch, not even by a corner, and which of them nobody found.

Counted by voxels, a small lesion that was overlooked vanishes beside a large one that was found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

__all__ = ["lesions_of", "missed_lesions", "number_lesions"]


def number_lesions(mask: NDArray[Any]) -> tuple[NDArray[np.uint32], tuple[slice, ...]]:
    """Number the lesions of a mask from 1 on, 0 around them.

    Args:
        mask: ``[H, W, D]``; what is not 0 is lesion.

    Returns:
        The numbers within the smallest box that holds all lesions, and where the box lies.
    """
    places = [np.flatnonzero(mask.any(axis=tuple(o for o in range(3) if o != axis))) for axis in range(3)]
    box = tuple(slice(int(at[0]), int(at[-1]) + 1) if at.size else slice(0) for at in places)
    inside = np.ascontiguousarray(mask[box]).astype(np.uint8)
    if not inside.size:
        return inside.astype(np.uint32), box
    parts = SimpleITK.ConnectedComponent(SimpleITK.GetImageFromArray(inside), True)
    return SimpleITK.GetArrayFromImage(parts), box


def lesions_of(mask: NDArray[Any]) -> list[int]:
    """Voxels of each lesion of a mask ``[H, W, D]``, the largest first.

    >>> lesions_of(np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]], np.uint8))
    [2]
    """
    counts = np.bincount(number_lesions(mask)[0].ravel())[1:]
    return sorted(map(int, counts), reverse=True)


def missed_lesions(reference: NDArray[np.bool_], called: NDArray[np.bool_]) -> tuple[int, int]:
    """How many lesions a reference ``[H, W, D]`` has, and of how many not one voxel was called.

    >>> reference, called = np.zeros((2, 1, 9, 1), bool)
    >>> reference[0, [0, 1, 2, 8]], called[0, 1] = True, True
    >>> missed_lesions(reference, called)
    (2, 1)
    """
    numbers, box = number_lesions(reference)
    count = int(numbers.max(initial=0))
    return count, count - len(np.unique(numbers[called[box] & (numbers > 0)]))
