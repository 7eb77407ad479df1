"""Layouts of data folders, and the patients in them.

A layout is a module that finds the patients of a folder, and one line in :data:`LAYOUTS`: what ``--format`` offers,
what a manifest's field ``format`` may say and what the documentation lists all come from it.

>>> list(LAYOUTS)
['lgg', 'png', 'nifti', 'brats', 'nnunet', 'msd', 'bids', 'dicom', 'beside', 'table']
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from monai_fp4.data.layouts.beside import BESIDE
from monai_fp4.data.layouts.dicom import DICOM_FOLDERS
from monai_fp4.data.layouts.layout import MASK_ENDING, FoundPatient, Layout, stem
from monai_fp4.data.layouts.lgg import LGG
from monai_fp4.data.layouts.listing import Listing
from monai_fp4.data.layouts.pairs import PAIRS
from monai_fp4.data.layouts.published import BIDS, DECATHLON, NNUNET
from monai_fp4.data.layouts.remedies import remedies
from monai_fp4.data.layouts.table import TABLE, is_table
from monai_fp4.data.layouts.volumes import BRATS, VOLUME_FOLDERS
from monai_fp4.data.readers import READERS, reader_of, split_suffix
from monai_fp4.errors import DataError, unknown_name

__all__ = [
    "AUTO",
    "LAYOUTS",
    "FoundPatient",
    "Layout",
    "Listing",
    "data_root",
    "find_patients",
    "layout_of",
    "left_over",
]

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "lgg": LGG,
        "png": PAIRS,
        "nifti": VOLUME_FOLDERS,
        "brats": BRATS,
        "nnunet": NNUNET,
        "msd": DECATHLON,
        "bids": BIDS,
        "dicom": DICOM_FOLDERS,
        "beside": BESIDE,
        "table": TABLE,
    }
)
"""Every layout by its name."""

AUTO = "auto"
"""In place of a layout's name: a table that is there, or else the layout that takes the most files of the folder."""


def layout_of(name: str) -> Layout:
    """The layout of a name.

    Raises:
        DataError: no such layout.
    """
    if name not in LAYOUTS:
        raise unknown_name("data format", name, [AUTO, *LAYOUTS], DataError)
    return LAYOUTS[name]


def data_root(dataset_dir: str | Path) -> Path:
    """The folder that a manifest's paths start from: the data folder, or the ``kaggle_3m`` folder within it.

    Raises:
        DataError: there is no such folder.
    """
    root = Path(str(dataset_dir)).expanduser()
    if not root.is_dir():
        found = "a file" if root.exists() else "none"
        raise DataError(
            f"expected a data folder at {root}, found {found}; give the folder that holds the data as dataset_dir"
        )
    inner = root / "kaggle_3m"
    return inner if inner.is_dir() else root


def find_patients(listing: Listing, name: str = AUTO) -> tuple[str, tuple[FoundPatient, ...]]:
    """List the patients of a data folder, sorted by id, in the layout of that name or in the one that fits it best.

    Returns:
        The layout's name, and the patients.

    Raises:
        DataError: no patient, a patient without images, an image without a mask or a mask without an image, or whatever
            else contradicts the layout.
    """
    if name != AUTO:
        layout_of(name)
        return name, _find(listing, name)
    if any(is_table(listing, path) for path in listing.files):
        return "table", _find(listing, "table")
    found: dict[str, tuple[FoundPatient, ...]] = {}
    reasons: dict[str, str] = {}
    for each in LAYOUTS:
        try:
            found[each] = _find(listing, each)
        except DataError as error:
            reasons[each] = str(error)
    if not found:
        nearest = _nearest(listing)
        remedy = remedies(listing, _fitting, table=nearest != "dicom")
        raise DataError(
            f"expected a data folder in one of the layouts {', '.join(LAYOUTS)} (scans without masks are for "
            f"bundles/inference.json) at {listing.root}, found {listing.kinds()}; as {nearest}: "
            f"{reasons[nearest]}{remedy}"
        )
    return max(found.items(), key=lambda item: len({file for each in item[1] for file in _files(each)}))


def _fitting(listing: Listing) -> str | None:
    """The first layout of files that a folder is in; series and tables are looked for at the top alone."""
    for each in LAYOUTS:
        if each in ("dicom", "table"):
            continue
        try:
            _find(listing, each)
        except DataError:
            continue
        return each
    return None


def left_over(listing: Listing, patients: tuple[FoundPatient, ...]) -> list[str]:
    """Files that no patient has, neither by name nor behind another, as voxels in a file of their own."""
    taken = {file for patient in patients for file in _files(patient)}
    for path in taken & {*listing.files}:
        files = reader_of(path).files if split_suffix(path) else None
        if files is not None:
            taken |= {f"{path.rpartition('/')[0]}/{file.name}".lstrip("/") for file in files(listing.root / path)}
    return [file for file in listing.files if file not in taken]


def _files(patient: FoundPatient) -> set[str]:
    return {*(path for pair in patient.pairs for path in pair), *patient.files}


def _find(listing: Listing, name: str) -> tuple[FoundPatient, ...]:
    found = sorted(LAYOUTS[name].find(listing), key=lambda patient: patient.id)
    if not found:
        raise DataError(
            f"expected patients in the {name} layout ({LAYOUTS[name].summary}) in {listing.root}, found "
            f"{listing.kinds()}; choose another --format or rename"
        )
    empty = [patient for patient in found if not patient.pairs]
    if empty:
        raise DataError(
            f"expected images of patient {empty[0].id!r} in {listing.root}, found none that the {name} layout takes "
            f"({listing.kinds(empty[0].id)}); add them or remove the folder"
        )
    return tuple(found)


def _nearest(listing: Listing) -> str:
    """The layout whose refusal tells most: the one that the names of folders and files speak of."""
    tops = {name.lower() for name in listing.folders}
    if "imagestr" in tops:
        one_file = "dataset.json" in listing.files and not any("_0000." in file for file in listing.files)
        return "msd" if one_file else "nnunet"
    if tops & {"images", "masks"}:
        return "png"
    if any(name.startswith("sub-") for name in tops) and "derivatives" in tops:
        return "bids"
    endings = [file.lower() for file in listing.files]
    if any(file.endswith((".dcm", ".ima")) for file in endings):
        return "dicom"
    pictures = [file for file in endings if split_suffix(file) and not file.endswith((".tif", ".tiff"))]
    if not any("/" in file for file in endings) or any(
        reader_of(file) is READERS["pictures"] and MASK_ENDING.search(stem(file) or "") for file in pictures
    ):
        return "beside"
    return "lgg" if any(file.endswith((".tif", ".tiff")) for file in endings) else "nifti"
