"""Manifests of patients that no file stands behind."""

from __future__ import annotations

from monai_fp4.data import ImagePair, Manifest, Patient, Split


def patient(number: int, group: str = "A", volume: int | None = 1, split: Split = Split.TRAIN) -> Patient:
    digest = f"{number:064x}"
    pair = ImagePair(f"p{number}/p{number}_1.tif", f"p{number}/p{number}_1_mask.tif", digest, "f" * 64)
    return Patient(f"p{number}", group, None, split, volume, (pair,), None)


def manifest(patients: tuple[Patient, ...], folds: int) -> Manifest:
    return Manifest("m", "lgg", ("a", "b", "c"), patients, folds, 0)
