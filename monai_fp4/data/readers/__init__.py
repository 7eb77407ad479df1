"""Read one patient from disk: check every byte, then hand out one volume and its mask.

Whatever the format, a patient becomes a :class:`Volume`: image float32 ``[C, H, W, D]`` and mask uint8 ``[1, H, W,
D]`` of 0 and 1 (2 where a voxel does not count), with slices along the last axis; in memory the slices of pictures lie
one after another, so that each can be worked on while it is in the processor's cache. Files are hashed as they are
read, so a run never trains on other data than its manifest names.

A format is a module with a :class:`Reader` and one line in :data:`READERS`. Which one reads a file, its name says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from monai_fp4.data.readers.dicom import DICOM
from monai_fp4.data.readers.dicom_series import is_series
from monai_fp4.data.readers.itk import ITK
from monai_fp4.data.readers.nifti import NIFTI, NIFTI_PAIRS
from monai_fp4.data.readers.pictures import PICTURES
from monai_fp4.data.readers.volume import Decoded, Place, Reader, Source, Volume
from monai_fp4.errors import DataError

__all__ = ["READERS", "Decoded", "Place", "Reader", "Source", "Volume", "reader_of", "split_suffix"]

READERS: Mapping[str, Reader] = MappingProxyType(
    {"pictures": PICTURES, "nifti": NIFTI, "nifti_pairs": NIFTI_PAIRS, "itk": ITK, "dicom": DICOM}
)
"""Every reader by its name."""


def reader_of(path: str | Path) -> Reader:
    """The reader of a file, by the end of its name.

    Raises:
        DataError: nothing here reads such files.
    """
    name = str(path).lower()
    for reader in READERS.values():
        if name.endswith(reader.suffixes):
            return reader
    if is_series(path):
        return DICOM
    known = ", ".join(suffix for reader in READERS.values() for suffix in reader.suffixes)
    raise DataError(f"expected a file that ends in one of {known}, found {path}; convert it to one of them")


def split_suffix(name: str) -> tuple[str, str] | None:
    """A file's name before and from the ending that a reader knows it by, or ``None`` if no reader does.

    >>> split_suffix("anna/T1.NII.gz"), split_suffix("notes.txt")
    (('anna/T1', '.NII.gz'), None)
    """
    lower = name.lower()
    known = sorted((suffix for reader in READERS.values() for suffix in reader.suffixes), key=len, reverse=True)
    for suffix in known:
        if lower.endswith(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return None
