"""Data sets: what an item is, against the files; and that random changes follow seed, epoch and index alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose, OneOf, RandAffined, RandFlipd, RandGaussianNoised, Resized
from PIL import Image
from small_data import lgg_ids, slice_path, write_lgg, write_nifti
from torch.utils.data import DataLoader

from monai_fp4.bundle import augmentation
from monai_fp4.data import NormalizeForegroundd, PatientDataset, SliceDataset, build_manifest, load_datalist
from monai_fp4.data.patients import read_patient
from monai_fp4.errors import ConfigError, DataError

IDS = lgg_ids(4)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[dict]:
    folder = write_lgg(tmp_path_factory.mktemp("data"), dict.fromkeys(IDS, 3))
    return load_datalist(build_manifest(folder, folds=2), folder, "all", "train")


def test_slices_are_the_normalised_files(data):
    dataset = SliceDataset(data, (16, 16))
    assert len(dataset) == 12
    volume = np.stack([np.asarray(Image.open(pair["image"])) for pair in data[1]["images"]], axis=-1).transpose(
        2, 0, 1, 3
    )
    expected = NormalizeForegroundd("image")({"image": volume})["image"]
    item = dataset[4]  # the middle slice of the second patient
    assert item["image"].dtype == item["label"].dtype == torch.float32
    assert item["image"].shape == (3, 16, 16)
    assert torch.allclose(item["image"], expected[..., 1], atol=2e-3)
    assert item["label"].shape == (1, 16, 16)
    assert item["label"].sum() == 4
    assert item["label"][0, 3:5, 7:9].all()


def test_image_size_and_third_axis(data):
    assert SliceDataset(data, [8, 12])[0]["image"].shape == (3, 8, 12)
    volumes = SliceDataset(data, (8, 8, 4))
    assert len(volumes) == 4
    assert volumes[0]["image"].shape == (3, 8, 8, 4)
    assert volumes[0]["label"].shape == (1, 8, 8, 4)


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (7, 12), (24, 20), (8, 8, 2), (8, 8, 3), (8, 24, 5)])
def test_slice_by_slice_is_the_whole_volume_at_once_to_the_last_bit(data, size):
    dataset = SliceDataset(data, size)
    for record, image, label in zip(data, dataset._images, dataset._labels, strict=True):
        volume = read_patient(record)
        item = {"image": np.ascontiguousarray(volume.image), "label": np.ascontiguousarray(volume.mask)}
        shape = (*size, 3)[:3]
        mode = "area" if all(new <= old for new, old in zip(shape, (16, 16, 3), strict=True)) else "trilinear"
        item = Compose([NormalizeForegroundd("image"), Resized(["image", "label"], shape, mode=mode)])(item)
        expected = {"image": item["image"].half(), "label": (item["label"].float() * 255).round().to(torch.uint8)}
        for found, key in ((image, "image"), (label, "label")):
            assert found.is_contiguous()
            assert torch.equal(found, expected[key][None] if len(size) == 3 else expected[key].permute(3, 0, 1, 2))
        patient = PatientDataset([record], size)[0]
        assert torch.equal(patient["image"], expected["image"].float())
        assert patient["image"].is_contiguous() and patient["label"].is_contiguous()


def test_a_small_tumour_does_not_vanish_when_the_scan_is_shrunk(data):
    item = SliceDataset(data, (24, 24))[1]
    whole = PatientDataset(data[:1], (24, 24))[0]["label"][..., 1].float()
    shares = torch.nn.functional.adaptive_avg_pool2d(whole, (24, 24))
    assert shares.gt(0).any() and shares.lt(1).any()
    torch.testing.assert_close(item["label"], shares, atol=0.5 / 255 + 1e-6, rtol=0)


def test_patients_keep_their_label(data):
    dataset = PatientDataset(data, (8, 8))
    assert len(dataset) == 4
    item = dataset[2]
    assert item["patient"] == IDS[2]
    assert item["group"] == "B"
    assert item["image"].shape == (3, 8, 8, 3)
    assert item["image"].dtype == torch.float32
    assert item["label"].shape == (1, 16, 16, 3)
    assert item["label"].dtype == torch.uint8
    assert item["label"].sum() == 4
    assert PatientDataset(data, (8, 8, 5))[0]["image"].shape == (3, 8, 8, 5)
    assert PatientDataset(data, (8, 8, 5))[0]["label"].shape == (1, 16, 16, 3)


def test_training_and_evaluation_see_the_same_image(data):
    slices, patients = SliceDataset(data, (8, 8)), PatientDataset(data, (8, 8))
    assert torch.equal(slices[5]["image"], patients[1]["image"][..., 2])


def test_nifti_gives_slices_along_the_last_axis(tmp_path):
    folder = write_nifti(tmp_path, ["anna", "bert"])
    dataset = SliceDataset(load_datalist(build_manifest(folder, format="nifti", folds=2), folder, 0, "val"), (9, 8))
    assert len(dataset) == 5
    assert dataset[3]["image"].shape == (2, 9, 8)
    assert [int(item["label"].sum()) for item in dataset] == [0, 0, 0, 1, 0]


def epoch(dataset: SliceDataset, **options: object) -> torch.Tensor:
    return torch.cat([batch["image"].sum(dim=(1, 2, 3)) for batch in DataLoader(dataset, batch_size=2, **options)])


def transform() -> Compose:
    return Compose([augmentation(), Compose([RandGaussianNoised("image", prob=1.0)])])


def test_an_epoch_can_be_repeated_in_any_order_with_any_number_of_workers(data):
    dataset = SliceDataset(data, (16, 16), transform(), seed=3)
    dataset.set_epoch(2)
    once = epoch(dataset)
    assert torch.equal(once, epoch(dataset))
    assert torch.equal(once.flip(0), epoch(dataset, sampler=list(range(len(dataset)))[::-1]))
    assert torch.equal(once, epoch(dataset, num_workers=2))
    again = SliceDataset(data, (16, 16), transform(), seed=3)
    again.transform.set_random_state(99)  # nothing else that draws can get in between
    again.set_epoch(2)
    assert torch.equal(once, epoch(again))


def test_epochs_seeds_and_items_differ(data):
    dataset = SliceDataset([data[0], data[0]], (16, 16), transform(), seed=3)
    first = epoch(dataset)
    assert not torch.isclose(first[:3], first[3:]).any()  # the same patient twice: other random numbers
    dataset.set_epoch(1)
    assert not torch.isclose(first, epoch(dataset)).any()
    assert not torch.isclose(first, epoch(SliceDataset([data[0], data[0]], (16, 16), transform(), seed=4))).any()


def test_workers_that_live_on_see_the_next_epoch(data):
    dataset = SliceDataset(data, (16, 16), transform())
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=True)
    first = torch.cat([batch["image"].sum(dim=(1, 2, 3)) for batch in loader])
    dataset.set_epoch(1)
    second = torch.cat([batch["image"].sum(dim=(1, 2, 3)) for batch in loader])
    assert not torch.isclose(first, second).any()
    assert torch.equal(second, epoch(dataset))


def test_transforms_that_choose_are_seeded_too(data):
    both = ["image", "label"]
    choice = OneOf([RandFlipd(both, prob=1.0, spatial_axis=0), RandAffined(both, prob=1.0, rotate_range=1.0)])
    dataset = SliceDataset(data, (16, 16), choice)
    assert torch.equal(epoch(dataset), epoch(dataset))


def test_the_cache_is_never_changed(data):
    dataset = SliceDataset(data, (16, 16), lambda item: {key: value.mul_(0) for key, value in item.items()})
    plain = SliceDataset(data, (16, 16))
    assert not dataset[0]["image"].any()
    assert torch.equal(dataset._images[0][0].float(), plain[0]["image"])


def test_no_patient_and_no_size(data):
    for kind in (SliceDataset, PatientDataset):
        with pytest.raises(DataError, match="empty list"):
            kind([], (8, 8))
        with pytest.raises(ConfigError, match="image_size"):
            kind(data, (8,))


def test_a_changed_file_is_found_when_reading(tmp_path):
    folder = write_lgg(tmp_path, dict.fromkeys(IDS[:2], 2))
    data = load_datalist(build_manifest(folder, folds=2), folder, "all", "train")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(slice_path(folder, IDS[0], 1))
    with pytest.raises(DataError, match="SHA-256 differs"):
        SliceDataset(data, (8, 8))


def test_a_resized_mask_keeps_its_area(data):
    native = PatientDataset(data[:1], (32, 32))[0]["label"][..., 1]
    for size in ((32, 32), (16, 8)):
        label = SliceDataset(data, size)[1]["label"]
        assert abs(label.mean() - native.float().mean()) < 2e-3


def test_a_batch_holds_the_items(data):
    dataset = SliceDataset(data, (16, 16), augmentation(), seed=3)
    batch = dataset.__getitems__([4, 1, 7])
    for index, item in zip([4, 1, 7], batch, strict=True):
        assert item["image"].shape == (3, 16, 16) and item["label"].shape == (1, 16, 16)
        assert all(torch.equal(item[key], dataset[index][key]) for key in item)


def test_what_cannot_be_done_in_batches_is_done_one_by_one_and_said(data, recwarn):
    SliceDataset(data, (16, 16), augmentation())
    SliceDataset(data, (16, 16))
    assert not [warning for warning in recwarn if "item by item" in str(warning.message)]
    with pytest.warns(UserWarning, match="item by item on the CPU; set num_workers"):
        SliceDataset(data, (16, 16), transform())


def test_a_cache_that_a_gpu_cannot_hold_stays_here(data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10_000, 20_000))
    with pytest.warns(UserWarning, match=r"stays in the host's memory.*30% of the .* free on cuda:0"):
        dataset = SliceDataset(data, (16, 16), augmentation(), device="cuda:0")
    assert all(tensor.device.type == "cpu" for tensor in dataset._images)


def test_a_cache_that_a_gpu_can_hold_moves_there(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10**9, 10**9))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: (moved.append((tensor.dtype, device)), tensor)[1])
    dataset = SliceDataset.__new__(SliceDataset)
    dataset.device, dataset.transform, dataset._batched = torch.device("cuda:0"), None, None
    dataset._images, dataset._labels = [torch.zeros(2, 3, 4, 4).half()], [torch.zeros(2, 1, 4, 4, dtype=torch.uint8)]
    dataset._cache_on_device()
    assert moved == [(torch.float16, torch.device("cuda:0")), (torch.uint8, torch.device("cuda:0"))]


def test_reading_by_threads_keeps_the_order_and_the_switch(data):
    set_track_meta(True)
    one, four = (SliceDataset(data * 3, (8, 8))._images for _ in range(2))
    assert get_track_meta()
    assert len(one) == 12 and all(torch.equal(a, b) for a, b in zip(one, four, strict=True))
    assert torch.equal(one[1], one[5]) and not torch.equal(one[0], one[1])
