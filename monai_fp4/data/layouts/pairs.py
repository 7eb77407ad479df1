"""Pairs of pictures (or of volumes) under the same name in ``images`` and ``masks``, in any format that is read.

The patient is the sub-folder where there is one, else all of the name before its last underscore. A name that the
table of ``--groups`` holds as a whole is a patient; where names are built otherwise, ``--patient_pattern`` says it. A
mask's name may end in ``_mask``, ``_seg`` or ``_segmentation``, or begin with ``mask_`` where the image's begins with
``image_``::

    images/anna_01.png   masks/anna_01.png          images/anna/01.jpg   masks/anna/01_mask.png
"""

from __future__ import annotations

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
_ENDINGS = {"images": ("_input", "_data"), "masks": ("_groundtruth",)}
"""Of the folders' names in ISIC 2016 and 2018."""


def _find(listing: Listing) -> list[FoundPatient]:
    images = one_per_name(_folder(listing, "images"), _name)
    masks = one_per_name(
        _folder(listing, "masks"),
        lambda path: _name(path) if _name(path) in images else MASK_ENDING.sub("", _name(path)),
    )
    if not images.keys() & masks.keys():  # image_1 and mask_1
        images = one_per_name(images.values(), lambda path: IMAGE_BEGINNING.sub(r"\1", _name(path)))
        masks = one_per_name(masks.values(), lambda path: MASK_BEGINNING.sub(r"\1", MASK_ENDING.sub("", _name(path))))
    check_pairs(images, masks, listing.root)
    return with_slices(images, masks, listing)


def _folder(listing: Listing, kind: str) -> tuple[str, ...]:
    found = [name for name in listing.folders if name.lower() in _FOLDERS[kind]]
    found = found or [name for name in listing.folders if name.lower().endswith(_ENDINGS[kind])]
    if len(found) != 1:
        raise DataError(
            f"expected pairs of the same name in the folders images and masks of {listing.root}, found "
            f"{' and '.join(found) or f'no {kind}'} ({listing.kinds()}); arrange them so, or list them in a CSV table "
            "for --format table"
        )
    return tuple(path for path in listing.folders[found[0]] if split_suffix(path))


def _name(path: str) -> str:
    """The path of a file within ``images`` or ``masks``, without the ending of its format."""
    return (split_suffix(path.partition("/")[2]) or ("",))[0]


PAIRS = Layout(summary="pictures (or volumes) under the same names in `images` and `masks`", find=_find)
"""A folder of images and one of masks."""
