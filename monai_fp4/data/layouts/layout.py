"""Interface of a layout: what it finds in a :class:`~monai_fp4.data.layouts.listing.Listing`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from monai_fp4.data.layouts.listing import Listing, composed
from monai_fp4.data.readers import split_suffix
from monai_fp4.data.records import Split
from monai_fp4.errors import DataError, listed

__all__ = [
    "IMAGE_BEGINNING",
    "MASK_BEGINNING",
    "MASK_ENDING",
    "FoundPatient",
    "Layout",
    "check_pairs",
    "check_same_channels",
    "natural_order",
    "one_per_name",
    "stem",
    "with_slices",
]

PICTURE_CHANNELS: Mapping[int, tuple[str, ...]] = MappingProxyType({1: ("grey",), 3: ("red", "green", "blue")})

MASK_ENDING = re.compile(r"[_-](mask|seg|segmentation|label|gt)$", re.IGNORECASE)
"""How the name of a mask ends that is called after its image."""
MASK_BEGINNING = re.compile(r"(^|/)(mask|seg|segmentation|label|gt)[_-](?=[^/]+$)", re.IGNORECASE)
"""How the name of a mask begins where it ends like that of its image, as in ``segmentation-0``."""
IMAGE_BEGINNING = re.compile(r"(^|/)(image|img|volume|vol|scan)[_-](?=[^/]+$)", re.IGNORECASE)
"""How the name of its image begins, as in ``volume-0``."""


@dataclass(frozen=True)
class FoundPatient:
    """A patient in a data folder.

    Attributes:
        id: unique in the folder.
        pairs: image and mask, in order, relative to the folder. Images that share a mask are channels of one scan,
            others are slices.
        channels: their names, if files are named after them.
        group: the institution, ``""`` where the layout does not tell.
        person: who it is, where one person has several entries.
        files: others that were read, relative to the folder: those of a series, a description of the set.
        fold: the fold that the folder itself names.
        split: the split that the folder itself names.
    """

    id: str
    pairs: tuple[tuple[str, str], ...]
    channels: tuple[str, ...] | None = None
    group: str = ""
    person: str = ""
    files: tuple[str, ...] = ()
    fold: int | None = None
    split: Split | None = None


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
    """Files by what they are called, however accents are encoded, without those that are called nothing.

    Raises:
        DataError: two files of one name, such as two exports of one scan.
    """
    found: dict[str, str] = {}
    for path in paths:
        given = name(path)
        key = None if given is None else composed(given)
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
            f"expected a mask for {images[name]} in {folder}, found none; name it alike, or save an empty mask if the "
            "image shows no lesion"
        )
    for name in sorted(masks.keys() - images.keys(), key=natural_order):
        raise DataError(
            f"expected an image for {masks[name]} in {folder}, found none; name them alike, or remove the mask"
        )


def check_same_channels(
    patients: list[FoundPatient],
    root: Path,
    what: str = "channels",
    remedy: str = "add or rename the files, or leave these patients out",
) -> list[FoundPatient]:
    """Check that all patients have the channels, or series, of the first one, and return them.

    Raises:
        DataError: a patient lacks a channel, or has another one; all of them are named.
    """
    wrong = [patient for patient in patients if patient.pairs and patient.channels != patients[0].channels]
    if wrong:
        raise DataError(
            f"expected the {what} {listed(patients[0].channels)} of {patients[0].id!r} in every patient of {root}, "
            f"found {listed(wrong[0].channels)} in {listed([repr(patient.id) for patient in wrong])}; {remedy}"
        )
    return patients


def with_slices(images: Mapping[str, str], masks: Mapping[str, str], listing: Listing) -> list[FoundPatient]:
    """Patients whose pictures are slices, in the order of their numbers; files are given by the name that they share.

    A picture is of whom the pattern names, of its whole name if the user's own table holds that, of its folder, or of
    all that comes before the last underscore of its name.
    """
    patients: dict[str, list[str]] = {}
    for name in sorted(images, key=natural_order):
        folder, _, last = name.rpartition("/")
        whole = last if last in listing.named else ""
        patient = listing.patient_of(images[name]) or whole or folder or last.rpartition("_")[0] or last
        patients.setdefault(patient, []).append(name)
    return [
        FoundPatient(patient, tuple((images[name], masks[name]) for name in names))
        for patient, names in patients.items()
    ]


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``a_2`` before ``a_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def stem(path: str) -> str | None:
    """The name of a file without folders and ending; ``None`` where no reader knows the ending."""
    parts = split_suffix(PurePosixPath(path).name)
    return parts[0] if parts else None
