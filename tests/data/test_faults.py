"""A corpus of damaged DICOM, NIfTI and picture files: each ends in one sentence that names the file and what to do."""

from __future__ import annotations

import gzip
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.uid import generate_uid
from small_data import lgg_ids, slice_path, write_lgg, write_nifti, write_png
from small_dicom import lesion, save, segmentation, slices

from monai_fp4.data.build import find_and_examine
from monai_fp4.errors import DataError

Damage = Callable[[Path], object]


def refusal(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as refused:
        find_and_examine(root, folds=2, **options)
    text = str(refused.value)
    assert "\n" not in text and len(text) < 1500
    return text


# --- DICOM: each damages the series of patient anna.


def edit(change: Callable[[pydicom.Dataset], object], which: slice = slice(1)) -> Damage:
    def damage(folder: Path) -> None:
        for path in sorted(folder.glob("IM*"))[which]:
            data = pydicom.dcmread(path)
            change(data)
            data.save_as(path)

    return damage


def without(tag: str, which: slice = slice(None)) -> Damage:
    return edit(lambda data: delattr(data, tag), which)


def setting(tag: str, value: object, which: slice = slice(1)) -> Damage:
    return edit(lambda data: setattr(data, tag, value), which)


def by_place(folder: Path) -> list[Path]:
    return sorted(folder.glob("IM*"), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])


def copy_of_a_slice(folder: Path) -> None:
    data = pydicom.dcmread(by_place(folder)[2])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.save_as(folder / "IM_copy.dcm")


def cut(share: float) -> Damage:
    def damage(folder: Path) -> None:
        path = next(folder.glob("IM*"))
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return damage


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def shift_one(folder: Path) -> None:
    path = by_place(folder)[2]
    data = pydicom.dcmread(path)
    data.ImagePositionPatient[2] = float(data.ImagePositionPatient[2]) + 0.4
    data.save_as(path)


def two_masks(folder: Path) -> None:
    series = [pydicom.dcmread(path) for path in folder.glob("IM*")]
    segmentation(series, lesion(1)).save_as(folder / "seg2.dcm")


def elsewhere(folder: Path) -> None:
    series = slices(3, patient="anna")
    for data in series:
        data.ImagePositionPatient = [float(value) + 1.0 for value in data.ImagePositionPatient]
    segmentation(series, lesion(0)).save_as(folder / "seg.dcm")


def same_description(folder: Path) -> None:
    save(slices(8, patient="anna"), folder / "again")


DICOM_FAULTS: dict[str, tuple[Damage, str]] = {
    "missing slice": (lambda folder: by_place(folder)[2].unlink(), r"slices 2\.5 mm apart.*found 5 mm between"),
    "two slices in one place": (copy_of_a_slice, r"one slice in each place .*IM_copy|IM_copy.*; separate the phases"),
    "a slice out of step": (shift_one, r"slices .* mm apart in .*found 2\.9 mm between"),
    "another spacing": (setting("PixelSpacing", [0.5, 0.8]), r"one PixelSpacing .*\[0\.5, 0\.8"),
    "another orientation": (setting("ImageOrientationPatient", [0, 1, 0, 1, 0, 0]), r"one ImageOrientationPatient"),
    "another size": (setting("Rows", 7), r"damaged|slices of one size"),
    "two patients in a folder": (setting("PatientID", "cleo"), r"one patient below .*anna, found PatientID"),
    "slope of nan": (setting("RescaleSlope", "nan"), r"RescaleSlope in .*found nan; correct the file"),
    "slope of zero": (setting("RescaleSlope", 0), r"a number other than 0 as RescaleSlope in"),
    "slope empty": (setting("RescaleSlope", None), r"RescaleSlope in .*found None"),
    "intercept infinite": (setting("RescaleIntercept", "inf"), r"RescaleIntercept in .*found inf"),
    "no spacing": (without("PixelSpacing"), r"PixelSpacing in every slice of .*, found none in IM"),
    "no spacing in one slice": (without("PixelSpacing", slice(1)), r"PixelSpacing in every slice .*IM0000\.dcm"),
    "no position": (without("ImagePositionPatient"), r"ImagePositionPatient in every slice"),
    "no orientation": (without("ImageOrientationPatient"), r"ImageOrientationPatient in every slice"),
    "spacing of zero": (setting("PixelSpacing", [0, 0], slice(None)), r"spacings above 0"),
    "negative spacing": (setting("PixelSpacing", [-1, 1], slice(None)), r"spacings above 0"),
    "position of two numbers": (setting("ImagePositionPatient", [1, 2]), r"3 numbers as ImagePositionPatient in"),
    "position of nan": (setting("ImagePositionPatient", ["nan", "0", "0"]), r"3 numbers as ImagePositionPatient"),
    "directions at no right angle": (
        setting("ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0], slice(None)), r"directions at right angles"
    ),
    "directions of zero": (setting("ImageOrientationPatient", [0] * 6, slice(None)), r"directions at right angles"),
    "no pixels": (without("PixelData", slice(1)), r"pixels in the DICOM file .*IM0000\.dcm, found none"),
    "too few pixels": (setting("PixelData", b"\0\0"), r"anna#[0-9.]+, found one that is truncated or damaged"),
    "no rows": (without("Rows", slice(1)), r"pixels in the DICOM file"),
    "no bits": (without("BitsAllocated"), r"truncated or damaged"),
    "no series": (without("SeriesInstanceUID", slice(1)), r"a SeriesInstanceUID in the DICOM file .*IM0000"),
    "a series that is none": (setting("SeriesInstanceUID", "1.2.x"), r"a SeriesInstanceUID in .*IM.*, found 1\.2\.x"),
    "cut in half": (cut(0.9), r"IM.*(truncated or damaged|whose header cannot be read)"),
    "cut in the header": (cut(0.3), r"IM.*(truncated or damaged|cannot be read)|SeriesInstanceUID in .*IM|mm between"),
    "a compression that is none": (
        lambda folder: [
            path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
            for path in folder.glob("IM*")
        ],
        r"anna#[0-9.]+, found one that is truncated or damaged",
    ),
    "two masks": (two_masks, r"one mask .*, found anna#"),
    "no mask": (lambda folder: (folder / "seg.dcm").unlink(), r"one mask \(a DICOM-SEG, .*found none"),
    "a mask elsewhere": (elsewhere, r"found voxels \[2, 1, 1\] to \[10, 8, 3\] of an image of 8 x 7 x 5; resample"),
    "an empty mask file": (write("seg.dcm", b""), r"one mask .*found none"),
    "two series of one name": (same_description, r"one series called 'FLAIR' .*choose with --series"),
}  # fmt: skip


@pytest.mark.parametrize("name", DICOM_FAULTS)
def test_dicom(name, tmp_path):
    for number, patient in enumerate(("anna", "bert")):
        series = slices(number, patient=patient)
        save(series, tmp_path / patient)
        segmentation(series, lesion(number)).save_as(tmp_path / patient / "seg.dcm")
    damage, sentence = DICOM_FAULTS[name]
    damage(tmp_path / "anna")
    assert re.search(sentence, refusal(tmp_path, format="dicom"))


# --- NIfTI: each damages bert/t1.nii.gz.


def header(offset: int, format: str, *values: float) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "bert" / "t1.nii.gz"
        raw = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(format, raw, offset, *values)
        path.write_bytes(gzip.compress(bytes(raw)))

    return damage


def content(change: Callable[[bytes], bytes], name: str = "bert/t1.nii.gz") -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def resave(data: np.ndarray, name: str = "bert/t1.nii.gz", affine: np.ndarray | None = None) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        nibabel.save(nibabel.Nifti1Image(data, nibabel.load(path).affine if affine is None else affine), path)

    return damage


def unplaced_mask(folder: Path) -> None:
    path = folder / "bert" / "mask.nii.gz"
    image = nibabel.load(path)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, path)


NIFTI_FAULTS: dict[str, tuple[Damage, str]] = {
    "0 bytes": (content(lambda data: b""), r"t1\.nii\.gz, found one whose header is none \(0 bytes\)"),
    "3 bytes": (content(lambda data: data[:3]), r"t1\.nii\.gz, found one"),
    "a text": (content(lambda data: b"patient,group\n" * 99), r"t1\.nii\.gz, found one whose header is none"),
    "a web page": (content(lambda data: b"<!DOCTYPE html>" + b" " * 999), r"t1\.nii\.gz, found one whose header"),
    "a pointer of Git LFS": (content(lambda data: b"version https://git-lfs.github.com/spec" * 9), r"header is none"),
    "half of it": (content(lambda data: data[: len(data) // 2]), r"t1\.nii\.gz, found one that is truncated"),
    "the last byte": (content(lambda data: data[:-1]), r"t1\.nii\.gz, found one that is truncated"),
    "a byte that flipped": (content(lambda data: data[:99] + bytes([data[99] ^ 255]) + data[100:]), r"t1.*damaged"),
    "gzip of gzip": (content(gzip.compress), r"header is none|damaged"),
    "half of the voxels": (
        content(lambda data: gzip.compress(gzip.decompress(data)[:900])), r"t1\.nii\.gz, found one that is truncated"
    ),
    "unknown type": (header(70, "<h", 7777), r"t1\.nii\.gz, found one that is truncated or damaged"),
    "negative size": (header(42, "<h", -8), r"t1\.nii\.gz"),
    "size of nothing": (header(42, "<h", 0), r"t1\.nii\.gz"),
    "eight axes": (header(40, "<h", 9), r"t1\.nii\.gz"),
    "huge size": (header(42, "<3h", 32000, 32000, 32000), r"t1\.nii\.gz"),
    "nan in the sform": (header(280, "<f", np.nan), r"where each of the three axes points in .*t1\.nii\.gz"),
    "slope of nan": (header(112, "<2f", np.nan, 0), r""),
    "slope infinite": (header(112, "<2f", np.inf, 0), r"finite scl_slope and scl_inter in .*t1.*, found inf and 0\.0"),
    "offset beyond the end": (header(108, "<f", 1e6), r"t1\.nii\.gz, found one that is truncated"),
    "header of a pair": (header(344, "<4s", b"ni1\0"), r"header of a pair \(\.hdr and \.img\) in .*t1"),
    "complex numbers": (resave(np.ones((8, 9, 5), np.complex64)), r"real numbers in .*t1\.nii\.gz, found complex ones"),
    "five axes": (resave(np.ones((8, 9, 5, 2, 3), np.float32)), r"3 axes, or 4 .*t1\.nii\.gz, found 5"),
    "another size": (resave(np.ones((8, 9, 4), np.float32)), r"8 x 9 x 5 in .* and 8 x 9 x 4 in .*t1"),
    "an infinite voxel": (resave(np.full((8, 9, 5), np.inf, np.float32)), r"found 360 voxels of NaN, infinity"),
    "voxels of 1e300": (resave(np.full((8, 9, 5), 1e300)), r"up to 1e36 in .*t1\.nii\.gz, found 360"),
    "a channel elsewhere": (
        resave(np.ones((8, 9, 5), np.float32), affine=np.diag([1.0, 1, 2, 1])), r"corners of .*t1\.nii\.gz up to 4 mm"
    ),
    "a mask of many channels": (
        resave(np.eye(8 * 9 * 5, 2).reshape(8, 9, 5, 2), "bert/mask.nii.gz"), r"mask of one channel in .*bert.mask"
    ),
    "a mask without a place": (unplaced_mask, r"flair\.nii\.gz does and .*mask\.nii\.gz does not .*--header ignore"),
    "a soft mask": (resave(np.full((8, 9, 5), 0.5), "bert/mask.nii.gz"), r"bert.mask.*0\.5; .*--mask_threshold"),
    "a name of control characters": (
        lambda folder: (folder / "bert" / "t1.nii.gz").rename(folder / "bert" / "t\n1.nii.gz"), r"printable text"
    ),
    "a name of other bytes": (
        lambda folder: (folder / "bert").rename(folder / os.fsdecode(b"be\xffrt")), r"printable text"
    ),
    "a folder that is a file": (lambda folder: (folder / "bert").rename(folder.parent / "elsewhere"), r"2 folds"),
    "a patient without files": (lambda folder: (folder / "cleo").mkdir(), r"images of patient 'cleo'"),
    "DICOM named as NIfTI": (
        lambda folder: slices(0)[0].save_as(folder / "bert" / "t1.nii.gz", enforce_file_format=True),
        r"header is none",
    ),
    "PNG named as NIfTI": (
        lambda folder: Image.new("L", (8, 9)).save(folder / "bert" / "t1.nii.gz", format="PNG"), r"header is none"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NIFTI_FAULTS)
def test_nifti(name, tmp_path):
    folder = write_nifti(tmp_path / "data", ["anna", "bert"])
    damage, sentence = NIFTI_FAULTS[name]
    damage(folder)
    if not sentence:  # NIfTI: such a slope means that there is none
        find_and_examine(folder, folds=2)
        return
    found = refusal(folder, format="nifti")
    assert re.search(sentence, found), found


# --- Pictures and other volumes.


def rewrite(name: str, picture: Image.Image | bytes, **options: object) -> Damage:
    def damage(folder: Path) -> None:
        if isinstance(picture, bytes):
            (folder / name).write_bytes(picture)
        else:
            picture.save(folder / name, **options)

    return damage


GREY = Image.fromarray(np.arange(120, dtype=np.uint8).reshape(12, 10))
CLEAR = Image.merge("LA", (GREY, GREY))
SWAPPED = Image.fromarray(np.eye(12, 10, dtype=np.uint8)).convert("P")
SWAPPED.putpalette([255, 255, 255, 0, 0, 0])

PICTURE_FAULTS: dict[str, tuple[Damage, str]] = {
    "0 bytes": (rewrite("images/a_1.png", b""), r"images.a_1\.png, found one that is truncated or damaged"),
    "a text": (rewrite("images/a_1.png", b"hello" * 99), r"a_1\.png, found one that is truncated or damaged"),
    "transparency": (rewrite("images/a_1.png", CLEAR), r"opaque picture in .*a_1\.png, found transparency"),
    "an animation": (
        rewrite("images/a_1.png", GREY, save_all=True, append_images=[GREY.rotate(90)]), r"found an animation"
    ),
    "a palette that is swapped": (rewrite("masks/a_1.png", SWAPPED), r"label 0 of the mask .*a_1\.png to be black"),
    "an export twice": (rewrite("images/a_1.tif", GREY), r"one file called 'a_1', found .*a_1\.png and .*a_1\.tif"),
    "a mask too many": (rewrite("masks/c_9.png", GREY), r"an image for masks/c_9\.png"),
    "colours in one slice": (rewrite("images/a_2.png", GREY.convert("RGB")), r"one size and number of channels"),
    "16 bits in one slice": (
        rewrite("images/a_2.png", Image.fromarray(np.ones((12, 10), np.uint16))),
        r"found uint8 in .*a_1.* uint16 in .*a_2",
    ),
    "NaN in a float TIFF": (
        lambda folder: [
            (folder / "images" / "a_1.png").unlink(),
            Image.fromarray(np.full((12, 10), np.nan, np.float32)).save(folder / "images" / "a_1.tif"),
        ],
        r"a_1\.tif, found 120 voxels of NaN",
    ),
    "no folder of masks": (lambda folder: (folder / "masks").rename(folder / "truth"), r"found no masks \("),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURE_FAULTS)
def test_pictures(name, tmp_path):
    folder = write_png(tmp_path, ["a_1", "a_2", "b_1"])
    damage, sentence = PICTURE_FAULTS[name]
    damage(folder)
    found = refusal(folder, format="png")
    assert re.search(sentence, found), found


def test_all_bad_patients_are_named_in_one_go(tmp_path):
    lgg = write_lgg(tmp_path, dict.fromkeys(lgg_ids(8), 2))
    for patient in lgg_ids(8)[1:]:
        slice_path(lgg, patient, 1).write_bytes(b"")
    found = refusal(lgg)
    assert found.startswith("expected all 8 patients to be readable, found 7 that are not; TCGA_A_0002: ")
    assert all(patient in found for patient in lgg_ids(8)[1:])
    assert " | " not in found  # one fault, told once


def test_a_volume_whose_voxels_are_elsewhere(tmp_path):
    for number, patient in enumerate(("anna", "bert")):
        (tmp_path / patient).mkdir()
        for name, top in (("image", 99), ("mask", 2)):
            values = np.random.default_rng(number).integers(0, top, (5, 6, 7)).astype(np.int16)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(tmp_path / patient / f"{name}.mhd"))
    find_and_examine(tmp_path, folds=2)
    (tmp_path / "bert" / "image.raw").unlink()
    assert "expected the voxels of" in refusal(tmp_path, format="nifti")
