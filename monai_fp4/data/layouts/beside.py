"""Masks beside their images: ``<name>_mask`` (or ``_seg``, ``_segmentation``, ``_label``, ``_gt``) next to ``<name>``.

Or ``segmentation-0`` next to ``volume-0``, ``mask_0`` next to ``image_0``. Pictures in a folder are the slices of a
patient, in the order of their numbers. A volume is a patient, and volumes of one folder are visits of one person::

    patient_00/slice_0.png  patient_00/slice_0_mask.png         Case00.mhd  Case00.raw  Case00_segmentation.mhd
    patient001/patient001_frame01.nii.gz  patient001/patient001_frame01_gt.nii.gz
"""

from __future__ import annotations

import re
from collections import Counter

from monai_fp4.data.layouts.layout import (
    IMAGE_BEGINNING,
    MASK_BEGINNING,
    MASK_ENDING,
    FoundPatient,
    Layout,
    check_pairs,
    one_per_name,
    stem,
    with_slices,
)
from monai_fp4.data.layouts.listing import Listing
from monai_fp4.data.readers import READERS, reader_of, split_suffix
from monai_fp4.errors import DataError, listed

__all__ = ["BESIDE"]

_LGG = re.compile(r"(?:^|/)([^/]+)/\1_\d+\.tiff?$", re.IGNORECASE)
"""The stricter layout, in which a missing slice is seen."""


def _find(listing: Listing) -> list[FoundPatient]:
    names = {path: parts[0] for path in listing.files if (parts := split_suffix(path))}
    framed = {name.rpartition("_frame")[0] for name in names.values()}  # as in ACDC, whose films have no masks
    names = {path: name for path, name in names.items() if not (name.endswith("_4d") and name[:-3] in framed)}
    masks, images = _apart(names, MASK_ENDING, None)
    if not masks:
        masks, images = _apart(names, MASK_BEGINNING, IMAGE_BEGINNING)
    if not masks:
        raise DataError(
            f"expected masks called as their images and _mask in {listing.root}, found {listing.kinds()}; choose "
            "another --format or rename"
        )
    if all(_LGG.search(path) for path in images.values()):
        raise DataError(f"expected another layout than lgg in {listing.root}, found it; choose that --format")
    check_pairs(images, masks, listing.root)
    volumes = [name for name, path in images.items() if reader_of(path) is not READERS["pictures"]]
    if volumes and len(volumes) < len(images):
        raise DataError(
            f"expected volumes or pictures in {listing.root}, found both, such as {listed(sorted(images.values()))}; "
            "separate them"
        )
    tops = {path.partition("/")[0] for path in images.values()}
    empty = [FoundPatient(folder, ()) for folder in listing.folders if folder not in tops]
    return empty + (_of_volumes if volumes else with_slices)(images, masks, listing)


def _apart(
    names: dict[str, str], of_masks: re.Pattern[str], of_images: re.Pattern[str] | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Masks and images by what is left of their names without what tells them apart."""
    left = {path: of_masks.sub(r"\1" if of_images else "", name) for path, name in names.items()}
    masks = [path for path in names if left[path] != names[path]]
    images = [path for path in names if left[path] == names[path]]
    if of_images:
        left |= {path: of_images.sub(r"\1", names[path]) for path in images}
    return one_per_name(masks, left.get), one_per_name(images, left.get)


def _of_volumes(images: dict[str, str], masks: dict[str, str], listing: Listing) -> list[FoundPatient]:
    folders = {name: name.rpartition("/")[0] for name in images}
    count = Counter(folders.values())
    lasts = Counter(stem(path) for path in images.values())
    patients = []
    for name, path in images.items():
        folder, last = folders[name], stem(path) or name
        alone = bool(folder) and count[folder] == 1
        patient = folder if alone else last if lasts[last] == 1 else f"{folder}_{last}".replace("/", "_")
        person = listing.patient_of(path) or ("" if alone else folder)
        patients.append(FoundPatient(patient, ((path, masks[name]),), person=person))
    return patients


BESIDE = Layout(
    summary="`<name>_mask` (`_seg`, `_label`, `_gt`) beside `<name>`: slices of a folder, or volumes", find=_find
)
"""Masks beside their images, told by the names' endings."""
