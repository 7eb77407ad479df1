"""Where volumes are: whether image and mask lie upon each other, and how a volume is turned to be looked at.

Rows run from front to back, columns from the patient's right to the left, slices from feet to head, whatever the order
in the file: axial slices as radiologists look at them. The first image of a patient says how it is turned; everything
else is laid onto it first, so that two headers that differ in their last bit are never turned apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from monai_fp4.data.readers.volume import Decoded, Place, format_size
from monai_fp4.errors import DataError

__all__ = ["corners_apart", "lay_onto", "orientation_of", "place_of", "turned", "turned_back"]

_AS_LOOKED_AT = orientations.axcodes2ornt("PLS")


def orientation_of(scan: Decoded, path: str) -> NDArray[np.float64] | None:
    """How the axes of a file have to be turned; ``None`` where it has no place.

    Raises:
        DataError: the header does not say where each of the axes points.
    """
    if scan.affine is None:
        return None
    # Rounded, or an oblique slab of 45 degrees would be turned by the last bit of its header.
    directions = scan.affine.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        directions[:3, :3] = np.round(directions[:3, :3] / np.linalg.norm(directions[:3, :3], axis=0), 3)
    axes = _axes(directions)
    if np.isnan(axes).any():
        shown = ", ".join(str([float(f"{value:g}") for value in row]) for row in scan.affine[:3])
        raise DataError(
            f"expected a header that says where each of the three axes points in {path}, found the affine {shown}; "
            "correct its sform or qform"
        )
    return orientations.ornt_transform(axes, _AS_LOOKED_AT)


def _axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """What nibabel calls an orientation, of NaN where the affine has none."""
    return orientations.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)


_PLANES = ("coronal", "sagittal", "axial")
"""What slices are called that lie along each axis of a volume as it is looked at."""


def place_of(scan: Decoded, orientation: NDArray[np.float64] | None, modalities: tuple[str, ...] = ()) -> Place | None:
    """How a file was acquired, and its channels with what; ``None`` where it has no place."""
    if scan.affine is None or orientation is None:
        return None
    spacing = [0.0, 0.0, 0.0]
    for (target, _), length in zip(orientation, np.linalg.norm(scan.affine[:3, :3], axis=0), strict=True):
        spacing[int(target)] = float(length)
    voxel = abs(float(np.linalg.det(scan.affine[:3, :3])))
    return Place((spacing[0], spacing[1], spacing[2]), _PLANES[int(orientation[2, 0])], voxel, modalities)


def lay_onto(image: Decoded, other: Decoded, path: str, other_path: str, tolerance: float) -> Decoded:
    """Turn a mask, or another channel, into the order of the image's axes.

    Args:
        image: what is laid onto, ``[C, H, W]`` or ``[C, H, W, D]``.
        other: the same with any number of channels.
        path: of the image.
        other_path: of the other.
        tolerance: how far the corners may lie apart, in voxels of the image.

    Raises:
        DataError: another size or another place.
    """
    if image.affine is None or other.affine is None:
        return _of_one_size(image, other, path, other_path)
    if image.placed != other.placed:
        told, silent = (path, other_path) if image.placed else (other_path, path)
        raise DataError(
            f"expected headers that say where all files of a patient are, found that {told} does and {silent} does not "
            "(sform and qform code 0); copy the header, or say that they lie voxel upon voxel with --header ignore"
        )
    if image.values.shape[1:] == other.values.shape[1:] and np.array_equal(image.affine, other.affine):
        return other  # nearly always
    if other.values.ndim == image.values.ndim == 4:
        axes = _axes(np.linalg.pinv(image.affine) @ other.affine)
        if np.isnan(axes).any():
            orientation_of(other, other_path)  # which says what is wrong with it
        else:
            back = orientations.inv_ornt_aff(axes, other.values.shape[1:])
            other = replace(other, values=turned(other.values, axes), affine=other.affine @ back)
            if other.partial:
                other = _padded(image, other, path, other_path)
    other = _of_one_size(image, other, path, other_path)
    assert other.affine is not None
    apart, voxels = corners_apart(image.affine, other.affine, image.values.shape[1:])
    if not voxels <= tolerance:  # NaN as well
        raise DataError(
            f"expected the files of a patient in the same place, found corners of {other_path} up to {apart:.3g} mm "
            f"({voxels:.3g} voxels) away from those of {path}; resample one of them, or say how many voxels are "
            f"harmless with --tolerance (now {tolerance:g})"
        )
    return other


def _of_one_size(image: Decoded, other: Decoded, path: str, other_path: str) -> Decoded:
    if image.values.shape[1:] != other.values.shape[1:]:
        raise DataError(
            f"expected the files of a patient to be of one size, found {format_size(image.values.shape[1:])} in "
            f"{path} and {format_size(other.values.shape[1:])} in {other_path}; resample one of them"
        )
    return other


def _padded(image: Decoded, other: Decoded, path: str, other_path: str) -> Decoded:
    """Put a part where it belongs in a background of the image's size."""
    assert image.affine is not None and other.affine is not None
    start = np.rint(np.linalg.pinv(image.affine) @ other.affine[:, 3])[:3].astype(int)
    stop = start + other.values.shape[1:]
    if (start < 0).any() or (stop > image.values.shape[1:]).any():
        raise DataError(
            f"expected {other_path} to lie within {path}, found voxels {start.tolist()} to {stop.tolist()} of an "
            f"image of {format_size(image.values.shape[1:])}; resample it to the image"
        )
    values = np.zeros((len(other.values), *image.values.shape[1:]), other.values.dtype)
    values[(slice(None), *(slice(low, high) for low, high in zip(start, stop, strict=True)))] = other.values
    affine = other.affine.copy()
    affine[:3, 3] -= other.affine[:3, :3] @ start
    return replace(other, values=values, affine=affine)


def corners_apart(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> tuple[float, float]:
    """How far the corners of a volume ``(I, J, K)`` or a slice move from one affine to another, the farthest of them.

    Returns:
        Millimetres, and voxels of ``one``.
    """
    corners = np.array([(*corner, 1.0) for corner in product(*((0, edge - 1) for edge in (*shape, 1)[:3]))]).T
    moved = ((other - one) @ corners)[:3]
    return float(np.linalg.norm(moved, axis=0).max()), float(np.abs(np.linalg.pinv(one[:3, :3]) @ moved).max())


def turned(values: NDArray[Any], orientation: NDArray[np.float64] | None) -> NDArray[Any]:
    """Apply an orientation of three axes to ``[C, I, J, K]``; ``None`` leaves it as it is."""
    if orientation is None:
        return values
    channels = [[0.0, 1.0], *([axis + 1, flip] for axis, flip in orientation)]
    return orientations.apply_orientation(values, np.array(channels))  # type: ignore[no-any-return]


def turned_back(values: NDArray[Any], orientation: NDArray[np.float64] | None) -> NDArray[Any]:
    """Undo what :func:`turned` does by the same orientation."""
    unturned = orientations.axcodes2ornt("RAS")
    return turned(values, None if orientation is None else orientations.ornt_transform(unturned, orientation))
