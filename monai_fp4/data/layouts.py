"""How data folders are laid out, and who is in them.

``lgg``: the published layout of the LGG brain MRI set, also written by the phantom. One folder a patient;
``<patient>_<n>.tif`` with ``<patient>_<n>_mask.tif``, RGB = pre-contrast, FLAIR, post-contrast. The institution is
the second part of the id::

    kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif
    kaggle_3m/TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1_mask.tif

``png``: pairs of 2D pictures under the same name in ``images`` and ``masks``; 8 or 16 bit greyscale, or RGB. The
patient is the sub-folder where there is one, else all of the name before its last underscore::

    images/anna_01.png   masks/anna_01.png          images/anna/01.png   masks/anna/01.png

``nifti``: one folder a patient, with one mask and one image file a channel, in alphabetical order; a 4D image holds
several channels. The mask is called ``mask`` or ``seg``. The patient's id may come before any name::

    anna/image.nii.gz  anna/mask.nii.gz             bert/bert_flair.nii.gz  bert/bert_t1.nii.gz  bert/bert_seg.nii.gz
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from monai_fp4.data.records import DataFormat
from monai_fp4.errors import DataError, unknown_name

__all__ = ["FoundPatient", "data_root", "parse_format", "scan"]


@dataclass(frozen=True)
class FoundPatient:
    """A patient in a data folder: ``pairs`` of image and mask, in order, relative to the folder."""

    id: str
    group: str
    pairs: tuple[tuple[str, str], ...]
    channels: tuple[str, ...] | None = None


def parse_format(name: str) -> DataFormat:
    """Turn a format's name into the enum.

    Raises:
        DataError: no such format.
    """
    try:
        return DataFormat(name)
    except ValueError:
        raise unknown_name("data format", name, [each.value for each in DataFormat], DataError) from None


def data_root(dataset_dir: str | Path) -> Path:
    """The folder that a manifest's paths start from: the data folder, or the ``kaggle_3m`` folder within it.

    Raises:
        DataError: there is no such folder.
    """
    root = Path(dataset_dir).expanduser()
    if not root.is_dir():
        found = "a file" if root.exists() else "none"
        raise DataError(
            f"expected a data folder at {root}, found {found}; give the folder that holds the data as dataset_dir"
        )
    inner = root / "kaggle_3m"
    return inner if inner.is_dir() else root


def scan(root: Path, data_format: DataFormat) -> tuple[FoundPatient, ...]:
    """List the patients of a data folder, sorted by id.

    Raises:
        DataError: no patient, a patient without images, an image without a mask or a mask without an image, or a gap
            in the slice numbers of the ``lgg`` layout.
    """
    found = sorted(_SCANNERS[data_format](root), key=lambda patient: patient.id)
    if not found:
        raise DataError(
            f"expected patients in the {data_format.value} layout in {root}, found none; see monai_fp4.data.layouts"
        )
    for patient in found:
        if not patient.pairs:
            raise DataError(
                f"expected images of patient {patient.id!r} in {root}, found none; add them or remove the folder"
            )
    return tuple(found)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _scan_lgg(root: Path) -> list[FoundPatient]:
    return [_lgg_patient(folder) for folder in _folders(root)]


def _lgg_patient(folder: Path) -> FoundPatient:
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
    _check_pairs({str(n): path for n, path in images.items()}, {str(n): path for n, path in masks.items()}, folder)
    numbers = sorted(images)
    for before, after in pairwise(numbers):
        if after != before + 1:
            raise DataError(
                f"expected slices without a gap in {folder}, found {after} after {before}; add slice {before + 1}"
            )
    parts = folder.name.split("_")
    group = parts[1] if len(parts) > 2 else ""
    return FoundPatient(folder.name, group, tuple((images[n], masks[n]) for n in numbers))


def _scan_png(root: Path) -> list[FoundPatient]:
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
    _check_pairs(images, masks, root)
    patients: dict[str, list[str]] = {}
    for name in images:
        folder, _, stem = name.removesuffix(".png").rpartition("/")
        patients.setdefault(folder or stem.rpartition("_")[0] or stem, []).append(name)
    return [
        FoundPatient(patient, "", tuple((images[name], masks[name]) for name in sorted(names, key=_natural)))
        for patient, names in patients.items()
    ]


def _scan_nifti(root: Path) -> list[FoundPatient]:
    patients = [_nifti_patient(folder) for folder in _folders(root)]
    for patient in patients[1:]:
        if patient.channels != patients[0].channels:
            raise DataError(
                f"expected the channels {_listed(patients[0].channels)} of {patients[0].id!r} in every patient of "
                f"{root}, found "
                f"{_listed(patient.channels)} in {patient.id!r}; add or rename the files"
            )
    return patients


def _nifti_patient(folder: Path) -> FoundPatient:
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


_SCANNERS: Mapping[DataFormat, Callable[[Path], list[FoundPatient]]] = {
    DataFormat.LGG: _scan_lgg,
    DataFormat.PNG: _scan_png,
    DataFormat.NIFTI: _scan_nifti,
}


def _check_pairs(images: Mapping[str, str], masks: Mapping[str, str], folder: Path) -> None:
    for name in sorted(images.keys() - masks.keys(), key=_natural):
        raise DataError(
            f"expected a mask for {images[name]} in {folder}, found none; an image without tumour has an empty mask"
        )
    for name in sorted(masks.keys() - images.keys(), key=_natural):
        raise DataError(
            f"expected an image for {masks[name]} in {folder}, found none; add the image or remove the mask"
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``a_2`` before ``a_10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _listed(names: tuple[str, ...] | None) -> str:
    return ", ".join(names or ()) or "none"
