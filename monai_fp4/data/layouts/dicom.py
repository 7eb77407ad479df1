"""One folder a patient with DICOM series anywhere below it; the mask is a DICOM-SEG or a volume called mask or seg.

Every series that is no localizer and no mask is a channel, called after its description; ``--series`` chooses::

    anna/MR0001 ... anna/MR0120  anna/seg.dcm       bert/T1/IM_1 ... bert/FLAIR/IM_1 ...  bert/mask.nii.gz
"""

from __future__ import annotations

from collections.abc import Sequence

from monai_fp4.data.layouts.layout import FoundPatient, Layout, Listing, check_same_channels, listed, stem
from monai_fp4.data.readers import reader_of
from monai_fp4.data.readers.dicom import DICOM
from monai_fp4.data.readers.dicom_series import SEGMENTATION, Series, find_series, series_path
from monai_fp4.errors import DataError

__all__ = ["DICOM_FOLDERS"]

_NO_IMAGES = {"SR", "PR", "KO", "REG", "RTSTRUCT", "RTDOSE", "RTPLAN", "DOC", "RWV"}


def _find(listing: Listing) -> list[FoundPatient]:
    patients = [_patient(folder, paths, listing) for folder, paths in listing.folders.items()]
    return check_same_channels(patients, listing.root) if any(patient.pairs for patient in patients) else []


def _patient(folder: str, paths: Sequence[str], listing: Listing) -> FoundPatient:
    root = listing.root / folder
    series = find_series(root)
    if not series:
        return FoundPatient(folder, "", ())
    masks = [_path(each, folder) for each in series if each.header.get("Modality") == SEGMENTATION]
    masks += [path for path in paths if (stem(path) or "").lower() in ("mask", "seg") and reader_of(path) is not DICOM]
    images: dict[str, Series] = {}
    for each in series:
        if each.header.get("Modality") in {*_NO_IMAGES, SEGMENTATION} or "LOCALIZER" in _words(each, "ImageType"):
            continue
        name = str(each.header.get("SeriesDescription") or each.header.get("Modality") or "series").strip()
        if listing.series is not None and not listing.series.search(f"{name} {each.uid}"):
            continue
        if images.setdefault(name, each) is not each:
            raise DataError(
                f"expected one series called {name!r} in {root}, found {images[name].uid} and {each.uid}; choose with "
                "--series, a regular expression for description or UID"
            )
    if not images or len(masks) != 1:
        seen = listed([str(each.header.get("SeriesDescription") or each.header.get("Modality")) for each in series])
        missing = "an image series" if not images else "one mask (a DICOM-SEG, mask.nii.gz or seg.nii.gz)"
        found = seen if not images else listed(masks)
        raise DataError(f"expected {missing} in {root}, found {found}; add it, or choose series with --series")
    names = tuple(sorted(images))
    files = tuple(
        f"{folder}/{path.relative_to(root).as_posix()}" for each in series for path in each.files
        if each in images.values() or each.header.get("Modality") == SEGMENTATION
    )  # fmt: skip
    pairs = tuple((series_path(folder, images[name].uid), masks[0]) for name in names)
    return FoundPatient(folder, "", pairs, names, listing.patient_of(folder) or "", files)


def _path(series: Series, folder: str) -> str:
    return series_path(folder, series.uid)


def _words(series: Series, tag: str) -> tuple[str, ...]:
    value = series.header.get(tag) or ()
    return (value,) if isinstance(value, str) else tuple(map(str, value))


DICOM_FOLDERS = Layout(
    summary="a folder a patient with DICOM series and a DICOM-SEG (or `mask`, `seg`); `--series` chooses", find=_find
)
