"""One folder a patient, with one mask and one volume file a channel, in alphabetical order.

A 4D image holds several channels; files of DICOM slices are no volumes. The mask is called ``mask`` or ``seg``. The
patient's id may come before any name, as it does in the BraTS sets::

    anna/image.nii.gz  anna/mask.nii.gz             bert/bert_flair.nii.gz  bert/bert_t1.nii.gz  bert/bert_seg.nii.gz
    BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz            BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from monai_fp4.data.layouts.layout import FoundPatient, Layout, check_same_channels, one_per_name, stem
from monai_fp4.data.layouts.listing import Listing
from monai_fp4.data.readers.dicom_series import SUFFIXES
from monai_fp4.errors import DataError, listed

__all__ = ["BRATS", "VOLUME_FOLDERS"]

_MASKS = ("mask", "seg", "label", "segmentation")
_BRATS_VISIT = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}")
"""Since 2023 the last number is that of the visit: 00005-000 and 00005-001 are one person."""


def _find(listing: Listing) -> list[FoundPatient]:
    patients = [_patient(folder, paths, listing) for folder, paths in listing.folders.items()]
    return check_same_channels(patients, listing.root)


def _patient(folder: str, paths: Sequence[str], listing: Listing) -> FoundPatient:
    def name(path: str) -> str | None:
        label = stem(path) if path.count("/") == 1 and not path.lower().endswith(SUFFIXES) else None
        return label and label.removeprefix(f"{folder}_").removeprefix(f"{folder}-")

    names = one_per_name(paths, name)
    labels = [label for label in names if label.lower() in _MASKS]
    masks = [names.pop(label) for label in labels]
    if names and len(masks) != 1:
        found = "none" if not masks else " and ".join(masks)
        raise DataError(
            f"expected one mask (mask.nii.gz or seg.nii.gz) in {listing.root / folder}, found {found} beside "
            f"{listed(names.values())}; add, rename or remove"
        )
    pairs = tuple((names[label], masks[0]) for label in sorted(names))
    visit = _BRATS_VISIT.fullmatch(folder)
    person = listing.patient_of(folder) or (visit[1] if visit else "")
    return FoundPatient(folder, pairs, tuple(sorted(names)), person=person)


VOLUME_FOLDERS = Layout(
    summary="a folder a patient, NIfTI, NRRD or MetaImage volumes, one a channel, and `mask` or `seg`", find=_find
)
"""A folder of volumes for each patient."""
BRATS = Layout(summary="BraTS 2018 to 2024: as `nifti`; choose among its labels with `--labels`", find=_find)
"""The BraTS challenges."""
