"""DICOM files on their way to studies: an examination is whole when the next folder with DICOM holds nothing of it.

Archives write an examination into one folder, or its series into folders side by side, but a tree may hold many
examinations, and nobody wants to wait for the last one's headers. So what has been read is kept until a folder goes by
that adds nothing to it. Files of a series that turn up later than that make an error of their own, never a second half.

Which series of an examination are predicted, its headers say: those of the modalities that the run was trained on; for
several channels, those whose descriptions are the channels' names or hold them as a word. Localizers, segmentations and
reports are passed over, and screenshots (secondary captures, such as dose reports) beside other series.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.uid import UID

from monai_fp4.data.readers.dicom_series import SEGMENTATION, series_path, text_of, texts_of
from monai_fp4.inference.study import Study, place_of

__all__ = ["Examinations"]

_NO_IMAGES = {SEGMENTATION, "SR", "PR", "KO", "REG", "RTSTRUCT", "RTDOSE", "RTPLAN", "DOC", "RWV"}
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PEOPLE = ("PatientName", "OtherPatientNames", "OperatorsName", "ReferringPhysicianName", "PerformingPhysicianName")
_PERSONAL = (
    *_PEOPLE, "PatientID", "PatientBirthDate", "OtherPatientIDs", "AccessionNumber", "StudyID", "StudyDate",
    "SeriesDate", "AcquisitionDate", "ContentDate", "InstitutionName", "StudyDescription", "SeriesDescription",
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID",
)  # fmt: skip


@dataclass
class _Series:
    """What a series' headers say; the headers themselves are let go."""

    description: str
    modality: str
    capture: bool
    files: list[Path] = field(default_factory=list)
    personal: set[str] = field(default_factory=set)


class Examinations:
    """Takes the DICOM files of folder after folder, and gives the studies of the examinations that are whole.

    Args:
        base: the folder that places are relative to.
        channels: what the network's channels are called, in order.
        modalities: which modalities each channel may be of; an empty set: any.

    Attributes:
        others: how many series were passed over so far, beside those that fit.
    """

    def __init__(self, base: Path, channels: Sequence[str], modalities: Sequence[frozenset[str]]) -> None:
        self.base, self.channels, self.modalities, self.others = base, channels, modalities, 0
        self._open: dict[tuple[str, str], dict[str, _Series]] = {}
        self._given: set[tuple[str, str, str]] = set()

    def add(self, files: Sequence[tuple[Path, Any]]) -> Iterator[Study]:
        """Take the files of a folder with their headers; give what is whole by now."""
        touched = set()
        for path, header in files:
            if not _is_image(header):
                continue
            uid = text_of(header, "SeriesInstanceUID")
            if not uid:
                why = f"expected a SeriesInstanceUID in {path}, found none; fetch it again"
                yield Study(place_of(path, self.base), problem=why, personal=tuple(_personal(header)))
                continue
            key = text_of(header, "PatientID"), text_of(header, "StudyInstanceUID")
            touched.add(key)
            series = self._open.setdefault(key, {}).setdefault(
                uid,
                _Series(
                    text_of(header, "SeriesDescription").lower(),
                    text_of(header, "Modality").upper(),
                    text_of(header, "SOPClassUID").startswith(_CAPTURE),
                ),
            )
            series.files.append(path)
            series.personal |= _personal(header)
        if touched:
            for key in [key for key in self._open if key not in touched]:
                yield from self._whole(key)

    def rest(self) -> Iterator[Study]:
        """The studies of what is left when no folder follows."""
        while self._open:
            yield from self._whole(next(iter(self._open)))

    def _whole(self, key: tuple[str, str]) -> Iterator[Study]:
        examination = self._open.pop(key)
        known = tuple(sorted(set().union(*(series.personal for series in examination.values())) - {""}))
        late = {uid: each for uid, each in examination.items() if (*key, uid) in self._given}
        for each in late.values():
            why = (
                "expected the folders of a series side by side, found more of one that was taken for whole before; "
                "do not use its result, put its files into one folder and predict into another output_dir"
            )
            yield Study(place_of(_common(each.files), self.base), problem=why, personal=known)
        rest = {uid: each for uid, each in examination.items() if uid not in late}
        self._given |= {(*key, uid) for uid in rest}
        if rest:
            yield from self._studies(rest, known)

    def _studies(self, series: Mapping[str, _Series], personal: tuple[str, ...]) -> Iterator[Study]:
        accepted = frozenset().union(*self.modalities) if all(self.modalities) else frozenset()
        fitting = {uid: each for uid, each in series.items() if _fits(each, accepted)}
        fitting = {uid: each for uid, each in fitting.items() if not each.capture} or fitting
        place = place_of(_common(path for each in series.values() for path in each.files), self.base)
        if not fitting:
            found = ", ".join(sorted({each.modality for each in series.values()}))
            problem = (
                f"expected a series of modality {' or '.join(sorted(accepted))}, as the model was trained on, found "
                f"{found}; use a model for it, or state with --modality what may be predicted"
            )
            yield Study(place, problem=problem, personal=personal)
            return
        paths = {uid: series_path(str(_common(each.files)), uid) for uid, each in fitting.items()}
        by_channel: dict[str, list[str]] = defaultdict(list)
        for uid, each in fitting.items():
            by_channel[self._channel(each)].append(uid)
        if len(self.channels) == 1:
            groups = [[uid] for uid in by_channel[self.channels[0]] or by_channel[""]]
        elif len(fitting) == 1:  # colours, or too few channels, which the reader counts
            groups = [list(fitting)]
        else:
            groups = [[uid for name in self.channels for uid in by_channel[name]]]
            if wrong := [name for name in self.channels if len(by_channel[name]) != 1]:
                called = len(by_channel[wrong[0]])
                problem = f"expected one series called '{wrong[0]}', found {called} among {len(fitting)}; add or remove"
                yield Study(place, problem=problem, personal=personal)
                return
        self.others += len(series) - sum(map(len, groups))
        for group in groups:
            chosen = [fitting[uid] for uid in group]
            where = place_of(_common(chosen[0].files), self.base) if len(self.channels) == 1 else place
            yield Study(where, (tuple(paths[uid] for uid in group),), "", personal, self._unknown(chosen))

    def _channel(self, series: _Series) -> str:
        """The channel that a series is called after and may be, or ``""``."""
        words = re.split(r"[^a-z0-9]+", series.description)
        may = [n for n, kinds in zip(self.channels, self.modalities, strict=True) if _fits(series, kinds)]
        same = [name for name in may if name.lower() == series.description]
        return next(iter(same + [name for name in may if name.lower() in words]), "")

    def _unknown(self, series: Sequence[_Series]) -> tuple[str, ...]:
        if not all(each.modality for each in series):
            return ("the files do not say their modality, which was not compared",)
        if not all(self.modalities):
            found = ", ".join(sorted({each.modality for each in series}))
            return (
                f"the training scans did not say their modality, so that of this scan ({found}) was not compared; "
                "state it with --modality",
            )
        return ()


def _fits(series: _Series, accepted: frozenset[str]) -> bool:
    return not accepted or not series.modality or series.modality in accepted


def _is_image(header: Any) -> bool:
    if text_of(header, "Modality") in _NO_IMAGES or "LOCALIZER" in texts_of(header, "ImageType"):
        return False
    # An image whose header is cut short belongs to its series, which then is refused and not predicted without it.
    return "Rows" in header or UID(text_of(header, "SOPClassUID")).name.endswith("Image Storage")


def _personal(header: Any) -> set[str]:
    found = {tag: texts_of(header, tag) for tag in _PERSONAL}
    people = {part for tag in _PEOPLE for text in found[tag] for part in re.split(r"[\^\s,=]+", text)}
    return people | {text for texts in found.values() for text in texts}


def _common(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))
