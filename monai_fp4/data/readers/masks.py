"""From the values of a mask file to lesion, background and voxels that do not count.

A mask holds labels: whole numbers, of which some are the lesion. Without a word from the user that is the one value
beside zero. Soft masks, such as resampled ones or those of JPEG files, need a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError

__all__ = ["IGNORED", "binary_mask", "looks_inverted", "values_of"]

IGNORED = 2
"""How a voxel that does not count is kept in a mask of 0 and 1."""

_NEAR = 1e-3
"""Labels in floating point may be so far off a whole number, as after a scale factor in a header."""


def values_of(mask: NDArray[Any]) -> tuple[float, ...]:
    """The distinct values of a mask in rising order, NaN last; those near a whole number as that number.

    >>> values_of(np.array([0, 0.9999999, 1, np.nan]))
    (0.0, 1.0, nan)
    """
    top = _only_value(mask)
    if top is not None:
        return tuple(sorted({*([0.0] if (mask == 0).any() else []), top}))
    values = np.unique(mask)
    return tuple(float(value) for value in np.unique(np.where(_whole(values), np.rint(values), values)))


def binary_mask(mask: NDArray[Any], paths: Sequence[str], reading: Reading) -> NDArray[np.uint8]:
    """Turn a mask into uint8 of 0, 1 (the lesion) and :data:`IGNORED`.

    Args:
        mask: ``[H, W, D]`` of any type.
        paths: the files that it comes from: one, or one a slice.
        reading: which values are the lesion, and which do not count.

    Raises:
        DataError: NaN or infinity, values that are no labels, or more than one value beside zero where it is not said
            which of them is the lesion.
    """
    if reading.mask_threshold is not None:
        above = (mask >= reading.mask_threshold).astype(np.uint8)  # NaN is below everything
        if reading.ignore_label:
            above[_whole(mask) & np.isin(np.rint(mask), reading.ignore_label)] = IGNORED
        return above
    if not reading.labels and not reading.ignore_label:
        top = _only_value(mask)
        if top is not None and np.isfinite(top):
            return (mask != 0).view(np.uint8)
    values = values_of(mask)
    if _is_soft(values):
        raise _refused(mask, paths, "whole numbers as labels in the mask", _REMEDY_SOFT, _is_soft)
    labels = mask if mask.dtype.kind in "biu" else np.rint(mask)
    ignored = np.isin(labels, reading.ignore_label) if reading.ignore_label else None
    if reading.labels:
        result = np.isin(labels, reading.labels).astype(np.uint8)
    else:
        lesion = {value for value in values if value and value not in reading.ignore_label}
        if len(lesion) > 1:
            raise _refused(
                mask, paths, "a binary mask (0 and one other value)", _REMEDY_LABELS, lambda found: len(found) > 2
            )
        result = np.isin(labels, sorted(lesion)).astype(np.uint8)
    if ignored is not None:
        result[ignored] = IGNORED
    return result


def looks_inverted(mask: NDArray[np.uint8]) -> bool:
    """Whether lesion and background of ``[H, W, D]`` seem exchanged: most voxels are lesion, and so are all corners."""
    return bool((mask[[0, 0, -1, -1], [0, -1, 0, -1]] == 1).all() and (mask == 1).mean() > 0.5)


_REMEDY_LABELS = (
    "say which are the lesion with --labels or, for a resampled or a JPEG mask, from which value on with "
    "--mask_threshold"
)
_REMEDY_SOFT = (
    "say from which value on a soft mask is the lesion with --mask_threshold (NaN is below all), or save whole labels"
)


def _only_value(mask: NDArray[Any]) -> float | None:
    """The one whole number beside 0 that a mask holds, which most do: sorting all voxels takes ten times as long."""
    top = mask.max()
    return float(top) if top == np.rint(top) and ((mask == 0) | (mask == top)).all() else None


def _whole(values: NDArray[Any]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.abs(values - np.rint(values)) <= _NEAR  # type: ignore[no-any-return]


def _is_soft(values: tuple[float, ...]) -> bool:
    return not all(np.isfinite(value) and value == round(value) for value in values)


def _refused(mask: NDArray[Any], paths: Sequence[str], wanted: str, remedy: str, wrong: Any) -> DataError:
    """Name the one file that is wrong, or the values that several files have together."""
    for index, path in enumerate(paths):
        inside = values_of(mask if len(paths) == 1 else mask[..., index])
        if wrong(inside):
            return DataError(f"expected {wanted} in {path}, found {_shown(inside)}; {remedy}")
    return DataError(
        f"expected one foreground value in all masks beside {paths[0]}, found {_shown(values_of(mask))}; {remedy}"
    )


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.9g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
