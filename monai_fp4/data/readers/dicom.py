"""DICOM series, put together from their slices or frames by position.

A series is the files of one ``SeriesInstanceUID`` below a folder, whatever they are called; its path is the folder,
``#`` and the UID. Slices are sorted by where they are and not by name or number, and a slice that is missing, twice
there or turned another way is refused: what a stack of pictures loses silently is what DICOM keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from monai_fp4.data.readers.dicom_seg import decode_segmentation
from monai_fp4.data.readers.dicom_series import SEGMENTATION, SUFFIXES, header_of, quiet, series_files
from monai_fp4.data.readers.dicom_stack import Frame, stack_frames
from monai_fp4.data.readers.itk import read_image
from monai_fp4.data.readers.limits import check_size
from monai_fp4.data.readers.volume import Decoded, Reader, Source
from monai_fp4.errors import DataError

__all__ = ["DICOM"]

_EXPLICIT = {True: ExplicitVRLittleEndian, False: ExplicitVRBigEndian}
_MEASURED = ("CT", "PT")
"""Modalities whose numbers have a unit."""


def _decode(source: Source) -> Decoded:
    files = series_files(source.path)
    with quiet():
        header = header_of(files[0])
        if header is not None and header.get("Modality") == SEGMENTATION:
            return decode_segmentation(files, source.reading, source.path)
        frames: list[Frame] = []
        for file in files:
            frames += _frames(file, sum(frame.values.size for frame in frames))
    modality = "" if header is None else str(header.get("Modality") or "")
    return replace(stack_frames(frames, source.path), modality=modality)


def _frames(path: Path, held: int) -> Iterator[Frame]:
    """The slices of one file, one or the frames of an enhanced object, if they fit beside the ``held`` numbers."""
    data = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in data.file_meta:  # from before there were such headers; pydicom saw how it is encoded
        implicit, little = data.original_encoding
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else _EXPLICIT[bool(little)]
    if "Rows" not in data or not ({"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(data.dir())):
        raise DataError(f"expected pixels in the DICOM file {path}, found none; take the series with the images")
    _check_rescale(data, path)
    count = int(data.get("NumberOfFrames") or 1)
    shape = [count, int(data.Rows or 0), int(data.get("Columns") or 0), int(data.get("SamplesPerPixel") or 1)]
    check_size(shape, int(data.get("BitsAllocated") or 32), path)
    check_size([held + math.prod(shape)], 32, path)
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
        yield Frame(channels, corner, along, spacing, path.name if count == 1 else f"{path.name} frame {number + 1}")


def _pixels(path: Path, data: pydicom.Dataset) -> NDArray[Any]:
    """The stored numbers, or colours."""
    kind = str(data.get("PhotometricInterpretation", ""))
    turned = False
    try:
        values = pixel_array(data)
        if kind == "PALETTE COLOR":
            return apply_color_lut(values, data)
    except (RuntimeError, NotImplementedError):  # pydicom has no decoder for this compression; ITK's are built in
        turned = kind == "MONOCHROME1"  # ITK sees to it, whatever the numbers mean
        values = SimpleITK.GetArrayFromImage(read_image(path))
        values = values[0] if int(data.get("NumberOfFrames") or 1) == 1 and len(values) == 1 else values
        slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
        values = values if (slope, intercept) == (1, 0) else np.rint((values - intercept) / slope)
    if turned != (kind == "MONOCHROME1" and not _has_unit(data)):  # shown with the lowest number as white
        low = -(1 << (data.BitsStored - 1)) if data.PixelRepresentation else 0
        return (2 * low + (1 << data.BitsStored) - 1) - values.astype(np.int64)
    return values


def _has_unit(data: pydicom.Dataset) -> bool:
    """Whether numbers are measured, such as Hounsfield units, and mean the same however they are to be shown."""
    return data.get("Modality") in _MEASURED or str(data.get("RescaleType") or "US") != "US"


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


DICOM = Reader(
    summary="DICOM series, sorted by position, classic or multi-frame; DICOM-SEG masks",
    suffixes=SUFFIXES,
    decode=_decode,
    files=series_files,
)
"""The reader of DICOM series."""
