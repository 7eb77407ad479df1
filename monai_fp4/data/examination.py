"""What a data folder holds, as it is read for the first time: values of masks, and channels that look wrong.

A mask that is inverted, a label that means something else in every second patient, a reader's mask among the images:
all of them train without an error and give a result that is wrong. Here they are refused or named.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.doubts import doubts_of
from monai_fp4.data.identity import voxel_keys
from monai_fp4.data.layouts import FoundPatient
from monai_fp4.data.patients import Raw, read_raw
from monai_fp4.data.readers.dicom_series import is_series
from monai_fp4.data.readers.masks import looks_inverted, values_of
from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError, listed

__all__ = ["Examined", "Findings", "examine", "examine_raw"]

_FEW_VALUES = 6
_ALIKE = 0.9


@dataclass(frozen=True)
class Examined:
    """One patient.

    Attributes:
        channels: how many.
        slices: how many.
        values: the distinct values of the masks, NaN last.
        tumour_voxels: voxels of the lesion.
        tumour_slices: slices with at least one.
        share: of all voxels, those of the lesion.
        below_threshold: the values beside 0 of a mask of which none reaches the threshold.
        inverted: whether lesion and background seem to be exchanged.
        few_valued: numbers of the channels that hold one to six values, with how many these are.
        copies: numbers of the channels that equal the mask or nearly do.
        names: what the masks' files call their labels, each a pair of label and name.
        voxels: what tells the channels, whatever files they were in.
    """

    channels: int
    slices: int
    values: tuple[float, ...]
    tumour_voxels: int
    tumour_slices: int
    share: float
    below_threshold: tuple[float, ...]
    inverted: bool
    few_valued: Mapping[int, int]
    copies: frozenset[int]
    names: frozenset[tuple[int, str]]
    voxels: tuple[str, ...]


def examine(record: Mapping[str, Any]) -> Examined:
    """Read a patient; arguments and errors are those of :func:`monai_fp4.data.patients.read_patient`."""
    return examine_raw(read_raw(record), Reading.from_json(record["reading"]))


def examine_raw(raw: Raw, reading: Reading) -> Examined:
    """Examine a patient that was read; errors are those of :meth:`monai_fp4.data.patients.Raw.volume`."""
    mask, soft = raw.volume(reading).mask[0] == 1, reading.mask_threshold is not None
    few_valued = {number: count for number, channel in enumerate(raw.image) if (count := _few_values(channel))}
    copies = {number for number, channel in enumerate(raw.image) if _alike(channel, mask)}
    return Examined(
        channels=len(raw.image),
        slices=mask.shape[-1],
        values=() if soft else values_of(raw.mask),
        tumour_voxels=int(np.count_nonzero(mask)),
        share=float(mask.mean()),
        tumour_slices=int(mask.any(axis=(0, 1)).sum()),
        below_threshold=tuple(v for v in values_of(raw.mask) if v > 0) if soft and not mask.any() else (),
        inverted=looks_inverted(mask.view(np.uint8)),
        few_valued=few_valued,
        copies=frozenset(copies),
        names=raw.names,
        voxels=voxel_keys(raw.image),
    )


def _few_values(channel: NDArray[np.float32]) -> int:
    """How many values a channel holds, as a map of labels does; 0 where they are more than six."""
    some = np.unique(channel[::7, ::7])
    values = np.unique(channel) if len(some) <= _FEW_VALUES else some
    return len(values) if len(values) <= _FEW_VALUES else 0


def _alike(channel: NDArray[np.float32], mask: NDArray[np.bool_]) -> bool:
    """Whether a channel tells the mask, or its opposite: their correlation is above 0.9."""
    spread = float(channel.std(dtype=np.float64))
    share = float(mask.mean())
    if spread == 0 or share in (0.0, 1.0):
        return False
    apart = float(channel[mask].mean(dtype=np.float64) - channel[~mask].mean(dtype=np.float64))
    return abs(apart) * math.sqrt(share * (1 - share)) > _ALIKE * spread  # the point-biserial correlation


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
        named: bool = False,
    ) -> Findings:
        """Put together what all patients tell; ``named``: whether the user's own table or pattern says who is who.

        Raises:
            DataError: labels that mean different things, none of the labels that were asked for, or inverted masks.
        """
        counts = Counter(value for each in examined for value in each.values)
        seen = list(zip(found, examined, strict=True))
        _check_labels(seen, counts, reading, root)
        _check_names(seen, reading, root)
        _check_threshold(seen, reading, root)
        _check_inverted(seen, reading, root)
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
        return cls(tuple(facts), tuple(doubts_of(format, channels, found, examined, reading, named)))


Seen = Sequence[tuple[FoundPatient, Examined]]


def _check_labels(seen: Seen, counts: Mapping[float, int], reading: Reading, root: Path) -> None:
    if reading.labels and not set(reading.labels) & set(counts):
        raise DataError(
            f"expected one of the labels {', '.join(map(str, reading.labels))} in the masks of {root}, found "
            f"{listed([f'{value:g}' for value in sorted(counts)])}; correct --labels"
        )
    lesion = {value: count for value, count in counts.items() if value and value not in reading.ignore_label}
    if not reading.labels and reading.mask_threshold is None and len(lesion) > 1:
        shown = ", ".join(f"{value:g} in {count} patients" for value, count in sorted(lesion.items()))
        example = {value: next(entry.id for entry, each in seen if value in each.values) for value in lesion}
        first = ", ".join(f"{value:g} in {patient!r}" for value, patient in sorted(example.items())[:3])
        raise DataError(
            f"expected one foreground value in all masks of {root}, found {shown} ({first}); say which of them are the "
            f"lesion with --labels, all of them: --labels {' '.join(f'{value:g}' for value in sorted(lesion))}"
        )


def _check_names(seen: Seen, reading: Reading, root: Path) -> None:
    """See that what one mask's file calls lesion is the lesion in all."""
    lesion: dict[bool, dict[str, tuple[int, str]]] = {True: {}, False: {}}
    for entry, each in seen:
        for label, name in sorted(each.names) if reading.labels else ():
            chosen = label in reading.labels
            lesion[chosen].setdefault(name, (label, entry.id))
            if name in lesion[not chosen] and lesion[not chosen][name][1] != entry.id:
                other, patient = lesion[not chosen][name]
                raise DataError(
                    f"expected labels to mean the same in all masks of {root}, found that {name!r} is {other} in "
                    f"{patient!r} and {label} in {entry.id!r}, of which --labels names one; save them alike"
                )


def _check_threshold(seen: Seen, reading: Reading, root: Path) -> None:
    """See that no mask of labels, stored in another range than the soft ones, counts as empty."""
    wrong = {entry.id: each.below_threshold[0] for entry, each in seen if len(each.below_threshold) == 1}
    if wrong:
        raise DataError(
            f"expected masks that --mask_threshold {reading.mask_threshold:g} divides in {root}, found 0 and "
            f"{next(iter(wrong.values())):g} alone in {listed(wrong)}, which would be empty; save all masks in one "
            "range, or lower the threshold"
        )


def _check_inverted(seen: Seen, reading: Reading, root: Path) -> None:
    wrong = [(entry, each) for entry, each in seen if each.inverted]
    if wrong and not reading.labels and reading.mask_threshold is None:
        entry, each = wrong[0]
        value = next(f"{value:g}" for value in each.values if value)
        raise DataError(
            f"expected the lesion to be a part of each scan, found {value} in most voxels and in all corners of "
            f"{entry.pairs[0][1]} and of the masks of {len(wrong)} patients in {root}, as if lesion and "
            f"background were exchanged; say --labels 0 if they are, or --labels {value} if that is the lesion"
        )


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
