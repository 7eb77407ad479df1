"""The published layout of the LGG brain MRI set, also written by the phantom.

One folder a patient; ``<patient>_<n>.tif`` with ``<patient>_<n>_mask.tif``, RGB = pre-contrast, FLAIR, post-contrast.
The institution is the second part of the id::

    kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif
    kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1_mask.tif
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from types import MappingProxyType

from monai_fp4.data.layouts.layout import PICTURE_CHANNELS, FoundPatient, Layout, check_pairs, one_per_name
from monai_fp4.data.layouts.listing import Listing
from monai_fp4.errors import DataError

__all__ = ["LGG", "LGG_CHANNELS"]

LGG_CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
"""What the three colours of its pictures are."""


def _find(listing: Listing) -> list[FoundPatient]:
    return [_patient(folder, paths, listing) for folder, paths in listing.folders.items()]


def _patient(name: str, paths: Sequence[str], listing: Listing) -> FoundPatient:
    folder = listing.root / name
    pattern = re.compile(re.escape(name) + r"_(\d+)(_mask)?\.tiff?", re.IGNORECASE)
    known = {path: match for path in paths if (match := pattern.fullmatch(path.removeprefix(f"{name}/")))}
    for path in paths:
        if path not in known and path.lower().endswith((".tif", ".tiff")):
            raise DataError(
                f"expected files named {name}_<n>.tif in {folder}, found {path.removeprefix(f'{name}/')}; rename "
                f"or move it"
            )
    images, masks = (
        one_per_name([path for path in known if bool(known[path][2]) is is_mask], lambda path: str(int(known[path][1])))
        for is_mask in (False, True)
    )
    check_pairs(images, masks, folder)
    numbers = sorted(map(int, images))
    for before, after in pairwise(numbers):
        if after != before + 1:
            raise DataError(
                f"expected slices without a gap in {folder}, found {after} after {before}; add slice {before + 1}"
            )
    parts = name.split("_")
    group = parts[1] if len(parts) > 2 else ""
    pairs = tuple((images[str(number)], masks[str(number)]) for number in numbers)
    return FoundPatient(name, pairs, group=group, person=listing.patient_of(name))


LGG = Layout(
    summary="a folder a patient, `<patient>_<n>.tif` beside `<patient>_<n>_mask.tif`",
    find=_find,
    channels=MappingProxyType({**PICTURE_CHANNELS, 3: LGG_CHANNELS}),
    numbered=True,
)
"""The LGG brain MRI data set, as it is published."""
