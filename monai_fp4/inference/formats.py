"""Masks and maps in the format, orientation and geometry of the scan that they belong to.

A header of its own is written, into which only the geometry is copied: free texts of a header may name the patient, and
so may extensions. MONAI's ``SaveImage`` keeps one affine; a NIfTI file has two, sform and qform, each with a code that
viewers go by, and both are handed on to the last bit.
"""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from PIL import Image as Pillow

from monai_fp4.atomic import write_atomically
from monai_fp4.data.readers import split_suffix
from monai_fp4.data.scans import Image

__all__ = ["write_itk", "write_nifti", "write_pictures"]


def write_nifti(folder: Path, name: str, values: NDArray[Any], scan: Image, source: str) -> list[Path]:
    """Write one volume as the scan's own kind of NIfTI.

    Args:
        folder: where to.
        name: of the file, without ending.
        values: uint8 or float32, in the order of the source's axes.
        scan: the scan.
        source: its first file.

    Returns:
        The file.
    """
    try:
        given = nibabel.load(source)
        assert isinstance(given, nibabel.Nifti1Image)
        values = values[..., 0] if len(given.shape) == 2 else values
        image = type(given)(values, None, dtype=values.dtype)
        image.header.set_zooms(given.header.get_zooms()[:3] + (1.0,) * (3 - len(given.shape[:3])))
        image.header.set_xyzt_units(given.header.get_xyzt_units()[0] or None)
        sform, sform_code = given.header.get_sform(), int(given.header["sform_code"])
        for field in ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            image.header[field] = given.header[field]
        image.header["pixdim"][0] = given.header["pixdim"][0]
        image.header.set_sform(sform, sform_code)
    except Exception:  # what the reader makes sense of and nibabel alone does not
        image = nibabel.Nifti1Image(values, scan.affine, dtype=values.dtype)
    data = image.to_bytes()
    plain = (split_suffix(source) or ("", ""))[1].lower() == ".nii"
    path = folder / (f"{name}.nii" if plain else f"{name}.nii.gz")
    write_atomically(path, data if plain else gzip.compress(data, compresslevel=1, mtime=0))
    return [path]


def write_itk(folder: Path, name: str, values: NDArray[Any], scan: Image, source: str) -> list[Path]:
    """Write one volume as NRRD or MetaImage, with its voxels in the same file; arguments as `write_nifti`."""
    assert scan.affine is not None
    header = SimpleITK.ImageFileReader()
    header.SetFileName(source)
    header.ReadImageInformation()
    axes = min(header.GetDimension(), 3)  # a picture stays one; what follows the third axis are channels
    values = values[..., 0] if axes == 2 else values
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing[:axes].tolist())
    image.SetDirection((affine[:3, :3] / spacing)[:axes, :axes].ravel().tolist())
    image.SetOrigin(affine[:axes, 3].tolist())
    ending = ".nrrd" if source.lower().endswith(("nrrd", "nhdr")) else ".mha"
    with tempfile.TemporaryDirectory() as temporary:  # ITK writes no streams
        beside = Path(temporary) / f"result{ending}"
        SimpleITK.WriteImage(image, str(beside), useCompression=True)
        data = beside.read_bytes()
    path = folder / f"{name}{ending}"
    write_atomically(path, data)
    return [path]


def write_pictures(folder: Path, name: str, values: NDArray[Any], scan: Image, source: str) -> Sequence[Path]:
    """Write one PNG a slice, masks as 0 and 255 and maps as 16 bits; arguments as `write_nifti`."""
    is_mask = values.dtype == np.uint8
    grey = values * np.uint8(255) if is_mask else np.rint(values * np.float32(65535)).astype(np.uint16)
    depth = values.shape[-1]
    paths = []
    for number in range(depth):
        content = io.BytesIO()
        Pillow.fromarray(np.ascontiguousarray(grey[..., number])).save(content, format="PNG")
        path = folder / (f"{name}.png" if depth == 1 else f"{name}_{number + 1:0{len(str(depth))}d}.png")
        write_atomically(path, content.getvalue())
        paths.append(path)
    return paths
