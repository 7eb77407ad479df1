"""The published layout of the LGG brain MRI set, also written by the phantom.

One folder a patient; ``<patient>_<n>.tif`` with ``<patient>_<n>_mask.tif``, RGB = pre-contrast, FLAIR, post-contrast.
The institution is the second part of the id::

    kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif
    kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1_mask.tif
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from monai_fp4.data.layouts.layout import PICTURE_CHANNELS, FoundPatient, Layout, check_pairs, patient_folders
from monai_fp4.errors import DataError

__all__ = ["LGG", "LGG_CHANNELS"]

LGG_CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")


def _find(root: Path) -> list[FoundPatient]:
    return [_patient(folder) for folder in patient_folders(root)]


def _patient(folder: Path) -> FoundPatient:
    pattern = re.compile(re.escape(folder.name) + r"_(\d+)(_mask)?\.tiff?")
    images: dict[int, str] = {}
    masks: dict[int, str] = {}
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match:
            (masks if match[2] else images)[int(match[1])] = f"{folder.name}/{path.name}"
        elif path.suffix in (".tif", ".tiff"):
            raise DataError(
                f"expected files named {folder.name}_<n>.tif in {folder}, found {path.name}; rename or move it"
            )
    check_pairs({str(n): path for n, path in images.items()}, {str(n): path for n, path in masks.items()}, folder)
    numbers = sorted(images)
    for before, after in pairwise(numbers):
        if after != before + 1:
            raise DataError(
                f"expected slices without a gap in {folder}, found {after} after {before}; add slice {before + 1}"
            )
    parts = folder.name.split("_")
    group = parts[1] if len(parts) > 2 else ""
    return FoundPatient(folder.name, group, tuple((images[n], masks[n]) for n in numbers))


LGG = Layout(
    summary="a folder a patient, `<patient>_<n>.tif` beside `<patient>_<n>_mask.tif`",
    find=_find,
    channels=MappingProxyType({**PICTURE_CHANNELS, 3: LGG_CHANNELS}),
    numbered=True,
)
