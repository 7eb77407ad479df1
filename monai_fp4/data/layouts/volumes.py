"""One folder a patient, with one mask and one volume file a channel, in alphabetical order.

A 4D image holds several channels. The mask is called ``mask`` or ``seg``. The patient's id may come before any name::

    anna/image.nii.gz  anna/mask.nii.gz             bert/bert_flair.nii.gz  bert/bert_t1.nii.gz  bert/bert_seg.nii.gz
"""

from __future__ import annotations

from pathlib import Path

from monai_fp4.data.layouts.layout import FoundPatient, Layout, patient_folders
from monai_fp4.errors import DataError

__all__ = ["NIFTI_FOLDERS"]


def _find(root: Path) -> list[FoundPatient]:
    patients = [_patient(folder) for folder in patient_folders(root)]
    for patient in patients[1:]:
        if patient.channels != patients[0].channels:
            raise DataError(
                f"expected the channels {_listed(patients[0].channels)} of {patients[0].id!r} in every patient of "
                f"{root}, found {_listed(patient.channels)} in {patient.id!r}; add or rename the files"
            )
    return patients


def _patient(folder: Path) -> FoundPatient:
    names: dict[str, str] = {}
    for path in sorted([*folder.glob("*.nii"), *folder.glob("*.nii.gz")]):
        label = path.name.removesuffix(".gz").removesuffix(".nii").removeprefix(f"{folder.name}_")
        if label in names:
            raise DataError(
                f"expected one file called {label!r} in {folder}, found {names[label]} and {path.name}; remove one"
            )
        names[label] = path.name
    masks = [names.pop(label) for label in ("mask", "seg") if label in names]
    if names and len(masks) != 1:
        found = "none" if not masks else " and ".join(masks)
        raise DataError(f"expected one mask (mask.nii.gz or seg.nii.gz) in {folder}, found {found}; add or remove")
    pairs = tuple((f"{folder.name}/{names[label]}", f"{folder.name}/{masks[0]}") for label in sorted(names))
    return FoundPatient(folder.name, "", pairs, tuple(sorted(names)))


def _listed(names: tuple[str, ...] | None) -> str:
    return ", ".join(names or ()) or "none"


NIFTI_FOLDERS = Layout(summary="a folder a patient, NIfTI volumes, one a channel, and `mask` or `seg`", find=_find)
