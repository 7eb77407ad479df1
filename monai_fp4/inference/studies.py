"""Which studies a file or a tree of files holds, when there are no masks to tell.

A study is what gets one result:

* of DICOM, a series or, for a network of several channels, the series of one examination whose descriptions are the
  channels' names (`monai_fp4.inference.examinations`);
* of volumes (NIfTI, NRRD, MetaImage), a file, or the files of one folder that share all of their names but the
  channel's (``anna_flair.nii.gz`` and ``anna_t1.nii.gz``, ``flair.nii.gz`` and ``t1.nii.gz``, or nnU-Net's ``_0000``
  and ``_0001``);
* of pictures, the files of one folder that differ in the number at the end alone, which are its slices in the order of
  the numbers; a picture without such neighbours is a study of its own, and all are for a network that was trained on
  single pictures.

Files that are called like masks (``mask``, ``seg``, ``anna_3_mask.tif``) are passed over, so a data folder of a
training may be given as it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from monai_fp4.data.readers import READERS, reader_of, split_suffix
from monai_fp4.data.readers.dicom_series import header_of
from monai_fp4.errors import DataError
from monai_fp4.inference.examinations import Examinations
from monai_fp4.inference.study import Study, place_of
from monai_fp4.inference.tree import Folder, natural, walk

__all__ = ["Studies"]

_MASK = re.compile(r"(?:^|[_-])(mask|seg|segmentation|label|dseg|gt)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)[_-]?(\d+)$")


class Studies:
    """The studies of a file or a folder, found while they are asked for: a folder is read when its turn comes.

    Args:
        source: a file, a folder of DICOM files, or a tree.
        channels: what the network's channels are called, in order.
        modalities: which modalities each channel may be of, as DICOM calls them; an empty set: any.
        stacked: whether numbered pictures are the slices of one study, and not a study each.
        without: a folder to pass over, such as the one that results are written to.

    Attributes:
        files: how many there are.
        passed: how many were looked at by now.
        others: images among them that belong to no study: masks, other channels, and series beside those that fit.
        unknown: files of no known format.

    Raises:
        DataError: there is no such file or folder.
    """

    def __init__(
        self,
        source: str | Path,
        channels: Sequence[str],
        *,
        modalities: Sequence[frozenset[str]] = (),
        stacked: bool = True,
        without: Path | None = None,
    ) -> None:
        self.root, self.channels, self.without = Path(source).expanduser(), channels, without
        self.modalities = modalities or [frozenset()] * len(channels)
        self.stacked, self.passed, self.others, self.unknown = stacked, 0, 0, 0
        if not self.root.exists():
            raise DataError(f"expected a file or a folder of scans as input, found none at {self.root}; correct input")
        self.base = self.root if self.root.is_dir() else self.root.parent
        self.files = sum(len(folder.files) for folder in walk(self.root, without))

    def __iter__(self) -> Iterator[Study]:
        """The studies, folder by folder in natural order; those of DICOM come a folder later.

        Raises:
            DataError: there is no study.
        """
        self.passed, self.others, self.unknown, found = 0, 0, 0, False
        examinations = Examinations(self.base, self.channels, self.modalities)
        for folder in walk(self.root, self.without):
            for study in self._in_folder(folder, examinations):
                found = True
                yield study
            self.passed += len(folder.files)
        for study in examinations.rest():
            found = True
            yield study
        self.others += examinations.others
        if not found:
            endings = ", ".join(suffix for reader in READERS.values() for suffix in reader.suffixes)
            raise DataError(
                f"expected scans in {self.root}, found none among {self.files} files; give files of {endings}"
            )

    def _in_folder(self, folder: Folder, examinations: Examinations) -> Iterator[Study]:
        found = [Study(place_of(path, self.base), problem=why) for path, why in folder.problems]
        pictures: list[Path] = []
        volumes: list[Path] = []
        dicom: list[tuple[Path, Any]] = []
        for path in folder.files:
            parts = split_suffix(path.name)
            kind = None if parts is None else next(n for n, r in READERS.items() if r is reader_of(path))
            if kind in (None, "dicom"):
                try:
                    header = header_of(path) if _says_dicom(path) or kind == "dicom" else None
                    if header is not None:
                        dicom.append((path, header))
                    elif kind == "dicom":
                        why = "expected a DICOM file, found one that is none; fetch it again, or give it its own ending"
                        raise DataError(why)
                    else:
                        self.unknown += 1
                except DataError as error:
                    found.append(Study(place_of(path, self.base), problem=str(error)))
            elif parts is not None and (self.root == path or not _MASK.search(parts[0])):
                (pictures if kind == "pictures" else volumes).append(path)
            else:
                self.others += 1
        found += self._pictures(folder.path, pictures)
        found += self._volumes(folder.path, volumes)
        yield from sorted(found, key=lambda study: natural(study.place))
        yield from examinations.add(dicom)

    def _pictures(self, folder: Path, files: Sequence[Path]) -> Iterator[Study]:
        groups: dict[tuple[str, str], list[tuple[int, Path]]] = defaultdict(list)
        for path in files:
            stem, suffix = split_suffix(path.name) or (path.name, "")
            match = _NUMBERED.fullmatch(stem) if self.stacked else None
            groups[(match[1] if match else stem, suffix.lower())].append((int(match[2]) if match else -1, path))
        for (name, _), members in groups.items():
            if len(members) == 1:
                yield Study(place_of(members[0][1], self.base), ((str(members[0][1]),),))
                continue
            members.sort(key=lambda member: (member[0], member[1].name))
            place = place_of(folder / name if name and name != folder.name else folder, self.base)
            missing = next((b for (b, _), (a, _) in pairwise(members) if a != b + 1), None)
            why = f"expected slices that are numbered without a gap, found none after {missing}; add it, or say "
            problem = "" if missing is None else why + "--pictures single if each picture is a study"
            yield Study(place, tuple((str(path),) for _, path in members), problem)

    def _volumes(self, folder: Path, files: Sequence[Path]) -> Iterator[Study]:
        groups: dict[str, dict[str, Path]] = defaultdict(dict)
        alone: list[Path] = []
        for path in files:
            stem = (split_suffix(path.name) or ("", ""))[0]
            prefix, channel = self._channel(stem)
            if channel is None:
                alone.append(path)
            elif groups[prefix].setdefault(channel, path) != path:
                why = f"expected one file of channel '{channel}', found two; remove one"
                yield Study(place_of(path, self.base), problem=why)
        for prefix, members in groups.items():
            absent = [name for name in self.channels if name not in members]
            several = len(self.channels) > 1
            where = (folder / prefix if prefix else folder) if several else next(iter(members.values()))
            place = place_of(where, self.base)
            if absent:
                yield Study(place, problem=f"expected a file of channel '{absent[0]}', found none; add it")
            else:
                yield Study(place, (tuple(str(members[name]) for name in self.channels),))
        # Beside files that say what they are, others of one channel are other sequences of the same patients.
        if groups:
            self.others += len(alone)
        else:
            unnamed = (
                f"the file does not name its channels, which were taken to be {', '.join(self.channels)} in this order"
            )
            warnings = (unnamed,) if len(self.channels) > 1 else ()
            yield from (Study(place_of(path, self.base), ((str(path),),), warnings=warnings) for path in alone)

    def _channel(self, stem: str) -> tuple[str, str | None]:
        """What a file is called without its channel, and which one it is."""
        several = len(self.channels) > 1
        for number, name in enumerate(self.channels):
            for word in (name, f"{number:04d}") if several else (name,):
                if stem.lower() == word.lower():
                    return "", name
                if stem.lower().endswith((f"_{word.lower()}", f"-{word.lower()}", f".{word.lower()}")):
                    return stem[: -len(word) - 1], name
        return stem, None


def _says_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do; whatever else lies in a tree is not parsed.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise DataError(f"expected a file that can be opened, found {error.strerror}; correct that") from error
