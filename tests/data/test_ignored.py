"""Voxels that do not count: neither the loss nor any metric changes with what a network says of them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from tiny_runs import Dataset, train

from monai_fp4.bundle import augmentation
from monai_fp4.data import SliceDataset, build_manifest, load_datalist, save_manifest
from monai_fp4.data.datasets import PatientDataset
from monai_fp4.data.records import Reading
from monai_fp4.handlers.auprc import from_patients
from monai_fp4.losses import TverskyBCELoss


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Four patients: 1 is lesion, 7 does not count, 3 is an organ."""
    for number in range(4):
        random = np.random.default_rng(number)
        image, mask = random.normal(100, 9, (16, 16, 6)), np.zeros((16, 16, 6), np.uint8)
        mask[4:7, 4:7, 2:4], mask[10:14, 2:8], mask[0, 0] = 1, 7, 3
        image[mask == 1] += 60
        folder = tmp_path / "scans" / f"p{number}"
        folder.mkdir(parents=True)
        for name, values in (("image", image.astype(np.float32)), ("mask", mask)):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{name}.nii.gz")
    reading = Reading(labels=(1,), ignore_label=(7,))
    manifest = build_manifest(tmp_path / "scans", folds=2, reading=reading)
    assert {patient.tumour_voxels for patient in manifest.patients} == {18}
    return Dataset(tmp_path / "scans", save_manifest(manifest, tmp_path / "m.json"))


def test_labels_are_nan_or_two_where_a_voxel_does_not_count(data: Dataset) -> None:
    records = load_datalist(data.manifest, data.dataset_dir, 0, "train")
    evaluated = PatientDataset(records, (16, 16), progress=False)[0]["label"]
    assert (evaluated == 2).sum() == 4 * 6 * 6 and (evaluated == 1).sum() == 18
    slices = SliceDataset(records, (16, 16), progress=False)
    assert torch.isnan(slices[2]["label"]).sum() == 4 * 6 and (slices[2]["label"] == 1).sum() == 9
    shrunk = SliceDataset(records, (8, 8), progress=False)[2]["label"]
    assert torch.isnan(shrunk).sum() == 2 * 3
    moved = SliceDataset(records, (16, 16), augmentation(), progress=False)[2]["label"]
    assert torch.isnan(moved).any()


def test_the_loss_and_its_gradient_pass_over_them() -> None:
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 1, 6, 6, generator=random), (torch.rand(2, 1, 6, 6, generator=random) > 0.7).float()
    part = labels.clone()
    part[..., 3:] = torch.nan
    loss, given = TverskyBCELoss(), logits.clone().requires_grad_()
    found = loss(given, part)
    assert torch.isclose(found, loss(logits[..., :3], labels[..., :3]), rtol=1e-6)
    found.backward()
    assert not given.grad[..., 3:].any() and given.grad[..., :3].any() and torch.isfinite(given.grad).all()
    nothing = loss(given, torch.full_like(part, torch.nan))
    assert torch.isfinite(nothing)


def test_metrics_pass_over_them() -> None:
    random = np.random.default_rng(0)
    label, pred = random.integers(0, 3, (1, 5, 6, 4)), random.random((1, 5, 6, 4))
    item = {"pred": torch.from_numpy(pred), "label": torch.from_numpy(label), "patient": "p"}
    (scores,), (truth,), _, _ = from_patients([item])
    counted = label != 2
    assert np.array_equal(scores.numpy().ravel(), pred[counted])
    assert np.array_equal(truth.numpy().ravel(), label[counted])


def test_a_run_counts_only_what_counts(data: Dataset, tmp_path: Path) -> None:
    run = train(data, tmp_path / "run", epochs=1, image_size=[32, 32])
    curve = json.loads((run / "pr_curve.json").read_text())
    validated = len(json.loads((run / "patients.json").read_text())["val"])
    counted = curve["tp"][-1] + curve["fp"][-1]
    assert counted == validated * (16 * 16 * 6 - 4 * 6 * 6) and curve["tp"][-1] == validated * 18
