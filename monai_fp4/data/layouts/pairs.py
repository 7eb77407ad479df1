"""Pairs of pictures (or of volumes) under the same name in ``images`` and ``masks``, in any format that is read.

The patient is the sub-folder where there is one, else all of the name before its last underscore. A name that the
table of ``--groups`` holds as a whole is a patient; where names are built otherwise, ``--patient_pattern`` says it. A
mask's name may end in ``_mask``, ``_seg`` or ``_segmentation``, or begin with ``mask_`` where the image's begins with
``image_``::

    images/anna_01.png   masks/anna_01.png          images/anna/01.jpg   masks/anna/01_mask.png
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from monai_fp4.data.layouts.layout import (
    IMAGE_BEGINNING,
    MASK_BEGINNING,
    MASK_ENDING,
    FoundPatient,
    Layout,
    check_pairs,
    one_per_name,
    with_slices,
)
from monai_fp4.data.layouts.listing import Listing
from monai_fp4.data.readers import split_suffix
from monai_fp4.errors import DataError

__all__ = ["PAIRS"]

_FOLDERS = {
    "images": ("images", "image", "imgs", "img", "imagestr"),
    "masks": ("masks", "mask", "labels", "label", "segmentations", "labelstr"),
}


def _find(listing: Listing) -> list[FoundPatient]:
    images = _by_name(_folder(listing, "images"), set())
    masks = _by_name(_folder(listing, "masks"), images.keys())
    if not images.keys() & masks.keys():  # image_1 and mask_1
        images, masks = _without(IMAGE_BEGINNING, images), _without(MASK_BEGINNING, masks)
    check_pairs(images, masks, listing.root)
    return with_slices(images, masks, listing)


def _without(beginning: re.Pattern[str], files: Mapping[str, str]) -> dict[str, str]:
    """Files by their names without what all masks, or images, begin with."""
    names = {path: beginning.sub(r"\1", name) for name, path in files.items()}
    return one_per_name(files.values(), names.get)


def _folder(listing: Listing, kind: str) -> tuple[str, ...]:
    found = [name for name in listing.folders if name.lower() in _FOLDERS[kind]]
    if len(found) != 1:
        raise DataError(
            f"expected pairs of the same name in the folders images and masks of {listing.root}, found "
            f"{' and '.join(found) or f'no {kind}'} ({listing.kinds()}); arrange them so, or list them in a CSV table "
            "for --format table"
        )
    return tuple(path for path in listing.folders[found[0]] if split_suffix(path))


def _by_name(paths: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Files by their path within ``images`` or ``masks``, without the ending of the format or of a mask."""
    known = set(known)

    def name(path: str) -> str:
        inner = PurePosixPath(path).relative_to(path.partition("/")[0])
        parts = split_suffix(inner.as_posix())
        assert parts is not None
        return parts[0] if parts[0] in known else MASK_ENDING.sub("", parts[0]) if known else parts[0]

    return one_per_name(paths, name)


PAIRS = Layout(summary="pictures (or volumes) under the same names in `images` and `masks`", find=_find)
