"""Normalisation against its definition in NumPy, resizing against block means, and augmentation's bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Resize

from monai_fp4.bundle import augmentation
from monai_fp4.data import NormalizeForegroundd, check_size
from monai_fp4.data.transforms import percentiles, resize
from monai_fp4.errors import ConfigError


def scan(seed: int, air: float = 2.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    volume = random.normal(air, 1, (2, 12, 12, 6)).clip(0)
    volume[:, 3:9, 3:9] = random.normal(100, 15, (2, 6, 6, 6))
    return volume.astype(np.float32)


def test_foreground_has_mean_0_and_deviation_1_per_channel():
    image = scan(0)
    result = NormalizeForegroundd("image")({"image": image})["image"]
    assert result.dtype == torch.float32
    for channel in range(2):
        inside = image[channel] > image[channel].clip(max=np.percentile(image[channel], 99.5)).mean()
        values = image[channel].clip(np.percentile(image[channel], 0.5), np.percentile(image[channel][inside], 99.5))
        expected = (values - values[inside].mean()) / values[inside].std()
        assert np.allclose(result[channel], expected, atol=1e-4)
        assert result[channel][~inside].max() < -2  # air stays dark


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 50), st.floats(0.05, 50), st.floats(0, 500))
def test_units_of_the_scanner_do_not_matter(seed, gain, offset):
    image = scan(seed)
    one = NormalizeForegroundd("image")({"image": image})["image"]
    other = NormalizeForegroundd("image")({"image": image * gain + offset})["image"]
    assert torch.allclose(one, other, atol=2e-2)


def test_one_bright_voxel_does_not_squeeze_the_rest():
    image = scan(0)
    plain = NormalizeForegroundd("image")({"image": image})["image"]
    image[0, 5, 5, 3] = 1e5
    hot = NormalizeForegroundd("image")({"image": image})["image"]
    assert (hot[0] - plain[0])[image[0] < 1e5].abs().max() < 0.2
    assert torch.equal(hot[1], plain[1])


def test_a_constant_channel_becomes_zero_and_the_input_is_left_alone():
    image = scan(0)
    image[1] = 7
    before = image.copy()
    result = NormalizeForegroundd("image")({"image": image, "other": 1})
    assert (result["image"][1] == 0).all()
    assert result["other"] == 1
    assert np.array_equal(image, before)


def test_a_binary_channel_is_finite():
    image = np.zeros((1, 4, 4, 4), np.float32)
    image[0, :2] = 5
    assert NormalizeForegroundd("image")({"image": image})["image"].isfinite().all()


def test_percentiles_in_the_wrong_order():
    with pytest.raises(ConfigError, match="lower=60 and upper=40"):
        NormalizeForegroundd("image", lower=60, upper=40)


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**15) - 2, 2**16 + 2), min_size=1, max_size=40),
    st.sampled_from([1.0, 1.0, 0.25, 1e-4, float("nan")]),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_percentiles_are_those_of_numpy_to_the_last_bit(numbers, unit, lower, upper):
    values = np.array(numbers, np.float32) * np.float32(unit)
    with np.errstate(all="ignore"):
        assert np.array_equal(percentiles(values, [lower, upper]), np.percentile(values, [lower, upper]), True)
        assert np.array_equal(np.float64(percentiles(values, upper)), np.float64(np.percentile(values, upper)), True)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 0, 1, 2), (3, 2, 1, 0)])
def test_the_layout_in_memory_changes_no_bit(order):
    image = torch.rand(2, 40, 30, 20, generator=torch.Generator().manual_seed(0))
    other = image.permute(order).contiguous().permute(tuple(np.argsort(order)))
    assert other.stride() != image.stride()
    transform = NormalizeForegroundd("image")
    assert torch.equal(transform({"image": other})["image"], transform({"image": image})["image"])
    assert transform.scales(other) == transform.scales(image)  # in float64, where the order of a sum shows


def test_a_volume_can_be_normalised_slice_by_slice_where_it_lies():
    image = torch.from_numpy(scan(0))
    transform = NormalizeForegroundd("image")
    expected, scales = transform({"image": image})["image"], transform.scales(image)
    for number in range(image.shape[3]):
        transform.scale(image[..., number], scales, out=image[..., number])
    assert torch.equal(image, expected)


def test_shrinking_averages_areas_and_growing_interpolates():
    image = torch.arange(2 * 8 * 8 * 3, dtype=torch.float32).reshape(2, 8, 8, 3)
    small = resize(image, (4, 4, 3))
    assert torch.allclose(small, image.reshape(2, 4, 2, 4, 2, 3).mean(dim=(2, 4)))
    large = resize(image, (16, 16, 3))
    assert large.shape == (2, 16, 16, 3)
    assert torch.allclose(large[..., 1:-1, 1:-1, :].mean(), image.mean(), atol=1e-3)


@pytest.mark.parametrize("size", [(12, 18), (24, 12), (8, 6), (6, 12), (4, 18), (11, 13), (30, 40)])
def test_a_resized_slice_is_that_of_the_volume_by_monai_to_the_last_bit(size):
    volume = torch.randn(3, 24, 36, 5, generator=torch.Generator().manual_seed(0))
    shrinks = size[0] <= 24 and size[1] <= 36
    expected = Resize((*size, 5), mode="area" if shrinks else "trilinear")(volume).as_tensor()
    assert torch.equal(torch.stack([resize(piece, size) for piece in volume.unbind(-1)], dim=-1), expected)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("at", range(40, 56))
def test_no_lesion_is_lost_where_some_sides_shrink_and_others_grow(at, depth):
    volume = torch.zeros(1, 128, 128, 8)
    volume[0, at : at + 4, 60:64, 3:5] = 1
    small = resize(volume, (16, 16, depth))
    areas = torch.nn.functional.adaptive_avg_pool3d(volume, (16, 16, 8))
    assert torch.equal(small, torch.nn.functional.interpolate(areas[None], (16, 16, depth), mode="trilinear")[0])
    assert small.sum() * (8 * 8 * 8 / depth) == pytest.approx(4 * 4 * 2)
    assert torch.equal(resize(volume[..., 3], (16, 160)), resize(volume[..., 3:4], (16, 160, 1))[..., 0])


@pytest.mark.parametrize("size", [(8,), (8, 8, 8, 8), (0, 8), (8.0, 8), "64", 64, None, (True, 8)])
def test_sizes_that_are_none(size):
    with pytest.raises(ConfigError, match="two or three whole numbers from 1 on"):
        check_size(size)


def test_augmentation_keeps_shapes_and_moves_label_with_image():
    transform, shape = augmentation(), (3, 32, 24)
    transform.set_random_state(0)
    label = torch.zeros(1, *shape[1:])
    label[0, 4:9, 3:8] = 1
    image = label.repeat(3, *[1] * (len(shape) - 1)) * 10
    changed = 0
    for _ in range(20):
        result = transform({"image": image, "label": label})
        assert result["image"].shape == shape
        assert result["label"].min() >= 0 and result["label"].max() <= 1
        inside = torch.as_tensor(result["image"][0])[torch.as_tensor(result["label"][0]) > 0.5]
        assert inside.mean() > 5
        changed += not torch.equal(torch.as_tensor(result["label"]), label)
    assert changed > 10


def test_large_volumes_are_measured_on_a_part_of_their_voxels():
    image = np.repeat(np.repeat(scan(0), 24, axis=1), 24, axis=2)  # every voxel 24 x 24 times: the same distribution
    large = NormalizeForegroundd("image")({"image": image})["image"]
    small = NormalizeForegroundd("image")({"image": scan(0)})["image"]
    assert torch.allclose(large[:, ::24, ::24], small, atol=0.05)
