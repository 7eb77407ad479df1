"""Every file below a data folder, as layouts look at them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath

from monai_fp4.errors import DataError

__all__ = ["Listing", "composed", "is_control", "is_hidden"]

_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"}
_FEW = 6


def composed(name: str) -> str:
    """A name with accents as one letter each, by which names are compared: macOS takes them apart, tables do not.

    >>> composed("Mu\u0308ller") == "M\u00fcller"
    True
    """
    return unicodedata.normalize("NFC", name)


def is_control(text: str) -> bool:
    r"""Whether there are characters that a terminal obeys (control, direction, lines) or cannot show.

    >>> is_control("p\n0"), is_control("\u5c71\u7530\u3000\u592a\u90ce")
    (True, False)
    """
    return not text.isprintable() and any(
        unicodedata.category(letter)[0] == "C" or letter in "\u2028\u2029" for letter in text
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's own: dot files, and what operating systems leave behind."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


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
        self.root, self.patient_pattern, self.series = root, patient_pattern, series
        self.named = frozenset(map(composed, named))
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
            if is_hidden(entry.name):
                continue
            path = prefix + entry.name
            if "\\" in path or is_control(path):
                raise DataError(f"expected file names of printable text in {folder}, found {entry.name!a}; rename it")
            if entry.is_dir():
                yield from self._walk(folder / entry.name, f"{path}/", above | {here})
            else:
                yield path

    @cached_property
    def folders(self) -> dict[str, tuple[str, ...]]:
        """The folders right below the root with the files in and below each, and empty ones too."""
        tops = sorted(path.name for path in self.root.iterdir() if path.is_dir() and not is_hidden(path.name))
        found: dict[str, list[str]] = {name: [] for name in tops}
        for path in self.files:
            folder, slash, _ = path.partition("/")
            if slash:
                found.setdefault(folder, []).append(path)
        return {folder: tuple(paths) for folder, paths in found.items()}

    def below(self, folder: str) -> tuple[str, ...]:
        """Files in and below a folder, given without regard to case; empty where there is none."""
        return tuple(path for path in self.files if path.lower().startswith(f"{folder.lower()}/"))

    def at(self, folder: Path) -> Listing:
        """The files of another folder, with the same options."""
        return Listing(folder, self.patient_pattern, self.series, self.named)

    def patient_of(self, path: str) -> str:
        """Who the pattern says that a file is of; ``""`` without a pattern.

        Raises:
            DataError: the pattern does not match.
        """
        if self.patient_pattern is None:
            return ""
        match = self.patient_pattern.search(path)
        found = (match[1] if match.re.groups else match[0]) if match else ""
        if not found:
            raise DataError(
                f"expected --patient_pattern {self.patient_pattern.pattern!r} to find a patient in every name, "
                f"found none in {path}; widen it"
            )
        return str(found)

    def kinds(self, folder: str = "") -> str:
        """What was seen, or seen below a folder, by the endings of names.

        >>> Listing(Path("bundles/protocols")).kinds()
        '2 .json'
        """
        files = self.below(folder) if folder else self.files
        counts = Counter("".join(PurePosixPath(path).suffixes[-2:]).lower()[-8:] or "without ending" for path in files)
        return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(_FEW)) or "nothing"
