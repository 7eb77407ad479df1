"""What reading patients takes of the machine's memory, and what becomes of odd intensities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scan_cases
import torch

from monai_fp4.data import SliceDataset, build_manifest, load_datalist, preprocessing
from monai_fp4.data.preprocessing import check_memory, read_patients, threads_for
from monai_fp4.data.transforms import NormalizeForegroundd
from monai_fp4.errors import DataError

GIB = 2**30


def test_threads_follow_the_memory_that_is_left(monkeypatch):
    monkeypatch.setattr(preprocessing.os, "cpu_count", lambda: 64)
    assert threads_for(100, GIB, 40 * GIB) == 8
    assert threads_for(100, GIB, 13 * GIB) == 3
    assert threads_for(100, GIB, GIB) == 1
    assert threads_for(2, GIB, 40 * GIB) == 2
    assert threads_for(100, GIB, -1) == 8


def test_a_cohort_that_does_not_fit_is_said_before_it_is_read(tmp_path, monkeypatch):
    root, _ = scan_cases.write("33_slices", tmp_path)
    records = load_datalist(build_manifest(root, folds=2), root, "all", "train")
    assert len(list(read_patients(records, (32, 32), False))) == 2
    need = 2 * 33 * 32 * 32 * 3
    seen: list[Any] = []
    monkeypatch.setattr(preprocessing, "read_patient", lambda record: seen.append(record) or read(record))
    monkeypatch.setattr(preprocessing, "free_memory", lambda: need // 2)
    with pytest.raises(DataError, match=r"2 patients at image_size \[32, 32\] to fit .*; use a smaller image_size"):
        list(read_patients(records, (32, 32), False))
    assert len(seen) == 1
    check_memory(2**60, 0, 2, (32, 32))  # a system that does not tell


read = preprocessing.read_patient


@pytest.mark.parametrize(
    "values",
    [
        (0, 65535),
        (0, 65535, 65534),
        (-32768, 32767),
        (0, 1e30),
        (-1e30, 1e-3),
        (0, 1e-35),
        (0, 1e-42),
        (5, 5),
        (0, 1e6),
    ],
)
def test_large_small_and_few_values_stay_within_float16(values):
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.choice(np.array(values, np.float32), (1, 20, 20, 4)))
    scaled = NormalizeForegroundd("image")({"image": image})["image"].half()
    assert torch.isfinite(scaled).all() and scaled.abs().max() <= 101
    if image.min() < image.max() and image.abs().max() > 1e-30:
        assert scaled.min() < scaled.max()


def test_a_saturated_channel_is_black_and_white(tmp_path: Path):
    root, _ = scan_cases.write("saturated_16bit", tmp_path)
    with pytest.warns(UserWarning, match="channel 'grey' holds two values in every patient"):
        manifest = build_manifest(root, folds=2)
    dataset = SliceDataset(load_datalist(manifest, root, "all", "train"), (48, 40), progress=False)
    assert {float(value) for item in dataset for value in item["image"].unique()} == {-1.0, 0.0}
