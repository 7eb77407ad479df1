"""NRRD and MetaImage volumes, decoded by SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from monai_fp4.data.readers.limits import check_file, check_inside, check_size, largest_image
from monai_fp4.data.readers.volume import Decoded, Reader, Source
from monai_fp4.errors import DataError

__all__ = ["ITK", "read_image"]

_LONGEST_HEADER = 1 << 16
_MILLIMETRES = {r"um|microns?|micrometers?": 0.001, r"cm|centimeters?": 10.0, r"m|meters?": 1000.0}
"""What NRRD's own field of units may say, which ITK does not read; MetaImage and all else are in millimetres."""


def _decode(source: Source) -> Decoded:
    _files(source.path)  # which says what is missing
    header = _header(source.path)
    try:
        image = read_image(source.path)
    except RuntimeError as error:
        # ITK's own words are many lines, of which the last says what is wrong.
        raise OSError(str(error).strip().splitlines()[-1]) from error
    affine = _affine(image)
    for unit, millimetres in _MILLIMETRES.items():
        if re.search(rf'^space units:[ \t]*"({unit})"', header, re.MULTILINE | re.IGNORECASE):
            affine[:3] *= millimetres
    return Decoded(_channels(image, source), affine)


def read_image(path: Path) -> Any:
    """Read a file with ITK, once its header is known to be no larger than an image may be.

    Raises:
        DataError: its header asks for nothing or too much.
        RuntimeError: ITK's own words of a damaged file.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    check_size([*reader.GetSize(), reader.GetNumberOfComponents()], 32, path)
    return reader.Execute()


def _channels(image: Any, source: Source) -> NDArray[Any]:
    """The voxels of an ITK image as ``[C, I, J, K]``.

    Raises:
        DataError: more axes than four.
    """
    values = SimpleITK.GetArrayFromImage(image)  # K, J, I, then the values of a voxel
    parts = image.GetNumberOfComponentsPerPixel()
    channels = np.moveaxis(values, -1, 0) if parts > 1 else values[None]
    axes = image.GetDimension()
    if axes == 4:  # channels, or times, along the last axis of the file
        channels = channels.reshape(-1, *channels.shape[2:])
    elif axes not in (2, 3):
        raise DataError(f"expected 2 to 4 axes in {source.path}, found {axes}; correct the file")
    channels = channels.transpose(0, *range(channels.ndim - 1, 0, -1))
    return channels[..., None] if axes == 2 else channels


def _affine(image: Any) -> NDArray[np.float64]:
    """From voxels to millimetres to the right, front and head; ITK's run to the left, the back and the head."""
    axes = image.GetDimension()
    known = min(axes, 3)
    affine = np.eye(4)
    affine[:known, :known] = (np.reshape(image.GetDirection(), (axes, axes)) * image.GetSpacing())[:known, :known]
    affine[:known, 3] = image.GetOrigin()[:known]
    affine[:2] *= -1
    return affine


def _header(path: Path) -> str:
    """The beginning of a file; of NRRD, no more than the header."""
    with path.open("rb") as file:
        header = file.read(_LONGEST_HEADER).decode("latin-1")
    return re.split(r"\r?\n\r?\n", header, maxsplit=1)[0] if header.startswith("NRRD") else header


def _files(path: Path) -> list[Path]:
    """The file itself, and the one with its voxels where the header names another."""
    check_file(path)
    header = _header(path)
    match = re.search(
        r"^[ \t]*(?:ElementDataFile\s*[=:]|data ?file:(?!=))[ \t]*(.+?)[ \t\r]*$", header, re.MULTILINE | re.IGNORECASE
    )
    if len(header) == _LONGEST_HEADER and match is None:
        raise DataError(f"expected a header of less than 64 KiB in {path}, found a longer one; fetch it again")
    packed = re.search(r"^[ \t]*CompressedDataSize\s*[=:]\s*(\d{1,30})", header, re.MULTILINE | re.IGNORECASE)
    if packed and int(packed[1]) > largest_image():
        check_size([int(packed[1])], 32, path)
    if match is None or match[1].upper() == "LOCAL":
        return [path]
    if match[1].upper().startswith("LIST"):
        raise DataError(f"expected the voxels of {path} in one file, found a list of files; save it as .mha or .nrrd")
    voxels = path.parent / match[1]
    if not voxels.is_file():
        raise DataError(f"expected the voxels of {path} in {voxels}, found no such file; complete the data folder")
    if voxels.parent != path.parent:
        raise DataError(f"expected the voxels of {path} in the same folder, found {voxels}; move them there")
    check_file(voxels)
    check_inside(voxels, path.parent)
    return [path, voxels]


ITK = Reader(
    summary="NRRD and MetaImage volumes",
    suffixes=(".nrrd", ".nhdr", ".mha", ".mhd"),
    decode=_decode,
    files=_files,
)
