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
_NRRD_LINE = r"[^\0-\x08\x0b-\x1f]*"
_META_LINE = r"[ \t]*([^\0- =:][^\0-\x1f=:]*=[ \t]*[^\0- ][^\0-\x08\x0b-\x1f]{0,400})?"
_DATA_FILE = (r"(?m)^[ \t]*ElementDataFile[ \t]*=[ \t]*(.+?)\r?$", r"(?mi)^[ \t]*data ?file:(?!=)[ \t]*(.+?)\r?$")
"""What names the file of the voxels, in MetaImage and in NRRD."""
_MILLIMETRES = {r"um|microns?|micrometers?": 0.001, r"cm|centimeters?": 10.0, r"m|meters?": 1000.0}
"""What NRRD's own field of units may say, which ITK does not read; MetaImage and all else are in millimetres."""


def _decode(source: Source) -> Decoded:
    _files(source.path)  # which says what is missing
    header = _header(source.path)
    try:
        image = read_image(source.path, "NrrdImageIO" if header.startswith("NRRD") else "MetaImageIO")
    except RuntimeError as error:
        # ITK's own words are many lines, of which the last says what is wrong.
        raise OSError(str(error).strip().splitlines()[-1]) from error
    affine = _affine(image)
    for unit, millimetres in _MILLIMETRES.items():
        if re.search(rf'^space units:[ \t]*"({unit})"', header, re.MULTILINE | re.IGNORECASE):
            affine[:3] *= millimetres
    return Decoded(_channels(image, source), affine)


def read_image(path: Path, format: str = "") -> Any:
    """Read a file with ITK, once its header is known to be no larger than an image may be.

    Args:
        path: the file.
        format: ITK's name of its reader; empty for whichever finds the file its own.

    Raises:
        DataError: its header asks for nothing or too much.
        RuntimeError: ITK's own words of a damaged file.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(format)
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
    """The header of a file, which names the file of its voxels in one way at most.

    ITK's parsers take other signs for the end of a line too, and read on in the next one where a value is missing. Such
    a header is refused, or ITK would open another file than was looked at.

    Raises:
        DataError: a longer header, or lines of another form.
    """
    with path.open("rb") as file:
        text = file.read(_LONGEST_HEADER).decode("latin-1")
    nrrd = text.startswith("NRRD")
    end = re.search(r"\r?\n\r?\n" if nrrd else r"(?m)^[ \t]*ElementDataFile[ \t]*=.*(\n|\Z)", text)
    if end is None and len(text) == _LONGEST_HEADER:
        raise DataError(f"expected a header of less than 64 KiB in {path}, found a longer one; fetch it again")
    header = text[: end.end()] if end else text
    if not all(
        re.fullmatch(_NRRD_LINE if nrrd else _META_LINE, line.removesuffix("\r")) for line in header.split("\n")
    ):
        raise DataError(
            f"expected a header of lines with a name and a value in {path}, found others; save it again with ITK"
        )
    return header


def _files(path: Path) -> list[Path]:
    """The file itself, and the one with its voxels where the header names another."""
    check_file(path)
    header = _header(path)
    packed = re.search(r"(?m)^[ \t]*CompressedDataSize[ \t]*=[ \t]*(\d{1,30})", header)
    if packed and int(packed[1]) > largest_image():
        check_size([int(packed[1])], 32, path)
    skipped = re.search(r"(?mi)^(?:byte|line) ?skip:[ \t]*(\d{1,30})", header)
    if skipped and int(skipped[1]) > _LONGEST_HEADER:
        raise DataError(f"expected voxels at the beginning of their file in {path}, found a skip; save it as .nii.gz")
    named = re.findall(_DATA_FILE[header.startswith("NRRD")], header)
    if not named or (named[-1] in ("LOCAL", "Local", "local") and not header.startswith("NRRD")):
        return [path]
    if len(named) > 1 or "LIST" in named[0].upper() or "%" in named[0]:
        raise DataError(f"expected the voxels of {path} in one file, found a list of files; save it as .mha or .nrrd")
    voxels = path.parent / named[0]
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
"""The reader of what SimpleITK opens beside NIfTI and DICOM."""
