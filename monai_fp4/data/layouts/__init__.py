"""Layouts of data folders, and the patients in them.

A layout is a module that finds the patients of a folder, and one line in :data:`LAYOUTS`: what ``--format`` offers,
what a manifest's field ``format`` may say and what the documentation lists all come from it.

>>> list(LAYOUTS)
['lgg', 'png', 'nifti']
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from monai_fp4.data.layouts.layout import FoundPatient, Layout
from monai_fp4.data.layouts.lgg import LGG
from monai_fp4.data.layouts.pairs import PNG_PAIRS
from monai_fp4.data.layouts.volumes import NIFTI_FOLDERS
from monai_fp4.errors import DataError, unknown_name

__all__ = ["LAYOUTS", "FoundPatient", "Layout", "data_root", "find_patients", "layout_of"]

LAYOUTS: Mapping[str, Layout] = MappingProxyType({"lgg": LGG, "png": PNG_PAIRS, "nifti": NIFTI_FOLDERS})


def layout_of(name: str) -> Layout:
    """The layout of a name.

    Raises:
        DataError: no such layout.
    """
    if name not in LAYOUTS:
        raise unknown_name("data format", name, LAYOUTS, DataError)
    return LAYOUTS[name]


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


def find_patients(root: Path, name: str) -> tuple[FoundPatient, ...]:
    """List the patients of a data folder, sorted by id.

    Args:
        root: the data folder.
        name: of the layout.

    Raises:
        DataError: no patient, a patient without images, an image without a mask or a mask without an image, or a gap
            in the slice numbers of the ``lgg`` layout.
    """
    found = sorted(layout_of(name).find(root), key=lambda patient: patient.id)
    if not found:
        raise DataError(f"expected patients in the {name} layout in {root}, found none; see monai_fp4.data.layouts")
    for patient in found:
        if not patient.pairs:
            raise DataError(
                f"expected images of patient {patient.id!r} in {root}, found none; add them or remove the folder"
            )
    return tuple(found)
