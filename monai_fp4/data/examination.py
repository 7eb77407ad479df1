"""What a data folder holds, as it is read for the first time: values of masks, and channels that look wrong.

A mask that is inverted, a label that means something else in every second patient, a reader's mask among the images:
all of them train without an error and give a result that is wrong. Here they are refused or named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from monai_fp4.data.layouts import FoundPatient
from monai_fp4.data.layouts.layout import listed
from monai_fp4.data.patients import read_raw
from monai_fp4.data.readers.dicom_series import is_series
from monai_fp4.data.readers.masks import looks_inverted, values_of
from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError

__all__ = ["Examined", "Findings", "examine"]


@dataclass(frozen=True)
class Examined:
    """One patient.

    Attributes:
        channels: how many.
        slices: how many.
        values: the distinct values of the masks, NaN last.
        tumour_voxels: voxels of the lesion.
        tumour_slices: slices with at least one.
        inverted: whether lesion and background seem to be exchanged.
        two_valued: numbers of the channels that hold two values.
        copies: numbers of the channels that equal the mask.
    """

    channels: int
    slices: int
    values: tuple[float, ...]
    tumour_voxels: int
    tumour_slices: int
    inverted: bool
    two_valued: frozenset[int]
    copies: frozenset[int]


def examine(record: Mapping[str, Any]) -> Examined:
    """Read a patient; arguments and errors are those of :func:`monai_fp4.data.patients.read_patient`."""
    reading = Reading.from_json(record["reading"])
    raw = read_raw(record)
    mask = raw.volume(reading).mask[0] == 1
    two_valued, copies = set(), set()
    for number, channel in enumerate(raw.image):
        low, high = channel.min(), channel.max()
        if low < high and ((channel == low) | (channel == high)).all():
            two_valued.add(number)
            if mask.any() and np.array_equal(channel == high, mask):
                copies.add(number)
    return Examined(
        channels=len(raw.image),
        slices=mask.shape[-1],
        values=values_of(raw.mask) if reading.mask_threshold is None else (),
        tumour_voxels=int(np.count_nonzero(mask)),
        tumour_slices=int(mask.any(axis=(0, 1)).sum()),
        inverted=looks_inverted(mask.view(np.uint8)),
        two_valued=frozenset(two_valued),
        copies=frozenset(copies),
    )


@dataclass(frozen=True)
class Findings:
    """What is worth saying of a data folder.

    Attributes:
        facts: what was understood: the layout, channels, masks, their values, and files that no rule took.
        doubts: what may be wrong.
    """

    facts: tuple[str, ...]
    doubts: tuple[str, ...]

    @classmethod
    def of(
        cls,
        format: str,
        channels: Sequence[str],
        found: Sequence[FoundPatient],
        examined: Sequence[Examined],
        left_over: Sequence[str],
        reading: Reading,
        root: Path,
    ) -> Findings:
        """Put together what all patients tell.

        Raises:
            DataError: labels that mean different things, none of the labels that were asked for, or inverted masks.
        """
        counts = Counter(value for each in examined for value in each.values)
        _check_labels(found, examined, counts, reading, root)
        _check_inverted(found, examined, reading, root)
        masks = Counter(_mask_name(entry) for entry in found)
        facts = [
            f"format {format}: {len(found)} patients",
            f"channels: {', '.join(channels)}",
            f"masks: {listed([name for name, _ in masks.most_common()])}",
        ]
        if counts:
            values = [f"{value:g} in {count}" for value, count in sorted(counts.items())]
            facts.append(f"values in the masks (patients that have them): {listed(values)}{_meaning(reading)}")
        if left_over:
            facts.append(f"not read, as no rule takes them: {listed(left_over)}")
        return cls(tuple(facts), tuple(_doubts(format, channels, found, examined)))


def _check_labels(
    found: Sequence[FoundPatient],
    examined: Sequence[Examined],
    counts: Mapping[float, int],
    reading: Reading,
    root: Path,
) -> None:
    if reading.labels and not set(reading.labels) & set(counts):
        raise DataError(
            f"expected one of the labels {', '.join(map(str, reading.labels))} in the masks of {root}, found "
            f"{listed([f'{value:g}' for value in sorted(counts)])}; correct --labels"
        )
    lesion = {value: count for value, count in counts.items() if value and value not in reading.ignore_label}
    if not reading.labels and reading.mask_threshold is None and len(lesion) > 1:
        shown = ", ".join(f"{value:g} in {count} patients" for value, count in sorted(lesion.items()))
        example = {
            value: next(e.id for e, x in zip(found, examined, strict=True) if value in x.values) for value in lesion
        }
        first = ", ".join(f"{value:g} in {patient!r}" for value, patient in sorted(example.items())[:3])
        raise DataError(
            f"expected one foreground value in all masks of {root}, found {shown} ({first}); say which of them are the "
            f"lesion with --labels, all of them: --labels {' '.join(f'{value:g}' for value in sorted(lesion))}"
        )


def _check_inverted(found: Sequence[FoundPatient], examined: Sequence[Examined], reading: Reading, root: Path) -> None:
    wrong = [(entry, each) for entry, each in zip(found, examined, strict=True) if each.inverted]
    if wrong and not reading.labels and reading.mask_threshold is None:
        entry, each = wrong[0]
        value = next(f"{value:g}" for value in each.values if value)
        raise DataError(
            f"expected the lesion to be a part of each scan, found {value} in most voxels and in all corners of "
            f"{entry.pairs[0][1]} and of the masks of {len(wrong)} patients in {root}, as if lesion and "
            f"background were exchanged; say --labels 0 if they are, or --labels {value} if that is the lesion"
        )


def _doubts(
    format: str, channels: Sequence[str], found: Sequence[FoundPatient], examined: Sequence[Examined]
) -> list[str]:
    doubts = []
    for number, name in enumerate(channels):
        copies = [entry.id for entry, each in zip(found, examined, strict=True) if number in each.copies]
        if copies:
            doubts.append(
                f"channel {name!r} equals the mask in {listed(copies)}: a network that sees it learns nothing "
                f"else; move the files out of the folder unless it is meant"
            )
        elif all(number in each.two_valued for each in examined):
            doubts.append(
                f"channel {name!r} holds two values in every patient, as a mask does; move the files out of the folder "
                "unless they are meant as an input"
            )
    stems = Counter(re.sub(r"\d+$", "", entry.id) for entry in found)
    alike, count = stems.most_common(1)[0]
    if (
        format == "png"
        and count > 1
        and all(len(entry.pairs) == each.slices == 1 for entry, each in zip(found, examined, strict=True))
    ):
        doubts.append(
            f"every patient has one picture, and {count} names begin with {alike!r}: if these are slices of one "
            f"person, they must be in one fold; say who is who with --patient_pattern"
        )
    sparse = [entry.id for entry in found if format == "png" and _far_apart([image for image, _ in entry.pairs])]
    if sparse:
        doubts.append(
            f"the pictures of {listed(sparse)} have numbers far apart, as slices of one scan have not: if each picture "
            "is a patient of its own, say so with --patient_pattern, such as '([^/]+)[.]', or name each in --groups"
        )
    groups = Counter(entry.group for entry in found if entry.group)
    if len(groups) > 2 and median(groups.values()) <= 2 and not any(entry.person for entry in found):
        doubts.append(
            f"the {len(groups)} groups have {median(groups.values()):g} patients each, and groups are spread over "
            f"the folds: if they are persons, name the table's column person, which is kept together"
        )
    return doubts


def _far_apart(images: Sequence[str]) -> bool:
    """Whether the numbers that pictures' names end in leave out more than three of four.

    >>> _far_apart(["a/p_1.png", "a/p_2.png", "a/p_4.png"]), _far_apart(["a/p_461.png", "a/p_743.png"])
    (False, True)
    """
    numbers = [int(found[1]) for image in images if (found := re.search(r"(\d+)\.\w+$", image))]
    return len(numbers) > 1 and max(numbers) - min(numbers) >= 4 * len(numbers)


def _mask_name(entry: FoundPatient) -> str:
    """A mask's name without what changes from patient to patient."""
    path = entry.pairs[0][1]
    if is_series(path):
        return "DICOM-SEG"
    return re.sub(r"\d+", "*", path.replace(entry.id, "*"))


def _meaning(reading: Reading) -> str:
    lesion = f"; lesion: {', '.join(map(str, reading.labels))}" if reading.labels else ""
    ignored = f"; not counted: {', '.join(map(str, reading.ignore_label))}" if reading.ignore_label else ""
    return lesion + ignored
