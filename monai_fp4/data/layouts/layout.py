"""Interface of a layout: what it looks at, and what it finds."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from monai_fp4.data.readers import split_suffix
from monai_fp4.data.records import Split
from monai_fp4.errors import DataError

__all__ = [
    "FoundPatient",
    "Layout",
    "Listing",
    "check_pairs",
    "check_same_channels",
    "listed",
    "natural_order",
    "one_per_name",
]

PICTURE_CHANNELS: Mapping[int, tuple[str, ...]] = MappingProxyType({1: ("grey",), 3: ("red", "green", "blue")})

_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}
_FEW = 6


@dataclass(frozen=True)
class FoundPatient:
    """A patient in a data folder.

    Attributes:
        id: unique in the folder.
        group: the institution, ``""`` where the layout does not tell.
        pairs: image and mask, in order, relative to the folder. Images that share a mask are channels of one scan,
            others are slices.
        channels: their names, if files are named after them.
        person: who it is, where one person has several entries.
        files: files behind the pairs whose names are not paths, relative to the folder.
        fold: the fold that the folder itself names.
        split: the split that the folder itself names.
    """

    id: str
    group: str
    pairs: tuple[tuple[str, str], ...]
    channels: tuple[str, ...] | None = None
    person: str = ""
    files: tuple[str, ...] = ()
    fold: int | None = None
    split: Split | None = None


class Listing:
    """Every file below a data folder, links followed, apart from what operating systems leave behind.

    Names that begin with a dot (``.DS_Store``, ``._scan.nii``), ``Thumbs.db``, ``desktop.ini`` and ``__MACOSX`` are
    ignored, and so is everything below such folders.

    Args:
        root: the data folder.
        patient_pattern: a regular expression whose first group, or all of it, says who the patient of a file is.
        series: a regular expression for the descriptions or UIDs of the DICOM series that are wanted.
        named: patients that the user's own table names.

    Attributes:
        files: paths relative to the folder, with forward slashes, sorted.
    """

    def __init__(
        self,
        root: Path,
        patient_pattern: re.Pattern[str] | None = None,
        series: re.Pattern[str] | None = None,
        named: Iterable[str] = (),
    ) -> None:
        self.root, self.patient_pattern, self.series, self.named = root, patient_pattern, series, frozenset(named)
        self.files = tuple(sorted(self._walk(root, "", frozenset())))

    def _walk(self, folder: Path, prefix: str, above: frozenset[Path]) -> Iterable[str]:
        here = folder.resolve()
        if here in above:
            return  # a link to a folder that it lies in
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise DataError(
                f"expected a folder that can be opened at {folder}, found {error.strerror}; correct that"
            ) from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
                continue
            path = prefix + entry.name
            if "\\" in path or not path.isprintable() or any(0xD800 <= ord(letter) < 0xE000 for letter in path):
                raise DataError(f"expected file names of printable text in {folder}, found {entry.name!a}; rename it")
            if entry.is_dir():
                yield from self._walk(folder / entry.name, f"{path}/", above | {here})
            else:
                yield path

    @cached_property
    def folders(self) -> dict[str, tuple[str, ...]]:
        """The folders right below the root with the files in and below each, and empty ones too."""
        found: dict[str, list[str]] = {
            path.name: []
            for path in sorted(self.root.iterdir())
            if path.is_dir() and not path.name.startswith(".") and path.name.lower() not in _SYSTEM_FILES
        }
        for path in self.files:
            folder, slash, _ = path.partition("/")
            if slash:
                found.setdefault(folder, []).append(path)
        return {folder: tuple(paths) for folder, paths in found.items()}

    def below(self, folder: str) -> tuple[str, ...]:
        """Files in and below a folder, given without regard to case; empty where there is none."""
        return tuple(path for path in self.files if path.lower().startswith(f"{folder.lower()}/"))

    def patient_of(self, path: str) -> str | None:
        """Who the pattern says that a file is of; ``None`` without a pattern.

        Raises:
            DataError: the pattern does not match.
        """
        if self.patient_pattern is None:
            return None
        match = self.patient_pattern.search(path)
        if match is None or not (match[1] if match.re.groups else match[0]):
            raise DataError(
                f"expected --patient_pattern {self.patient_pattern.pattern!r} to find a patient in every name, "
                f"found none in {path}; widen it"
            )
        return str(match[1] if match.re.groups else match[0])

    def kinds(self) -> str:
        """What was seen, by the endings of names.

        >>> Listing(Path("bundles/protocols")).kinds()
        '2 .json'
        """
        counts = Counter("".join(PurePosixPath(path).suffixes[-2:]).lower()[-8:] or "no ending" for path in self.files)
        return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(_FEW)) or "nothing"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout of a data folder.

    Attributes:
        summary: one line for the help and the documentation.
        find: the patients of a folder, in any order; raises ``DataError``.
        channels: names of the channels by their number, where files are not named after them.
        numbered: file names end in slice numbers, and a gap is a missing slice.
    """

    summary: str
    find: Callable[[Listing], list[FoundPatient]]
    channels: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: PICTURE_CHANNELS)
    numbered: bool = False

    def channel_names(self, patient: FoundPatient, count: int) -> tuple[str, ...]:
        """What the ``count`` channels of a patient are called."""
        named = patient.channels or self.channels.get(count, ())
        return named if len(named) == count else tuple(f"channel_{index}" for index in range(count))


def one_per_name(paths: Iterable[str], name: Callable[[str], str | None]) -> dict[str, str]:
    """Files by what they are called, without those that are called nothing.

    Raises:
        DataError: two files of one name, such as two exports of one scan.
    """
    found: dict[str, str] = {}
    for path in paths:
        key = name(path)
        if key is not None and found.setdefault(key, path) != path:
            raise DataError(f"expected one file called {key!r}, found {found[key]} and {path}; remove one of them")
    return found


def check_pairs(images: Mapping[str, str], masks: Mapping[str, str], folder: Path) -> None:
    """Check that each image has a mask and each mask an image, given by the name that they share.

    Raises:
        DataError: one of them is alone.
    """
    for name in sorted(images.keys() - masks.keys(), key=natural_order):
        raise DataError(
            f"expected a mask for {images[name]} in {folder}, found none; an image without tumour has an empty mask"
        )
    for name in sorted(masks.keys() - images.keys(), key=natural_order):
        raise DataError(
            f"expected an image for {masks[name]} in {folder}, found none; add the image or remove the mask"
        )


def check_same_channels(patients: list[FoundPatient], root: Path) -> list[FoundPatient]:
    """Check that all patients have the channels of the first one, and return them.

    Raises:
        DataError: a patient lacks a channel, or has another one; all of them are named.
    """
    wrong = [patient for patient in patients if patient.pairs and patient.channels != patients[0].channels]
    if wrong:
        raise DataError(
            f"expected the channels {listed(patients[0].channels)} of {patients[0].id!r} in every patient of {root}, "
            f"found {listed(wrong[0].channels)} in {listed([repr(patient.id) for patient in wrong])}; add or "
            f"rename the files, or leave these patients out"
        )
    return patients


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``a_2`` before ``a_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def listed(names: Iterable[str] | None) -> str:
    """The first few names, and how many there are beside them."""
    every = list(names or ())
    return (", ".join(every[:_FEW]) or "none") + (f" and {len(every) - _FEW} more" if len(every) > _FEW else "")


def stem(path: str) -> str | None:
    """The name of a file without folders and ending; ``None`` where no reader knows the ending."""
    parts = split_suffix(PurePosixPath(path).name)
    return parts[0] if parts else None
