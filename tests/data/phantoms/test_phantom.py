"""The phantom: the bytes that its manifest names, whole or not there, readable, neither trivial nor blank."""

from __future__ import annotations

import errno
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_fp4.data import load_datalist, write_phantom
from monai_fp4.data.patients import read_patient
from monai_fp4.data.phantoms.generated import write_patients
from monai_fp4.data.phantoms.phantom import PATIENTS, make_patient, phantom_patients
from monai_fp4.data.phantoms.tiff import encode_tiff
from monai_fp4.errors import DataError


def test_a_disk_that_gets_full_leaves_nothing(tmp_path):
    def write(place: Path, index: int) -> None:
        if index == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(place / "ct.nii"))
        (place / "ct.nii").write_bytes(b"whole")

    with pytest.raises(DataError, match=r"write the chests to .*chests, found .*No space left.*make room or choose"):
        write_patients(tmp_path / "chests", "chests", ["anna", "bert", "carl"], write)
    assert list(tmp_path.iterdir()) == []


def test_two_may_write_at_once(tmp_path):
    target, barrier = tmp_path / "phantom", threading.Barrier(2)

    def write(_: int) -> Path:
        barrier.wait()  # both have seen that there is nothing, before either begins
        return write_phantom(target, patients=3, size=16)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, range(2))) == [target, target]
    assert [path.name for path in tmp_path.iterdir()] == ["phantom"]
    assert len(list(target.iterdir())) == 3


def test_it_looks_like_heads_with_lesions_of_all_kinds(phantom):
    patients = [read_patient(record) for record in load_datalist("phantom", phantom, "all", "train")]
    volumes = [int(patient.mask.sum()) for patient in patients]
    shares = [patient.mask.mean() for patient in patients]
    contrasts, levels = [], []
    for patient in patients:
        flair, tumour = patient.image[1], patient.mask[0] > 0
        air, head = flair < 12, flair >= 12
        assert 0.3 < air.mean() < 0.85
        levels.append(flair[head].mean())
        if tumour.any():
            assert flair[tumour].mean() > 12  # within the head
            contrasts.append(flair[tumour].mean() / np.median(flair[head & ~tumour]))
    assert volumes.count(0) == 2
    assert max(shares) < 0.08
    assert min(volume for volume in volumes if volume) < 300
    assert max(volumes) > 3000
    assert min(contrasts) < 1.0 < max(contrasts)  # dark ones and bright ones
    assert max(levels) > 2 * min(levels)  # every scanner has its own scale
    assert sum(not slice_.any() for patient in patients for slice_ in patient.mask[0].transpose(2, 0, 1)) > 50


def test_a_sequence_is_missing_in_some(phantom):
    repeated = []
    for record in load_datalist("phantom", phantom, "all", "train"):
        image = read_patient(record).image
        if np.array_equal(image[1], image[2]):
            repeated.append(record["patient"])
    assert repeated == [phantom_patients()[5], phantom_patients()[14]]


def test_another_seed_draws_other_heads():
    one, other = make_patient(0, size=16, seed=0)[0], make_patient(0, size=16, seed=1)[0]
    assert one.shape != other.shape or not np.array_equal(one, other)
    assert np.array_equal(one, make_patient(0, size=16, seed=0)[0])
    assert len(set(phantom_patients())) == PATIENTS


@pytest.mark.parametrize("shape", [(4, 5), (5, 4, 3), (3, 3), (1, 1, 3)])
def test_tiff_is_read_back_by_pillow(shape, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = encode_tiff(picture)
    (tmp_path / "a.tif").write_bytes(data)
    with Image.open(tmp_path / "a.tif") as image:
        assert np.array_equal(np.asarray(image), picture)
    start, (count,) = (
        struct.unpack("<I", data[4:8])[0],
        struct.unpack_from("<H", data, struct.unpack("<I", data[4:8])[0]),
    )
    tags = [struct.unpack_from("<H", data, start + 2 + 12 * entry)[0] for entry in range(count)]
    assert tags == sorted(tags)  # TIFF 6.0: entries in ascending order


def test_tiff_of_another_type():
    with pytest.raises(ValueError, match="uint8"):
        encode_tiff(np.zeros((2, 2)))
