"""NIfTI volumes, decoded by nibabel and turned as they are looked at.

Rows run from front to back, columns from the patient's right to the left, slices from feet to head, whatever the order
in the file: axial slices as radiologists look at them.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from monai_fp4.data.readers.volume import Decoded, Reader
from monai_fp4.errors import DataError

__all__ = ["NIFTI"]

_AS_LOOKED_AT = orientations.axcodes2ornt("PLS")


def _decode(path: Path, data: bytes) -> Decoded:
    raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    image = nibabel.Nifti1Image.from_bytes(raw)
    if image.ndim > 2:  # the callers refuse any other
        image = image.as_reoriented(orientations.ornt_transform(_axes(image.affine, path), _AS_LOOKED_AT))
    return Decoded(image.get_fdata(dtype=np.float32, caching="unchanged"), image.affine)


def _image(path: Path, data: bytes) -> Decoded:
    decoded = _decode(path, data)
    image = decoded.values
    if image.ndim not in (3, 4):
        raise DataError(
            f"expected 3 axes, or 4 with the channels last, in {path}, found {image.ndim}; correct the file"
        )
    return Decoded(np.moveaxis(image, 3, 0) if image.ndim == 4 else image[None], decoded.affine)


def _mask(path: Path, data: bytes) -> Decoded:
    decoded = _decode(path, data)
    mask = decoded.values
    if mask.ndim == 4 and mask.shape[3] == 1:
        mask = mask[..., 0]
    if mask.ndim != 3:
        raise DataError(f"expected a mask of 3 axes in {path}, found {mask.ndim}; save one binary mask a patient")
    return Decoded(mask, decoded.affine)


def _axes(affine: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """Where each axis of a file points, as nibabel writes it; a header that does not say so is refused."""
    known = bool(np.isfinite(affine).all())
    axes = orientations.io_orientation(affine) if known else affine
    if not known or np.isnan(axes).any():
        shown = ", ".join(str([float(f"{value:g}") for value in row]) for row in affine[:3])
        raise DataError(
            f"expected a header that says where each of the three axes points in {path}, found the affine {shown}; "
            "correct its sform or qform"
        )
    return axes


NIFTI = Reader(
    summary="NIfTI-1 volumes, a channel a file or the channels along the fourth axis",
    suffixes=(".nii", ".nii.gz"),
    image=_image,
    mask=_mask,
)
