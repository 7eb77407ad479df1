"""Volumes from DICOM slices: sorted by their places, and refused where they make no volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.readers.volume import Decoded
from monai_fp4.errors import DataError, listed

__all__ = ["Frame", "stack_frames"]


@dataclass(frozen=True)
class Frame:
    """A slice ``[C, rows, columns]``, its corner, how rows and columns run, and millimetres between them."""

    values: NDArray[Any]
    corner: NDArray[np.float64] | None
    along: NDArray[np.float64] | None
    spacing: NDArray[np.float64] | None
    file: str


def stack_frames(frames: Sequence[Frame], path: Path) -> Decoded:
    """Sort frames by their places and put them together.

    Raises:
        DataError: frames that do not make one volume.
    """
    first = frames[0]
    if len({frame.values.shape for frame in frames}) > 1:
        other = next(frame for frame in frames if frame.values.shape != first.values.shape)
        raise DataError(
            f"expected slices of one size in {path}, found {first.values.shape} in {first.file} and "
            f"{other.values.shape} in {other.file}; give the localizer or the second size a folder of its own"
        )
    if len(frames) == 1 and (first.corner is None or first.along is None or first.spacing is None):
        return Decoded(first.values)  # a radiograph or a photograph: no place in a patient
    for name, tag in (
        ("corner", "ImagePositionPatient"), ("along", "ImageOrientationPatient"), ("spacing", "PixelSpacing"),
    ):  # fmt: skip
        absent = [frame.file for frame in frames if getattr(frame, name) is None]
        if absent:
            raise DataError(
                f"expected {tag} in every slice of {path}, found none in {listed(absent)}; convert the series "
                f"with a tool that knows its geometry"
            )
    for frame in frames:
        for name, tag in (("along", "ImageOrientationPatient"), ("spacing", "PixelSpacing")):
            if not np.allclose(getattr(frame, name), getattr(first, name), atol=1e-4):
                raise DataError(
                    f"expected one {tag} in {path}, found {_plain(getattr(first, name))} in {first.file} and "
                    f"{_plain(getattr(frame, name))} in {frame.file}; separate the series"
                )
    assert first.along is not None and first.spacing is not None
    rows, columns = first.along[3:], first.along[:3]  # where row numbers and column numbers grow
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(rows @ columns) > 1e-2 or (first.spacing <= 0).any():
        raise DataError(
            f"expected directions at right angles and spacings above 0 in {path}, found ImageOrientationPatient "
            f"{_plain(first.along)} and PixelSpacing {_plain(first.spacing)}; correct the files"
        )
    normal = np.cross(columns, rows)
    corners = np.array([frame.corner for frame in frames])
    order = np.argsort(corners @ normal, kind="stable")
    step = _step([frames[number] for number in order], (corners @ normal)[order], path)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = rows * first.spacing[0], columns * first.spacing[1]
    # From the first corner to the last, which keeps the shear of a tilted gantry.
    affine[:3, 2] = normal if step == 0 else (corners[order[-1]] - corners[order[0]]) / (len(frames) - 1)
    affine[:3, 3] = corners[order[0]]
    affine[:2] *= -1
    return Decoded(np.stack([frames[number].values for number in order], axis=-1), affine)


def _step(frames: Sequence[Frame], heights: NDArray[np.float64], path: Path) -> float:
    """Millimetres from slice to slice, 0 for a single one.

    Raises:
        DataError: two slices in one place, or a gap.
    """
    if len(frames) == 1:
        return 0.0
    steps = np.diff(heights)
    twice = np.flatnonzero(steps < 1e-3)
    if twice.size:
        names = ", ".join(f"{frames[number].file} and {frames[number + 1].file}" for number in twice[:3])
        raise DataError(
            f"expected one slice in each place of {path}, found {twice.size} places with two ({names}); "
            "separate the phases, or remove the second export"
        )
    usual = float(np.median(steps))
    gaps = np.flatnonzero(np.abs(steps - usual) > 0.05 * usual)
    if gaps.size:
        number = int(gaps[0])
        raise DataError(
            f"expected slices {usual:g} mm apart in {path}, found {steps[number]:g} mm between "
            f"{frames[number].file} and {frames[number + 1].file}; add the missing slices or resample the series"
        )
    return usual


def _plain(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:g}") for value in values]
