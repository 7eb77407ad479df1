"""One folder a patient with DICOM series anywhere below it; the mask is a DICOM-SEG or a volume called mask or seg.

Every series that is no localizer, no report and no mask is a channel, called after its description. ``--series``
chooses, and names the channel if it has a group. Folders with one PatientID are one person::

    anna/MR0001 ... anna/MR0120  anna/seg.dcm       bert/T1/IM_1 ... bert/FLAIR/IM_1 ...  bert/mask.nii.gz
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from monai_fp4.data.layouts.layout import FoundPatient, Layout, check_same_channels, stem
from monai_fp4.data.layouts.listing import Listing, composed
from monai_fp4.data.readers import reader_of
from monai_fp4.data.readers.dicom import DICOM
from monai_fp4.data.readers.dicom_series import (
    SEGMENTATION,
    SUFFIXES,
    Series,
    find_series,
    series_path,
    text_of,
    texts_of,
)
from monai_fp4.errors import DataError, listed

__all__ = ["DICOM_FOLDERS"]

_NO_IMAGES = {"SR", "PR", "KO", "REG", "RTSTRUCT", "RTDOSE", "RTPLAN", "DOC", "RWV"}


def _find(listing: Listing) -> list[FoundPatient]:
    loose = [path for path in listing.files if "/" not in path and path.lower().endswith(SUFFIXES)]
    if loose:
        raise DataError(
            f"expected a folder of each patient in {listing.root}, found {len(loose)} DICOM files beside them, such as "
            f"{loose[0]}; sort the files by their PatientID into folders"
        )
    found = {folder: find_series(listing.root / folder) for folder in listing.folders}
    if not any(found.values()):
        return []
    people = _people(found, listing)
    patients = [
        replace(_patient(folder, found[folder], paths, listing), person=people.get(folder, ""))
        for folder, paths in listing.folders.items()
    ]
    if listing.series is not None and listing.series.groups:
        return check_same_channels(patients, listing.root)
    choose = "choose with --series, a regular expression whose group names the channel, such as '(?i)(flair)'"
    return check_same_channels(patients, listing.root, "series", choose)


def _people(found: Mapping[str, Sequence[Series]], listing: Listing) -> dict[str, str]:
    """Who the folders are of: what a pattern says, or the first folder of those with one PatientID.

    Raises:
        DataError: all folders have the PatientID of one person, as after a careless pseudonymization.
    """
    if listing.patient_pattern is not None:
        return {folder: listing.patient_of(folder) for folder in found}
    folders: dict[str, list[str]] = {}
    for folder, series in found.items():
        number = text_of(series[0].header, "PatientID") if series else ""
        folders.setdefault(number or f"/{folder}", []).append(folder)
    if len(found) > 1 and len(folders) == 1 and not {composed(folder) for folder in found} <= listing.named:
        raise DataError(
            f"expected a PatientID of each person in {listing.root}, found one in all {len(found)} folders; if each "
            "folder is a person, say so with --patient_pattern '.+', or name them in --groups"
        )
    return {folder: same[0] for same in folders.values() if 1 < len(same) < len(found) for folder in same}


def _patient(folder: str, series: Sequence[Series], paths: Sequence[str], listing: Listing) -> FoundPatient:
    root = listing.root / folder
    if not series:
        return FoundPatient(folder, ())
    masks = [series_path(folder, each.uid) for each in series if each.modality == SEGMENTATION]
    masks += [path for path in paths if (stem(path) or "").lower() in ("mask", "seg") and reader_of(path) is not DICOM]
    images = _images(series, listing, root)
    if not images or len(masks) != 1:
        seen = listed(sorted(map(_name, series)))
        if images and not masks and any(each.modality == "RTSTRUCT" for each in series):
            raise DataError(
                f"expected a mask of voxels (a DICOM-SEG, mask.nii.gz or seg.nii.gz) in {root}, found contours "
                "(RTSTRUCT); convert them with 3D Slicer or plastimatch, and save the mask beside the series"
            )
        missing, found = "an image series", seen
        if images:
            missing, found = "one mask (a DICOM-SEG, mask.nii.gz or seg.nii.gz)", listed(masks)
        raise DataError(f"expected {missing} in {root}, found {found}; add it, or choose series with --series")
    names = tuple(sorted(images))
    files = tuple(
        f"{folder}/{path.relative_to(root).as_posix()}" for each in series for path in each.files
        if each in images.values() or each.modality == SEGMENTATION
    )  # fmt: skip
    pairs = tuple((series_path(folder, images[name].uid), masks[0]) for name in names)
    return FoundPatient(folder, pairs, names, files=files)


def _images(series: Sequence[Series], listing: Listing, root: Path) -> dict[str, Series]:
    """The series that are channels, by their names."""
    others = [each for each in series if each.modality != SEGMENTATION]
    placed = any(map(_is_placed, others))
    images: dict[str, Series] = {}
    for each in others:
        if each.modality in _NO_IMAGES or "LOCALIZER" in texts_of(each.header, "ImageType"):
            continue
        if placed and not _is_placed(each):  # a report or a picture of the screen beside the scans
            continue
        name = _name(each)
        if listing.series is not None:
            match = listing.series.search(f"{name} {each.uid}")
            if match is None:
                continue
            name = (match[1] or name).lower() if match.re.groups else name
        if images.setdefault(name, each) is not each:
            raise DataError(
                f"expected one series called {name!r} in {root}, found {images[name].uid} and {each.uid}; choose with "
                "--series, a regular expression for description or UID, or give each time point a folder of its own"
            )
    return images


def _name(series: Series) -> str:
    return text_of(series.header, "SeriesDescription") or series.modality or "series"


def _is_placed(series: Series) -> bool:
    """Whether a series says where in a person it is, in each file or for each frame."""
    header = series.header
    return "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header


DICOM_FOLDERS = Layout(
    summary="a folder a patient with DICOM series and a DICOM-SEG (or `mask`, `seg`); `--series` chooses", find=_find
)
"""A folder of DICOM series for each patient."""
