"""NIfTI headers and pairs of files, against nibabel and ITK."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from monai_fp4.data.patients import Volume, read_patient
from monai_fp4.errors import DataError

AFFINE = np.diag([-0.5, 0.75, 2.0, 1.0])
VALUES = np.random.default_rng(0).integers(-900, 900, (6, 5, 4)).astype(np.int16)
MASK = (VALUES > 300).astype(np.uint8)


def write(
    path: Path, values: np.ndarray, units: str = "mm", scale: float = 1.0, kind: type = nibabel.Nifti1Image
) -> Path:
    image = kind(values, np.diag([scale, scale, scale, 1.0]) @ AFFINE)
    image.header.set_xyzt_units(units)
    nibabel.save(image, path)
    return path


def read(image: Path, mask: Path) -> Volume:
    return read_patient({"patient": "p", "images": [{"image": str(image), "mask": str(mask)}]})


LOOKED_AT = (VALUES[:, ::-1].transpose(1, 0, 2), MASK[:, ::-1].transpose(1, 0, 2))
"""Rows to the back, columns to the left, slices to the head: the first axis runs to the left as it is."""


@pytest.mark.parametrize(("units", "scale"), [("micron", 1000.0), ("meter", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_lengths_are_millimetres_whatever_the_units(units, scale, tmp_path):
    image = write(tmp_path / "a.nii.gz", VALUES, units, scale)
    volume = read(image, write(tmp_path / "m.nii.gz", MASK))  # which is in millimetres
    assert np.array_equal(volume.image[0], LOOKED_AT[0]) and np.array_equal(volume.mask[0], LOOKED_AT[1])
    assert volume.place is not None and volume.place.spacing == pytest.approx((0.75, 0.5, 2.0))
    assert SimpleITK.ReadImage(str(image)).GetSpacing() == pytest.approx((0.5, 0.75, 2.0))


def test_a_mask_elsewhere_is_told_in_millimetres(tmp_path):
    image = write(tmp_path / "a.nii.gz", VALUES, "meter", 0.001)
    shifted = nibabel.Nifti1Image(MASK, AFFINE + np.array([[0, 0, 0, 1.5]] + [[0] * 4] * 3))
    nibabel.save(shifted, tmp_path / "m.nii.gz")
    with pytest.raises(DataError, match=r"up to 1\.5 mm \(3 voxels\)"):
        read(image, tmp_path / "m.nii.gz")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.nifti2.Nifti2Pair])
def test_a_pair_of_files_is_what_nibabel_makes_of_it(kind, tmp_path):
    for endian in "<>":
        values = VALUES.astype(f"{endian}i2")
        header = kind.header_class(endianness=endian)
        header.set_data_dtype(values.dtype)
        image = kind(values, AFFINE, header)
        nibabel.save(image, tmp_path / "a.hdr")
        volume = read(tmp_path / "a.hdr", write(tmp_path / "m.nii", MASK))
        assert np.array_equal(volume.image[0], LOOKED_AT[0]) and np.array_equal(volume.mask[0], LOOKED_AT[1])


def test_pairs_that_are_none(tmp_path):
    mask = write(tmp_path / "m.nii.gz", MASK)
    nibabel.save(nibabel.AnalyzeImage(VALUES, None), tmp_path / "a.hdr")
    with pytest.raises(DataError, match=r"Analyze 7\.5 or another format, which does not say which side is left; conv"):
        read(tmp_path / "a.hdr", mask)
    nibabel.save(nibabel.Nifti1Pair(VALUES, AFFINE), tmp_path / "b.hdr")
    content = bytearray((tmp_path / "b.hdr").read_bytes())
    struct.pack_into("<f", content, 108, 1e9)
    (tmp_path / "b.hdr").write_bytes(content)
    with pytest.raises(DataError, match=r"begin inside the file .*b\.img, found vox_offset 1e\+09 in .*b\.hdr"):
        read(tmp_path / "b.hdr", mask)
    (tmp_path / "b.img").unlink()
    with pytest.raises(DataError, match=r"the voxels of .*b\.hdr in an \.img of that name, found none"):
        read(tmp_path / "b.hdr", mask)
    for content in (b"", b"abc", bytes(348), b"ENVI\nsamples = 3\n" * 40):
        (tmp_path / "b.hdr").write_bytes(content)
        (tmp_path / "b.img").write_bytes(bytes(99))
        with pytest.raises(DataError, match=r"b\.hdr"):
            read(tmp_path / "b.hdr", mask)
