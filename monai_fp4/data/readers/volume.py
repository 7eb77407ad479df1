"""Interface of readers: one file to decode and its result, and one patient put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.records import Reading

__all__ = ["Decoded", "Place", "Reader", "Source", "Volume", "format_size"]


@dataclass(frozen=True)
class Place:
    """How a scan was acquired, as far as its files say.

    Attributes:
        spacing: millimetres from row to row, column to column and slice to slice of the volume as it is looked at.
        plane: of the file's slices: ``"axial"``, ``"coronal"`` or ``"sagittal"``.
        voxel: cubic millimetres of a voxel; less than the product of ``spacing`` where the axes are sheared.
        modalities: what each channel was acquired with, as DICOM calls it (``"MR"``); ``""``: its file does not say.
    """

    spacing: tuple[float, float, float]
    plane: str
    voxel: float
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume:
    """One patient: image float32 ``[C, H, W, D]``; mask uint8 ``[1, H, W, D]`` of 0, 1 and 2 (not counted); place."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    place: Place | None = None


@dataclass(frozen=True)
class Source:
    """What a reader decodes.

    Attributes:
        path: the file, or the folder and series of a DICOM scan.
        data: the file's bytes; empty for a folder.
        is_mask: whether the numbers are labels and not intensities.
        reading: what the user said of the files.
    """

    path: Path
    data: bytes = field(repr=False)
    is_mask: bool = False
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Decoded:
    """One file.

    Attributes:
        values: ``[C, H, W]`` for a picture, ``[C, I, J, K]`` for a volume in the order of the file's axes; in the
        file's
            own type.
        affine: from voxels to millimetres to the right, front and head ``[4, 4]``; ``None`` where a file does not say,
            as pictures.
        partial: whether it may cover a part of the image only; outside of it, a mask is background.
        placed: whether the affine was written by somebody, and is not a header's default.
        names: what a mask's file calls its labels: a segment's name, a palette's colour.
        modality: what it was acquired with, as DICOM calls it; ``""``: the file does not say.
    """

    values: NDArray[Any]
    affine: NDArray[np.float64] | None = None
    placed: bool = True
    partial: bool = False
    names: Mapping[int, str] = field(default_factory=dict)
    modality: str = ""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A file format.

    Attributes:
        summary: what it is called in the documentation.
        suffixes: how names of such files end, in lower case.
        decode: raises ``DataError``, or whatever its library raises on a damaged file.
        files: the files behind a path, where that is not the path itself.
    """

    summary: str
    suffixes: tuple[str, ...]
    decode: Callable[[Source], Decoded]
    files: Callable[[Path], Sequence[Path]] | None = None


def format_size(shape: Sequence[int]) -> str:
    """``(16, 15)`` as ``16 x 15``."""
    return " x ".join(map(str, shape))
