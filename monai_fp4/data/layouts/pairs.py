"""Pairs of 2D pictures under the same name in ``images`` and ``masks``; 8 or 16 bit greyscale, or RGB.

The patient is the sub-folder where there is one, else all of the name before its last underscore::

    images/anna_01.png   masks/anna_01.png          images/anna/01.png   masks/anna/01.png
"""

from __future__ import annotations

from pathlib import Path

from monai_fp4.data.layouts.layout import FoundPatient, Layout, check_pairs, natural_order
from monai_fp4.errors import DataError

__all__ = ["PNG_PAIRS"]


def _find(root: Path) -> list[FoundPatient]:
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise DataError(
                f"expected the folders images and masks in {root}, found no {name}; see monai_fp4.data.layouts"
            )
    images, masks = (
        {
            path.relative_to(root / name).as_posix(): path.relative_to(root).as_posix()
            for path in (root / name).rglob("*.png")
        }
        for name in ("images", "masks")
    )
    check_pairs(images, masks, root)
    patients: dict[str, list[str]] = {}
    for name in images:
        folder, _, stem = name.removesuffix(".png").rpartition("/")
        patients.setdefault(folder or stem.rpartition("_")[0] or stem, []).append(name)
    return [
        FoundPatient(patient, "", tuple((images[name], masks[name]) for name in sorted(names, key=natural_order)))
        for patient, names in patients.items()
    ]


PNG_PAIRS = Layout(summary="PNG pictures under the same names in `images` and `masks`", find=_find)
