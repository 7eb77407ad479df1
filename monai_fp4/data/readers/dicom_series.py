"""DICOM series below a folder: which files make which, whatever they are called.

The path of a series is the folder, ``#`` and its UID.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue

from monai_fp4.data.readers.limits import check_file, check_size
from monai_fp4.errors import DataError, MonaiFP4Error

__all__ = [
    "SEGMENTATION",
    "SUFFIXES",
    "Series",
    "behind",
    "find_series",
    "header_of",
    "is_series",
    "is_there",
    "quiet",
    "series_files",
    "series_path",
    "text_of",
    "texts_of",
]

SEGMENTATION = "SEG"
"""What DICOM calls the modality of a segmentation."""
SUFFIXES = (".dcm", ".dicom", ".ima")
"""Endings of DICOM files; those without any are looked into."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_UID = re.compile(r"#([0-9.]+)$")


@dataclass(frozen=True)
class Series:
    """One series below a folder: its UID, the files, and the first file's header."""

    uid: str
    files: tuple[Path, ...]
    header: pydicom.Dataset

    @property
    def modality(self) -> str:
        """What it was acquired with, ``""`` where it does not say."""
        return text_of(self.header, "Modality")


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
    return path.is_file() or (is_series(path) and _folder_of(path).is_dir())


def behind(path: Path) -> Iterator[Path]:
    """A file, or the folder of a series and the links below it: what has to lie in the data folder."""
    if not is_series(path):
        yield path
        return
    yield _folder_of(path)
    yield from (file for file in _walk(_folder_of(path)) if file.is_symlink())


def _folder_of(path: Path) -> Path:
    return Path(_UID.sub("", str(path)))


def find_series(folder: Path) -> list[Series]:
    """All series below a folder, in the order of their files; those that are no DICOM are passed over.

    Raises:
        DataError: files of two patients.
    """
    found: dict[str, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    people: dict[str, Path] = {}
    for path in _walk(folder):
        header = header_of(path)
        if header is None or header.get("DirectoryRecordSequence") is not None:
            continue
        uid = text_of(header, "SeriesInstanceUID") or "none"
        if not is_series(series_path("", uid)):
            raise DataError(f"expected a SeriesInstanceUID in the DICOM file {path}, found {uid}; fetch it again")
        people.setdefault(text_of(header, "PatientID"), path)
        found[uid].append((path, header))
    if len(people) > 1:
        (one, path), (other, other_path) = list(people.items())[:2]
        raise DataError(
            f"expected one patient below {folder}, found PatientID {one!r} in {path.name} and {other!r} in "
            f"{other_path.name}; give each patient a folder"
        )
    return [Series(uid, tuple(path for path, _ in files), files[0][1]) for uid, files in found.items()]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (Path(parent) / name for name in sorted(names) if not name.startswith(".") and name != "DICOMDIR")
        yield from (path for path in visible if path.is_file())  # a pipe would be waited for


_counted, _readers, _level = threading.Lock(), 0, logging.NOTSET


@contextmanager
def quiet() -> Iterator[None]:
    """Let pydicom keep to itself what it warns of and logs, tracebacks among it: its words quote the headers."""
    global _level, _readers
    logger = logging.getLogger("pydicom")
    with _counted:  # patients are read by several threads
        _readers += 1
        if _readers == 1:
            _level = logger.level
            logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        with _counted:
            _readers -= 1
            if not _readers:
                logger.setLevel(_level)


def header_of(path: Path) -> pydicom.Dataset | None:
    """The header of a file; ``None`` where it is no DICOM file.

    Raises:
        DataError: it cannot be read, or is deflated and may unpack to more than an image may have.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            deflated = _DEFLATED in file.read(1024)
        if deflated:  # pydicom unpacks all of it, a header too; deflate packs 1032 bytes into one at most
            check_size([path.stat().st_size, 1032], 8, path)
        with quiet():
            return pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return _without_preamble(path)
    except MonaiFP4Error:
        raise
    except Exception as error:  # pydicom raises whatever a damaged element leads to
        raise DataError(
            f"expected a DICOM file in {path}, found one whose header cannot be read ({error}); fetch it again"
        ) from error


def texts_of(header: pydicom.Dataset, tag: str) -> tuple[str, ...]:
    """The values of a tag as texts; none where there is none, or none that can be understood."""
    try:
        value = header.get(tag)
        several = isinstance(value, (list, tuple, MultiValue))  # a name is a sequence too, of its letters
        return tuple(map(str, value)) if several else () if value is None else (str(value),)
    except Exception:  # pydicom understands a value when it is asked for
        return ()


def text_of(header: pydicom.Dataset, tag: str) -> str:
    """What a header says under a tag, in one line; ``""`` where that is nothing, or nothing that can be understood."""
    return " ".join(texts_of(header, tag)).strip()


def _without_preamble(path: Path) -> pydicom.Dataset | None:
    """The header of a file that is called DICOM and is written as before there was a preamble to know it by."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    with quiet():
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        except Exception:  # whatever reading noise as DICOM leads to
            return None
    return header if "SOPClassUID" in header and "SeriesInstanceUID" in header else None


def _state(path: Path) -> tuple[int, ...]:
    """What changes with a file's content; its date alone may be anything, such as that of a file that was copied."""
    status = path.stat()
    return status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1 << 17)
def _uid_of(path: Path, _changed: tuple[int, ...]) -> str:
    """The UID of a file's series, ``""`` of none; remembered, since every series of a folder asks for all files."""
    header = header_of(path)
    return "" if header is None else text_of(header, "SeriesInstanceUID")


def series_files(path: Path) -> list[Path]:
    """The files of a series, or the file itself.

    Raises:
        DataError: there are none.
    """
    match = _UID.search(str(path))
    if match is None:
        return [path]
    folder = _folder_of(path)
    files = [file for file in _walk(folder) if _uid_of(file, _state(file)) == match[1]]
    if not files:
        raise DataError(
            f"expected the files of series {match[1]} in {folder}, found none; complete the data folder or build the "
            "manifest again"
        )
    return files
