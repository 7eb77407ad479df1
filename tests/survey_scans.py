"""Scans for the survey of a manifest: anatomy that differs from patient to patient, and a lesion brighter than it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

SHAPE = (64, 64, 8)
AFFINE = np.diag([-0.9, -0.9, 4.0, 1.0])  # voxels lie in the order in which they are looked at, but for the axes' order


def scan(seed: int, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 and mask bool, ``[H, W, D]``; the lesion is an ellipsoid off the middle."""
    random = np.random.default_rng(seed)
    image = 400 * ndimage.gaussian_filter(random.normal(size=shape), (1.5, 1.5, 0.7))
    rows, columns, slices = np.ogrid[tuple(slice(0, edge) for edge in shape)]
    row, column = random.uniform(18, 26), random.uniform(38, 46)
    mask = ((rows - row) / 7) ** 2 + ((columns - column) / 5) ** 2 + ((slices - 2.5) / 2) ** 2 < 1
    image = 500 + image + 250 * mask + random.normal(0, 5, shape)
    return image.astype(np.float32), mask


def write_scans(root: Path, scans: dict[str, tuple[np.ndarray, np.ndarray]], affine: np.ndarray = AFFINE) -> Path:
    """Write each as ``<patient>/image.nii.gz`` and ``mask.nii.gz``."""
    for patient, (image, mask) in scans.items():
        (root / patient).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(image, affine), root / patient / "image.nii.gz")
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), root / patient / "mask.nii.gz")
    return root
