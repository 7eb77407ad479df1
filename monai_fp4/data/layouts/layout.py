"""Interface of a layout, and what it finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from monai_fp4.errors import DataError

__all__ = ["FoundPatient", "Layout", "check_pairs", "natural_order", "patient_folders"]

PICTURE_CHANNELS: Mapping[int, tuple[str, ...]] = MappingProxyType({1: ("grey",), 3: ("red", "green", "blue")})


@dataclass(frozen=True)
class FoundPatient:
    """A patient in a data folder.

    Attributes:
        id: unique in the folder.
        group: the institution, ``""`` where the layout does not tell.
        pairs: image and mask, in order, relative to the folder. Images that share a mask are channels of one scan,
            others are slices.
        channels: their names, if files are named after them.
    """

    id: str
    group: str
    pairs: tuple[tuple[str, str], ...]
    channels: tuple[str, ...] | None = None


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
    find: Callable[[Path], list[FoundPatient]]
    channels: Mapping[int, tuple[str, ...]] = field(default_factory=lambda: PICTURE_CHANNELS)
    numbered: bool = False

    def channel_names(self, patient: FoundPatient, count: int) -> tuple[str, ...]:
        """What the ``count`` channels of a patient are called."""
        named = patient.channels or self.channels.get(count, ())
        return named if len(named) == count else tuple(f"channel_{index}" for index in range(count))


def patient_folders(root: Path) -> list[Path]:
    """The folders in a data folder, one a patient."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


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


def natural_order(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``a_2`` before ``a_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
