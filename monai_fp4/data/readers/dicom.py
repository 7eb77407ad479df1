"""DICOM series, put together from their slices or frames by position, and DICOM segmentations.

A series is the files of one ``SeriesInstanceUID`` below a folder, whatever they are called; its path is the folder,
``#`` and the UID. Slices are sorted by where they are and not by name or number, and a slice that is missing, twice
there or turned another way is refused: what a stack of pictures loses silently is what DICOM keeps.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from monai_fp4.data.readers.volume import Decoded, Reader, Source
from monai_fp4.errors import DataError

__all__ = ["DICOM", "SEGMENTATION", "Series", "find_series", "is_series", "is_there", "series_path"]

SEGMENTATION = "SEG"
_UID = re.compile(r"#([0-9.]+)$")
_FEW = 8


@dataclass(frozen=True)
class Series:
    """One series below a folder: its UID, the files, and the first file's header."""

    uid: str
    files: tuple[Path, ...]
    header: pydicom.Dataset


def series_path(folder: str, uid: str) -> str:
    """The path of a series below a folder.

    >>> series_path("anna/mr", "1.2.3"), is_series("anna/mr#1.2.3"), is_series("anna#3.nii")
    ('anna/mr#1.2.3', True, False)
    """
    return f"{folder}#{uid}"


def is_series(path: str | Path) -> bool:
    """Whether a path names a series."""
    return _UID.search(str(path)) is not None


def is_there(path: Path) -> bool:
    """Whether a path of a manifest stands for something: a file, or the folder of a series."""
    return path.is_file() or (is_series(path) and Path(_UID.sub("", str(path))).is_dir())


def find_series(folder: Path) -> list[Series]:
    """All series below a folder, in the order of their numbers; files that are no DICOM are passed over.

    Raises:
        DataError: files of two patients.
    """
    found: dict[str, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    people: dict[str, Path] = {}
    for path in _walk(folder):
        header = _header(path)
        if header is None or header.get("DirectoryRecordSequence") is not None:
            continue
        if "SeriesInstanceUID" not in header:
            raise DataError(f"expected a SeriesInstanceUID in the DICOM file {path}, found none; fetch it again")
        people.setdefault(str(header.get("PatientID", "")), path)
        found[str(header.SeriesInstanceUID)].append((path, header))
    if len(people) > 1:
        (one, path), (other, other_path) = list(people.items())[:2]
        raise DataError(
            f"expected one patient below {folder}, found PatientID {one!r} in {path.name} and {other!r} in "
            f"{other_path.name}; give each patient a folder"
        )
    series = [Series(uid, tuple(path for path, _ in files), files[0][1]) for uid, files in found.items()]
    return sorted(series, key=lambda each: (int(each.header.get("SeriesNumber") or 0), each.uid))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith(".") and name != "DICOMDIR")


def _header(path: Path) -> pydicom.Dataset | None:
    """The header of a file; ``None`` where it is no DICOM file."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None
    except Exception as error:  # pydicom raises whatever a damaged element leads to
        raise DataError(
            f"expected a DICOM file in {path}, found one whose header cannot be read ({error}); fetch it again"
        ) from error


def _files(path: Path) -> list[Path]:
    match = _UID.search(str(path))
    if match is None:
        return [path]
    folder = Path(str(path)[: match.start()])
    files = [
        file for file in _walk(folder) if (header := _header(file)) and header.get("SeriesInstanceUID") == match[1]
    ]
    if not files:
        raise DataError(
            f"expected the files of series {match[1]} in {folder}, found none; complete the data folder or build the "
            "manifest again"
        )
    return files


def _decode(source: Source) -> Decoded:
    files = _files(source.path)
    with warnings.catch_warnings(action="ignore"):
        header = _header(files[0])
        if header is not None and header.get("Modality") == SEGMENTATION:
            return _segmentation(files, source)
        frames = [frame for file in files for frame in _frames(file)]
    return _stack(frames, source.path)


@dataclass(frozen=True)
class _Frame:
    """A slice ``[C, rows, columns]``, its corner, how rows and columns run, and millimetres between them."""

    values: NDArray[Any]
    corner: NDArray[np.float64] | None
    along: NDArray[np.float64] | None
    spacing: NDArray[np.float64] | None
    file: str


def _frames(path: Path) -> Iterator[_Frame]:
    """The slices of one file: one, or the frames of an enhanced object."""
    data = pydicom.dcmread(path, force=True)
    if "Rows" not in data or not ({"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(data.dir())):
        raise DataError(f"expected pixels in the DICOM file {path}, found none; take the series with the images")
    _check_rescale(data, path)
    count = int(data.get("NumberOfFrames") or 1)
    values = _pixels(path, data)
    values = values[None] if count == 1 else values
    for number in range(count):
        groups = [
            *([data.PerFrameFunctionalGroupsSequence[number]] if "PerFrameFunctionalGroupsSequence" in data else []),
            *(data.get("SharedFunctionalGroupsSequence") or []),
            data,
        ]
        corner = _numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3, path)
        along = _numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6, path)
        spacing = _numbers(groups, "PixelMeasuresSequence", "PixelSpacing", 2, path)
        frame = _rescaled(values[number], groups, path)
        channels = np.moveaxis(frame, -1, 0) if frame.ndim == 3 else frame[None]
        yield _Frame(channels, corner, along, spacing, path.name if count == 1 else f"{path.name} frame {number + 1}")


def _pixels(path: Path, data: pydicom.Dataset) -> NDArray[Any]:
    """The stored numbers, or colours."""
    try:
        values = pixel_array(data)
    except (RuntimeError, NotImplementedError):  # pydicom has no decoder for this compression; ITK's are built in
        image = SimpleITK.ReadImage(str(path))
        values = SimpleITK.GetArrayFromImage(image)
        values = values[0] if int(data.get("NumberOfFrames") or 1) == 1 and len(values) == 1 else values
        slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
        return values if (slope, intercept) == (1, 0) else np.rint((values - intercept) / slope)
    kind = str(data.get("PhotometricInterpretation", ""))
    if kind == "PALETTE COLOR":
        return apply_color_lut(values, data)
    if kind == "MONOCHROME1":  # shown with the lowest number as white
        low = -(1 << (data.BitsStored - 1)) if data.PixelRepresentation else 0
        return (2 * low + (1 << data.BitsStored) - 1) - values.astype(np.int64)
    return values


def _rescaled(values: NDArray[Any], groups: Sequence[pydicom.Dataset], path: Path) -> NDArray[Any]:
    for group in groups[:-1]:
        if "PixelValueTransformationSequence" in group:
            _check_rescale(group.PixelValueTransformationSequence[0], path)
            return apply_modality_lut(values, group.PixelValueTransformationSequence[0]).astype(np.float32)
    return apply_modality_lut(values, groups[-1]).astype(np.float32, copy=False)


def _check_rescale(group: pydicom.Dataset, path: Path) -> None:
    for name in ("RescaleSlope", "RescaleIntercept"):
        if name in group:
            value = group.get(name)
            if value is None or not np.isfinite(float(value)) or (name == "RescaleSlope" and float(value) == 0):
                raise DataError(f"expected a number other than 0 as {name} in {path}, found {value}; correct the file")


def _numbers(
    groups: Sequence[pydicom.Dataset], sequence: str, name: str, count: int, path: Path
) -> NDArray[np.float64] | None:
    """A tag of several numbers from a frame's own group, the shared ones or the file itself."""
    for group in groups:
        holder = group[sequence].value[0] if sequence in group and group[sequence].value else group
        if name in holder and holder.get(name) is not None:
            found = np.array(holder.get(name), dtype=np.float64).ravel()
            if len(found) != count or not np.isfinite(found).all():
                raise DataError(
                    f"expected {count} numbers as {name} in {path}, found {holder.get(name)}; correct the file"
                )
            return found
    return None


def _stack(frames: Sequence[_Frame], path: Path) -> Decoded:
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
                f"expected {tag} in every slice of {path}, found none in {_listed(absent)}; convert the series "
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


def _step(frames: Sequence[_Frame], heights: NDArray[np.float64], path: Path) -> float:
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


def _segmentation(files: Sequence[Path], source: Source) -> Decoded:
    """A DICOM-SEG as labels, the segments' numbers."""
    if len(files) > 1:
        raise DataError(f"expected one segmentation in {source.path}, found {len(files)} files; keep one")
    import highdicom  # seconds to import, and few have segmentations

    segmentation = highdicom.seg.segread(files[0])
    if segmentation.segmentation_type.value == "FRACTIONAL":
        raise DataError(
            f"expected a binary segmentation in {files[0]}, found fractional shares; save it as binary or as NIfTI"
        )
    volume = segmentation.get_volume(combine_segments=True, allow_missing_positions=True, skip_overlap_checks=False)
    affine = volume.affine.copy()
    affine[:2] *= -1
    return Decoded(np.asarray(volume.array)[None], affine, partial=True)


def _plain(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:g}") for value in values]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


DICOM = Reader(
    summary="DICOM series, sorted by position, classic or multi-frame; DICOM-SEG masks",
    suffixes=(".dcm", ".dicom", ".ima"),
    decode=_decode,
    files=_files,
)
