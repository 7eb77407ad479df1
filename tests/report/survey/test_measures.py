"""Numbers of one patient, against numpy, scipy and nibabel on the files themselves."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from small_data import write_png
from survey_scans import scan, write_scans

from monai_fp4.data import build_manifest
from monai_fp4.data.datalist import patient_record, prepare_data
from monai_fp4.errors import DataError
from monai_fp4.report.survey.measures import PERCENTS, Measured, measure

SHEARED = np.array([[0.9, 0.0, 0.3, 5], [0.0, -0.8, 0.0, 7], [0.0, 0.1, 3.0, 9], [0, 0, 0, 1.0]])


def measured(root: Path, number: int = 0, **options: object) -> Measured:
    manifest = build_manifest(root, folds=2, **options)
    patient = manifest.patients[number]
    return measure(patient_record(manifest, patient, prepare_data(manifest, root)), patient)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scans = {f"p{seed}": scan(seed) for seed in range(3)}
    mask = scans["p0"][1]
    mask[50:53, 10, 6], mask[53, 11, 7] = True, True  # a second lesion, whose parts touch by a corner
    return write_scans(tmp_path_factory.mktemp("scans"), scans, SHEARED)


def test_volumes_and_lesions_are_those_of_the_files(folder: Path) -> None:
    found = measured(folder)
    mask = nibabel.load(folder / "p0" / "mask.nii.gz")
    values = np.asarray(mask.dataobj) == 1
    voxel = abs(np.linalg.det(mask.affine[:3, :3]))
    assert found.lesion_ml == pytest.approx(values.sum() * voxel / 1000, rel=1e-6)
    labels, count = ndimage.label(values, np.ones((3, 3, 3)))
    assert count == 2
    assert found.lesions == tuple(sorted(np.bincount(labels.ravel())[1:], reverse=True))
    assert found.examined.tumour_slices == values.any(axis=(0, 1)).sum()
    assert found.voxels == values.size
    assert found.place is not None
    zooms = nibabel.affines.voxel_sizes(mask.affine)
    assert sorted(found.place.spacing) == pytest.approx(sorted(zooms))
    assert found.place.plane == "axial"


def test_intensities_are_those_of_the_files(folder: Path) -> None:
    (found,) = measured(folder).intensities
    values = np.asarray(nibabel.load(folder / "p0" / "image.nii.gz").dataobj, np.float32)
    assert found.percentiles == pytest.approx(tuple(np.percentile(values, PERCENTS)))
    peak = np.percentile(values, 99.5)
    inside = values[values > values.clip(max=peak).mean()]
    inside = inside.clip(np.percentile(values, 0.5), np.percentile(inside, 99.5))
    assert (found.mean, found.spread) == pytest.approx((inside.mean(), inside.std()), rel=1e-4)


def test_channels_that_are_copies_are_named(tmp_path: Path) -> None:
    write_scans(tmp_path, {"p0": scan(0), "p1": scan(1)})
    for patient in ("p0", "p1"):
        image = nibabel.load(tmp_path / patient / "image.nii.gz")
        values = np.asarray(image.dataobj)
        empty = np.zeros_like(values)
        channels = [values + 1, values, empty, values, empty] if patient == "p0" else [values + n for n in range(5)]
        nibabel.save(nibabel.Nifti1Image(np.stack(channels, -1), image.affine), tmp_path / patient / "image.nii.gz")
    assert measured(tmp_path).alike == ((1, 3),)
    assert measured(tmp_path, 1).alike == ()


def test_the_thumbnail_shows_the_largest_lesion_with_its_outline(folder: Path) -> None:
    found = measured(folder).thumbnail
    mask = np.asarray(nibabel.load(folder / "p0" / "mask.nii.gz").dataobj) == 1
    assert mask.sum((0, 1))[found.slice] == mask.sum((0, 1)).max()
    picture = np.asarray(Image.open(io.BytesIO(found.content)).convert("RGB")).astype(int)
    assert picture.shape == (found.height, found.width, 3) and max(picture.shape) == 160
    green = picture[..., 1] - picture[..., (0, 2)].max(-1) > 30
    share = mask[..., found.slice].mean()
    assert 0 < green.mean() < share  # a line, and not the lesion


@pytest.mark.parametrize("toward", [1.0, -1.0], ids=["to the right", "to the left"])
def test_a_thumbnail_has_the_patients_right_on_its_left_and_pixels_as_large_as_they_are(
    tmp_path: Path, toward: float
) -> None:
    image, mask = np.zeros((40, 40, 3), np.float32), np.zeros((40, 40, 3), bool)
    right = slice(30, 40) if toward > 0 else slice(0, 10)  # first axis: to the patient's right, or to the left
    image[right, 15:25], mask[right, 15:25, 1] = 100, True
    affine = np.diag([toward, 0.5, 4.0, 1.0])
    found = measured(write_scans(tmp_path, {"p0": (image, mask), "p1": scan(1)}, affine)).thumbnail
    assert (found.width, found.height) == (160, 80)
    picture = np.asarray(Image.open(io.BytesIO(found.content)).convert("L"), int)
    assert picture[:, :40].mean() > 10 * picture[:, 60:].mean() + 10


def test_pictures_have_no_volume_and_a_lesion_of_one_pixel_shows(tmp_path: Path) -> None:
    write_png(tmp_path, ["anna_1", "anna_2", "bert_1", "bert_2"])
    found = measured(tmp_path)
    assert found.place is None and found.lesion_ml is None and found.lesions == (2,)
    assert found.shape == (12, 10, 2)
    picture = np.asarray(Image.open(io.BytesIO(found.thumbnail.content)).convert("RGB")).astype(int)
    assert (picture[..., 1] - picture[..., (0, 2)].max(-1) > 30).any()


def test_another_lesion_than_the_manifest_names_is_refused(folder: Path) -> None:
    manifest = build_manifest(folder, folds=2)
    patient = replace(manifest.patients[0], tumour_voxels=1)
    with pytest.raises(DataError, match=r"expected 1 lesion voxels in patient 'p0', found \d+; build"):
        measure(patient_record(manifest, patient, prepare_data(manifest, folder)), patient)
