"""The published LGG files, in the folder that ``MONAI_FP4_LGG`` names: the shipped manifest describes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monai_fp4.data import SliceDataset, build_manifest, load_datalist, load_manifest
from monai_fp4.data.layouts import Listing, data_root, find_patients

pytestmark = pytest.mark.skipif("MONAI_FP4_LGG" not in os.environ, reason="MONAI_FP4_LGG does not name the LGG folder")


@pytest.fixture(scope="module")
def folder() -> Path:
    return data_root(os.environ["MONAI_FP4_LGG"])


def test_folds_are_made_of_the_patients_that_are_here(folder):
    here = {each.id for each in find_patients(Listing(folder), "lgg")[1]}
    train = {each.id for each in load_manifest("lgg").patients if each.fold is not None}
    assert train <= here


def test_a_few_patients_agree_with_the_shipped_manifest(folder, tmp_path):
    shipped = {each.id: each for each in load_manifest("lgg").patients}
    few = ["TCGA_CS_4943_20000902", "TCGA_DU_5872_19950223", "TCGA_HT_7608_19940304"]
    for name in few:
        (tmp_path / name).symlink_to(folder / name)
    for patient in build_manifest(tmp_path, folds=3).patients:
        expected = shipped[patient.id]
        assert patient.images == expected.images
        assert (patient.group, patient.tumour_voxels, patient.tumour_slices) == (
            expected.group,
            expected.tumour_voxels,
            expected.tumour_slices,
        )


def test_slices_to_train_on(folder):
    data = load_datalist("lgg", folder.parent, 0, "val")[:2]
    dataset = SliceDataset(data, (128, 128))
    assert len(dataset) == sum(len(each["images"]) for each in data)
    item = dataset[len(dataset) // 3]
    assert item["image"].shape == (3, 128, 128)
    assert item["image"].isfinite().all()
    assert item["image"].abs().max() < 12
