"""Anybody's scans: each data set of ``scan_cases`` comes out right, or is refused in a sentence that says what to do.

What is right is told by nibabel, NumPy and Pillow alone, or by the numbers that the case was written from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import scan_cases
from PIL import Image

from monai_fp4.data import Manifest, load_datalist, save_manifest
from monai_fp4.data.build import find_and_examine
from monai_fp4.data.groups import read_groups
from monai_fp4.data.patients import Volume, read_patient
from monai_fp4.data.records import Header, Reading
from monai_fp4.errors import DataError

SAME = [
    "mask_255",
    "mask_float_09999",
    "mask_scaled_header",
    "mask_flipped_axes",
    "sheared",
    "sagittal",
    "one_slice",
    "4d_one",
    "nifti2",
    "gz_trailing",
    "big_endian",
    "ds_store_only",
    "appledouble_nifti",
    "symlinked_nifti",
    "odd_names",
    "two_patients",
    "tiny",
    "33_slices",
    "large_nonsquare",
    "leading_dot_name",
    "stale_before",
    "stale_after",
]
"""NIfTI folders with one channel, whose mask is whatever is above 0.5."""

PICTURES = [
    "upper_case",
    "rgba",
    "la",
    "palette_images",
    "palette_masks",
    "one_bit_masks",
    "rgb_masks",
    "16bit_grey",
    "16bit_rgb",
    "exif_turned",
    "upper_case_tif",
    "appledouble_lgg",
    "tiff_lzw",
    "tiff_deflate_rgb",
    "tiff_float",
    "tiff_big_endian",
    "tiff_int16",
]
"""Slices written from ``picture(10 * patient + slice)``, up to a scale."""

REFUSED: Mapping[str, tuple[str, dict[str, Any] | None]] = {
    "mask_soft": (r"p0.mask\.nii\.gz, found 0, 0\.333.*--mask_threshold", {"mask_threshold": 0.5}),
    "mask_multilabel": (r"4 that are not; p0: .* 0, 1, 2; say .*--labels.*the same: p1, p2, p3", {"labels": (1, 2, 4)}),
    "mask_one_class_each": (r"1 in 3 patients, 2 in 3 patients .*--labels 1 2", {"labels": (1, 2)}),
    "mask_int8_minus1": (r"-1 in 1 patients, 1 in 3 patients.*--labels -1 1", {"labels": (-1, 1)}),
    "mask_nan_background": (r"p0.mask\.nii\.gz, found 1, nan.*NaN is below all", {"mask_threshold": 0.5}),
    "image_nan_background": (r"p0.image\.nii\.gz, found \d+ voxels of NaN, infinity or more; write numbers", None),
    "mask_inverted": (r"255 in most voxels .*masks.p0_0\.png.*--labels 0 if they are", {"labels": (0,)}),
    "all_empty": (r"a lesion in every fold, found none", None),
    "affine_identity_mask": (
        r"corners of .*mask.nii.gz up to 15 mm \(3\.75 voxels\).*--tolerance",
        {"header": "ignore"},
    ),
    "sform_qform_conflict": (
        r"sform and qform to agree in .*p0.image.* 39 voxels.*--header qform",
        {"header": "qform"},
    ),
    "other_size_mask": (r"40 x 36 x 6 in .*p0.image\.nii\.gz and 20 x 18 x 6 in .*p0.mask\.nii\.gz; resample", None),
    "gz_truncated": (r"p0.image\.nii\.gz, found one that is truncated or damaged .*; fetch it again", None),
    "float64_huge": (r"up to 1e36 in .*p0.image\.nii\.gz, found \d+ voxels", None),
    "jpg_all": (r"p0: .*masks.p0_0\.jpg, found 0, 1, 2.*--mask_threshold", {"mask_threshold": 128}),
    "mixed_grey_rgb": (r"1 channels as in patient 'p0', found 3 in 'p3'", None),
    "dicom": (r"images of patient 'p0' in .*, found none that the nifti layout takes \(3 \.dcm\)", None),
    "nrrd": (r"3 that are not; p0: expected a whole image in .*p0.mask\.nrrd.*hit end of header", None),
    "twice_numbered": (r"one file called '1', found .*_01\.tif and .*_1\.tif; remove one", None),
}
"""Sentences, and what the user can say after reading them, if the data need no change."""

DOUBTED = {
    "second_rater": r"channel 'mask_rater2' equals the mask in p0, p1, p2, p3",
    "saturated_16bit": r"channel 'grey' holds two values in every patient",
    "dash_names": r"4 names begin with 'patient0-slice'.*--patient_pattern",
}

BY_HAND = {"oblique_45", "4d_msd", "brats2023_names", "sessions", "chan_a", "chan_b", "tiff_jpeg"}


def build(root: Path, format: str = "auto", **options: Any) -> tuple[Manifest, tuple[str, ...], tuple[str, ...]]:
    manifest, findings = find_and_examine(root, format=format, folds=2, **options)
    return manifest, findings.facts, findings.doubts


def volumes(manifest: Manifest, root: Path) -> dict[str, Volume]:
    """Read as a run reads: after the manifest was written and loaded again."""
    path = save_manifest(manifest, root.parent / "m.json", force=True)
    return {record["patient"]: read_patient(record) for record in load_datalist(path, root, "all", "train")}


def looked_at(path: Path) -> np.ndarray:
    """A NIfTI file as radiologists look at it, by nibabel's canonical axes: right, front, head."""
    values = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata(dtype=np.float32)
    values = values.reshape(values.shape[:3])
    return values[::-1, ::-1].transpose(1, 0, 2)


def test_every_case_is_looked_at():
    known = {*SAME, *PICTURES, *REFUSED, *DOUBTED, *BY_HAND}
    assert known == set(scan_cases.CASES)


@pytest.mark.parametrize("name", SAME)
def test_nifti_is_read_as_nibabel_reads_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_FP4_FOLLOW_LINKS", "1")  # of a case
    root, format = scan_cases.write(name, tmp_path)
    manifest, _, doubts = build(root)
    assert manifest.format == format and not doubts
    read = volumes(manifest, root)
    assert sorted(read) == sorted(path.name for path in root.iterdir() if path.is_dir())
    for patient, volume in read.items():
        assert np.array_equal(volume.image[0], looked_at(root / patient / "image.nii.gz"))
        assert np.array_equal(volume.mask[0], looked_at(root / patient / "mask.nii.gz") > 0.5)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_what_was_drawn(name, tmp_path):
    root, format = scan_cases.write(name, tmp_path)
    manifest, _, doubts = build(root)
    assert manifest.format == format and not doubts
    top = {"16bit_grey": {"top": 65535, "dtype": np.uint16}, "exif_turned": {"size": (40, 40)}}.get(name, {})
    scale = {"tiff_big_endian": (100, 0), "tiff_int16": (8, -1000), "tiff_float": (np.float32(1 / 255), 0)}.get(
        name, (1, 0)
    )
    patients = volumes(manifest, root)
    assert len(patients) in (4, 6)
    for number, volume in enumerate(patients.values()):
        for index in range(volume.image.shape[-1]):
            image, mask = scan_cases.picture(10 * number + index + (format == "lgg"), **top)
            for channel in volume.image[..., index]:
                assert np.allclose(channel, image.astype(np.float32) * scale[0] + scale[1], rtol=1e-6)
            assert np.array_equal(volume.mask[0, ..., index], mask > 0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_doubtful_is_refused_with_a_remedy(name, tmp_path):
    root, format = scan_cases.write(name, tmp_path)
    sentence, remedy = REFUSED[name]
    with pytest.raises(DataError, match=sentence) as refused:
        build(root, format)
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError):
        build(root)
    if remedy is not None:
        header = Header(remedy.pop("header", "auto")) if "header" in remedy else Header.AUTO
        manifest, _, _ = build(root, format, reading=Reading(**remedy, header=header))
        for number, (patient, volume) in enumerate(volumes(manifest, root).items()):
            if format == "png":
                drawn = [scan_cases.picture(10 * number + index)[1] > 0 for index in range(volume.mask.shape[-1])]
                assert np.array_equal(volume.mask[0], np.stack(drawn, -1))
                continue
            mask = scan_cases.scan(number)[1]
            if name == "mask_soft" and patient == "p0":
                mask = (mask.astype(np.float32) + np.roll(mask, 1, 0) + np.roll(mask, -1, 0)) / 3 >= 0.5
            assert np.array_equal(volume.mask[0], mask[::-1, ::-1].transpose(1, 0, 2))
            assert np.array_equal(volume.image[0], looked_at_by_qform(root / patient / "image.nii.gz"))


def looked_at_by_qform(path: Path) -> np.ndarray:
    image = nibabel.load(path)
    assert nibabel.aff2axcodes(image.get_qform()) == ("R", "A", "S")
    return image.get_fdata(dtype=np.float32)[::-1, ::-1].transpose(1, 0, 2)


@pytest.mark.parametrize("name", DOUBTED)
def test_what_may_be_meant_is_a_warning_by_name(name, tmp_path):
    root, format = scan_cases.write(name, tmp_path)
    _, facts, doubts = build(root, format)
    assert any(re.search(DOUBTED[name], doubt) for doubt in doubts)
    assert facts[0].startswith(f"format {format}")


def test_slices_whose_names_have_dashes_are_put_together_by_a_pattern(tmp_path):
    root, _ = scan_cases.write("dash_names", tmp_path)
    manifest, _, doubts = build(root, patient_pattern=r"(patient\d+)-")
    assert {patient.id: len(patient.images) for patient in manifest.patients} == dict.fromkeys(
        ["patient0", "patient1", "patient2"], 4
    )
    assert not doubts
    with pytest.raises(
        DataError, match=r"--patient_pattern 'zzz' to find a patient in every name, found none in images"
    ):
        build(root, patient_pattern="zzz")


def test_an_oblique_slab_is_turned_by_its_image_alone(tmp_path):
    root, _ = scan_cases.write("oblique_45", tmp_path)
    manifest, _, _ = build(root)
    read = volumes(manifest, root)
    for patient, volume in read.items():
        image, mask = (nibabel.load(root / patient / f"{name}.nii.gz").get_fdata() for name in ("image", "mask"))
        assert volume.image.shape == next(iter(read.values())).image.shape
        assert np.isclose(volume.image[0][volume.mask[0] == 1].sum(), image[mask == 1].sum(), rtol=1e-5)
        assert volume.mask.sum() == mask.sum()


def test_channels_of_one_file_and_of_many(tmp_path):
    root, _ = scan_cases.write("4d_msd", tmp_path)
    manifest, _, _ = build(root)
    assert manifest.channels == tuple(f"channel_{number}" for number in range(4))
    first = volumes(manifest, root)["p0"].image
    for number in range(4):
        expected = scan_cases.scan(0)[0] * (number + 1)
        assert np.allclose(first[number], expected[::-1, ::-1].transpose(1, 0, 2))
    root, _ = scan_cases.write("brats2023_names", tmp_path)
    manifest, facts, _ = build(root)
    assert manifest.channels == ("t1c", "t1n", "t2f", "t2w")
    assert "channels: t1c, t1n, t2f, t2w" in facts and "masks: */*-seg.nii.gz" in facts


def test_a_person_with_two_sessions_is_in_one_fold(tmp_path):
    root, _ = scan_cases.write("sessions", tmp_path)
    folds = {patient.id: patient.fold for patient in build(root, patient_pattern=r"genius_(\d\d)")[0].patients}
    assert all(folds[f"genius_{who}00"] == folds[f"genius_{who}01"] for who in ("08", "09", "10"))
    _, _, doubts = build(root, groups=read_groups(tmp_path / "sessions.csv"))
    assert "groups are spread over the folds: if they are persons, name the table's column person" in doubts[0]
    table = tmp_path / "people.csv"
    table.write_text((tmp_path / "sessions.csv").read_text().replace("group", "person"))
    folds = {patient.id: patient.fold for patient in build(root, groups=read_groups(table))[0].patients}
    assert all(folds[f"genius_{who}00"] == folds[f"genius_{who}01"] for who in ("08", "09", "10"))


def test_jpeg_in_tiff_is_near_to_what_was_drawn(tmp_path):
    root, _ = scan_cases.write("tiff_jpeg", tmp_path)
    volume = volumes(build(root)[0], root)["HOS_AA_000"]
    image, mask = scan_cases.picture(1)
    with Image.open(root / "HOS_AA_000" / "HOS_AA_000_1.tif") as picture:
        assert np.array_equal(volume.image[0, ..., 0], np.asarray(picture)[..., 0])
    assert np.abs(volume.image[0, ..., 0] - image).mean() < 10
    assert np.array_equal(volume.mask[0, ..., 0], mask > 0)


@pytest.mark.parametrize("name", ["chan_a", "chan_b"])
def test_channels_are_named_after_their_files(name, tmp_path):
    root, _ = scan_cases.write(name, tmp_path)
    names = {"chan_a": ("flair", "t1"), "chan_b": ("t1", "t2")}[name]
    manifest, facts, _ = build(root)
    assert manifest.channels == names and f"channels: {', '.join(names)}" in facts
