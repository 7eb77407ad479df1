"""Small data folders in each layout."""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from monai_fp4.data.cli import add_parser


def write_lgg(root: Path, patients: dict[str, int], size: int = 16, seed: int = 0) -> Path:
    """``patients``: slices by id; the middle slice of each has a tumour of 4 pixels. Returns ``root / "kaggle_3m"``."""
    random = np.random.default_rng(seed)
    folder = root / "kaggle_3m"
    for patient, slices in patients.items():
        (folder / patient).mkdir(parents=True)
        for number in range(1, slices + 1):
            mask = np.zeros((size, size), np.uint8)
            if number == (slices + 1) // 2:
                mask[3:5, 7:9] = 255
            Image.fromarray(random.integers(0, 255, (size, size, 3), np.uint8)).save(
                slice_path(folder, patient, number)
            )
            Image.fromarray(mask).save(slice_path(folder, patient, number, "_mask"))
    return folder


def slice_path(folder: Path, patient: str, number: int, suffix: str = "") -> Path:
    return folder / patient / f"{patient}_{number}{suffix}.tif"


def lgg_ids(count: int, groups: str = "AB") -> list[str]:
    return sorted(f"TCGA_{groups[index % len(groups)]}_{index:04d}" for index in range(count))


def write_png(root: Path, names: list[str], dtype: type = np.uint8) -> Path:
    random = np.random.default_rng(0)
    for name in names:
        for folder in ("images", "masks"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, np.iinfo(dtype).max, (12, 10), dtype)).save(root / "images" / f"{name}.png")
        mask = np.zeros((12, 10), np.uint8)
        mask[2, 3] = 1
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


def write_nifti(
    root: Path,
    patients: list[str],
    channels: tuple[str, ...] = ("flair", "t1"),
    mask: str = "mask",
    shape: tuple[int, ...] = (8, 9, 5),
    affine: np.ndarray | None = None,
) -> Path:
    random = np.random.default_rng(0)
    affine = np.diag([1.0, 1.0, 3.0, 1.0]) if affine is None else affine
    for patient in patients:
        (root / patient).mkdir(parents=True)
        for channel in channels:
            data = random.normal(size=shape).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(data, affine), root / patient / f"{channel}.nii.gz")
        label = np.zeros(shape[:3], np.uint8)
        label[1, 2, 3] = 1
        nibabel.save(nibabel.Nifti1Image(label, affine), root / patient / f"{mask}.nii.gz")
    return root


def run_manifest(*arguments: object) -> int:
    """The command ``manifest`` with these arguments; what it refuses is raised."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    options = parser.parse_args(["manifest", *map(str, arguments)])
    return options.func(options)
