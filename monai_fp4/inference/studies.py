"""Which studies a file or a tree of files holds, when there are no masks to tell.

A study is what gets one result:

* of DICOM, a series or, for a network of several channels, the series of one examination whose descriptions are the
  channels' names; localizers, segmentations and reports are passed over;
* of volumes (NIfTI, NRRD, MetaImage), a file, or the files of one folder that share all of their names but the
  channel's (``anna_flair.nii.gz`` and ``anna_t1.nii.gz``, ``flair.nii.gz`` and ``t1.nii.gz``, or nnU-Net's ``_0000``
  and ``_0001``);
* of pictures, the files of one folder that differ in the number at the end alone, which are its slices in the order of
  the numbers; a picture without such neighbours is a study of its own.

Files that are called like masks (``mask``, ``seg``, ``anna_3_mask.tif``) are passed over, so a data folder of a
training may be given as it is.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from monai_fp4.data.readers import READERS, reader_of, split_suffix
from monai_fp4.data.readers.dicom_series import SEGMENTATION, header_of, series_path
from monai_fp4.errors import DataError

__all__ = ["Study", "find_studies", "format_of"]

_MASK = re.compile(r"(?:^|[_-])(mask|seg|segmentation|label|dseg|gt)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)[_-]?(\d+)$")
_NO_IMAGES = {SEGMENTATION, "SR", "PR", "KO", "REG", "RTSTRUCT", "RTDOSE", "RTPLAN", "DOC", "RWV"}
_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "dicomdir"}


@dataclass(frozen=True)
class Study:
    """What gets one result.

    Attributes:
        place: its path below the input, without the ending.
        slices: the files of each slice, or those of one volume; each a file a channel.
        problem: why it cannot be predicted; ``""``: it can be tried.
        personal: what its headers say of the patient, which no message repeats.
    """

    place: str
    slices: tuple[tuple[str, ...], ...] = ()
    problem: str = ""
    personal: tuple[str, ...] = ()


def format_of(study: Study) -> str:
    """The name of the reader of a study, a key of :data:`monai_fp4.data.readers.READERS`."""
    reader = reader_of(study.slices[0][0])
    return next(name for name, each in READERS.items() if each is reader)


def find_studies(source: str | Path, channels: Sequence[str], *, without: Path | None = None) -> list[Study]:
    """List the studies of a file or a folder, sorted by place.

    Args:
        source: a file, a folder of DICOM files, or a tree.
        channels: what the network's channels are called, in order.
        without: a folder to pass over, such as the one that results are written to.

    Raises:
        DataError: there is no such file or folder, or no study in it.
    """
    root = Path(source).expanduser()
    if not root.exists():
        raise DataError(f"expected a file or a folder of scans as input, found none at {root}; correct input")
    files = [root] if root.is_file() else list(_walk(root, without))
    base = root.parent if root.is_file() else root
    found: list[Study] = []
    dicom: list[tuple[Path, Any]] = []
    for folder, names in _by_folder(files).items():
        others: dict[str, dict[str, Path]] = {"pictures": {}, "volumes": {}}
        for path in names:
            parts = split_suffix(path.name)
            kind = None if parts is None else next(n for n, r in READERS.items() if r is reader_of(path))
            if kind in (None, "dicom"):
                try:
                    header = header_of(path)
                except DataError as error:
                    found.append(Study(_place(path, base), problem=str(error)))
                    continue
                if header is not None:
                    dicom.append((path, header))
                elif kind == "dicom":
                    found.append(Study(_place(path, base), problem="expected a DICOM file, found one that is none"))
            elif parts is not None and (root.is_file() or not _MASK.search(parts[0])):
                others["pictures" if kind == "pictures" else "volumes"].setdefault(path.name, path)
        found += _pictures(folder, list(others["pictures"].values()), base)
        found += _volumes(folder, list(others["volumes"].values()), base, channels)
    found += _series(dicom, base, channels)
    if not found:
        endings = ", ".join(suffix for reader in READERS.values() for suffix in reader.suffixes)
        raise DataError(f"expected scans in {root}, found none among {len(files)} files; give files of {endings}")
    return sorted(found, key=lambda study: [_natural(part) for part in study.place.split("/")])


def _walk(root: Path, without: Path | None) -> Iterator[Path]:
    hidden = without.resolve() if without is not None else None
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name.lower() not in _SYSTEM and (Path(parent) / name).resolve() != hidden
        )
        yield from (
            Path(parent) / name
            for name in sorted(names)
            if not name.startswith(".") and name.lower() not in _SYSTEM and (Path(parent) / name).is_file()
        )


def _by_folder(files: Iterable[Path]) -> Mapping[Path, list[Path]]:
    found: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        found[path.parent].append(path)
    return found


def _place(path: Path, base: Path) -> str:
    relative = path.relative_to(base)
    if not relative.name:
        return "study"
    parts = split_suffix(relative.name)
    return relative.with_name(parts[0] if parts and parts[0] else relative.name).as_posix()


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _pictures(folder: Path, files: Sequence[Path], base: Path) -> Iterator[Study]:
    groups: dict[tuple[str, str], list[tuple[int, Path]]] = defaultdict(list)
    for path in files:
        stem, suffix = split_suffix(path.name) or (path.name, "")
        match = _NUMBERED.fullmatch(stem)
        groups[(match[1] if match else stem, suffix.lower())].append((int(match[2]) if match else -1, path))
    for (name, _), members in groups.items():
        if len(members) == 1:
            yield Study(_place(members[0][1], base), ((str(members[0][1]),),))
            continue
        members.sort(key=lambda member: (member[0], member[1].name))
        place = _place(folder / name, base) if name and name != folder.name else _place(folder, base)
        missing = next((b for (b, _), (a, _) in pairwise(members) if a != b + 1), None)
        problem = (
            "" if missing is None else f"slices are numbered without a gap, but the one after {missing} is not there"
        )
        yield Study(place, tuple((str(path),) for _, path in members), problem)


def _volumes(folder: Path, files: Sequence[Path], base: Path, channels: Sequence[str]) -> Iterator[Study]:
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    alone: list[Path] = []
    for path in files:
        stem = (split_suffix(path.name) or ("", ""))[0]
        prefix, channel = _channel(stem, channels)
        if channel is None:
            alone.append(path)
        elif groups[prefix].setdefault(channel, path) != path:
            yield Study(_place(path, base), problem=f"expected one file of channel '{channel}', found two; remove one")
    for prefix, members in groups.items():
        absent = [name for name in channels if name not in members]
        place = _place(folder / prefix if prefix else folder, base) if len(channels) > 1 else None
        first = next(iter(members.values()))
        if absent:
            yield Study(
                place or _place(first, base), problem=f"expected a file of channel '{absent[0]}', found none; add it"
            )
        else:
            yield Study(place or _place(first, base), (tuple(str(members[name]) for name in channels),))
    # Beside files that say what they are, others of one channel are other sequences of the same patients.
    if not groups:
        yield from (Study(_place(path, base), ((str(path),),)) for path in alone)


def _channel(stem: str, channels: Sequence[str]) -> tuple[str, str | None]:
    """What a file is called without its channel, and which one it is."""
    for number, name in enumerate(channels):
        for word in (name, f"{number:04d}") if len(channels) > 1 else (name,):
            if stem.lower() == word.lower():
                return "", name
            if stem.lower().endswith((f"_{word.lower()}", f"-{word.lower()}", f".{word.lower()}")):
                return stem[: -len(word) - 1], name
    return stem, None


_PERSONAL = (
    "PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "AccessionNumber", "StudyID", "StudyDate",
    "SeriesDate", "AcquisitionDate", "ContentDate", "InstitutionName", "ReferringPhysicianName", "StudyDescription",
    "SeriesDescription", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip


def _series(files: Sequence[tuple[Path, Any]], base: Path, channels: Sequence[str]) -> Iterator[Study]:
    examinations: dict[tuple[str, str], dict[str, list[tuple[Path, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path, header in files:
        if (
            _text(header, "Modality") in _NO_IMAGES
            or "LOCALIZER" in _texts(header, "ImageType")
            or "Rows" not in header
        ):
            continue
        uid = _text(header, "SeriesInstanceUID")
        if not uid:
            yield Study(
                _place(path, base), problem=f"expected a SeriesInstanceUID in {path}, found none; fetch it again"
            )
            continue
        examinations[(_text(header, "PatientID"), _text(header, "StudyInstanceUID"))][uid].append((path, header))
    for series in examinations.values():
        yield from _examination(series, base, channels)


def _examination(
    series: Mapping[str, Sequence[tuple[Path, Any]]], base: Path, channels: Sequence[str]
) -> Iterator[Study]:
    """The studies of one examination, given its files by series."""
    members = [member for files in series.values() for member in files]
    personal = {text for _, header in members for tag in _PERSONAL for text in _texts(header, tag)}
    personal |= {text for path, _ in members for text in (path.name, path.stem, *path.relative_to(base).parts)}
    folders = {uid: _common(path for path, _ in files) for uid, files in series.items()}
    paths = {uid: series_path(str(folder), uid) for uid, folder in folders.items()}
    by_channel: dict[str, list[str]] = defaultdict(list)
    for uid, files in series.items():
        description = _text(files[0][1], "SeriesDescription").lower()
        same = [name for name in channels if name.lower() == description]
        within = [name for name in channels if name.lower() in re.split(r"[^a-z0-9]+", description)]
        by_channel[next(iter(same + within), "")].append(uid)
    known = tuple(sorted(personal - {""}))
    if len(channels) == 1:
        for uid in by_channel[channels[0]] or by_channel[""]:
            yield Study(_place(folders[uid], base), ((paths[uid],),), personal=known)
        return
    place = _place(_common(path for path, _ in members), base)
    wrong = [name for name in channels if len(by_channel[name]) != 1]
    if len(series) == 1:  # colours, or too few channels, which the reader counts
        yield Study(place, (tuple(paths.values()),), personal=known)
    elif wrong:
        found = len(by_channel[wrong[0]])
        problem = f"expected one series called '{wrong[0]}', found {found} among {len(series)}; add or remove"
        yield Study(place, problem=problem, personal=known)
    else:
        yield Study(place, (tuple(paths[by_channel[name][0]] for name in channels),), personal=known)


def _common(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _text(header: Any, tag: str) -> str:
    return " ".join(_texts(header, tag)).strip()


def _texts(header: Any, tag: str) -> tuple[str, ...]:
    """The values of a tag; none where there is none, or none that can be understood."""
    try:
        value = header.get(tag)
        several = not isinstance(value, str) and isinstance(value, Iterable)
        return tuple(map(str, value)) if several else () if value is None else (str(value),)
    except Exception:  # pydicom understands a value when it is asked for
        return ()
