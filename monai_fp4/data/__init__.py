"""Data: manifests, readers, synthetic data, transforms and data sets.

>>> from monai_fp4.data import load_manifest, select_patients
>>> [patient.id for patient in select_patients(load_manifest("phantom"), fold=0, part="test")][0]
'PHANTOM_NA_0021'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

from monai_fp4.data.build import build_manifest, check_manifest
from monai_fp4.data.datalist import load_datalist, prepare_data
from monai_fp4.data.folds import assign_folds, select_patients
from monai_fp4.data.image_size import check_size
from monai_fp4.data.manifest import load_manifest, save_manifest, shipped_manifests
from monai_fp4.data.phantoms.nodules import write_nodules
from monai_fp4.data.phantoms.phantom import write_phantom
from monai_fp4.data.records import ImagePair, Manifest, Patient, Split

if TYPE_CHECKING:
    from monai_fp4.data.datasets import PatientDataset, SliceDataset
    from monai_fp4.data.loader import BackgroundLoader
    from monai_fp4.data.transforms import NormalizeForegroundd

__all__ = [
    "build_manifest",
    "check_manifest",
    "check_size",
    "load_manifest",
    "save_manifest",
    "shipped_manifests",
    "select_patients",
    "assign_folds",
    "prepare_data",
    "load_datalist",
    "SliceDataset",
    "BackgroundLoader",
    "PatientDataset",
    "NormalizeForegroundd",
    "write_phantom",
    "write_nodules",
    "ImagePair",
    "Manifest",
    "Patient",
    "Split",
]

# Loaded when first asked for: these need torch and MONAI, and manifests do not.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "datasets": ["PatientDataset", "SliceDataset"],
        "loader": ["BackgroundLoader"],
        "transforms": ["NormalizeForegroundd"],
    },
)
