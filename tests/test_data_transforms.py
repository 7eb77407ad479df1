"""Normalisation against its definition in NumPy, resizing against block means, and augmentation's bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_fp4.data import NormalizeForegroundd, augmentation
from monai_fp4.data.transforms import check_size, resize_to
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


def test_shrinking_averages_areas_and_growing_interpolates():
    image = torch.arange(2 * 8 * 8 * 3, dtype=torch.float32).reshape(2, 8, 8, 3)
    small = resize_to((4, 4, 3), "image", (8, 8, 3))({"image": image})["image"]
    assert torch.allclose(small, image.reshape(2, 4, 2, 4, 2, 3).mean(dim=(2, 4)))
    large = resize_to((16, 16, 3), "image", (8, 8, 3))({"image": image})["image"]
    assert large.shape == (2, 16, 16, 3)
    assert torch.allclose(large[..., 1:-1, 1:-1, :].mean(), image.mean(), atol=1e-3)


@pytest.mark.parametrize("size", [(8,), (8, 8, 8, 8), (0, 8), (8.0, 8), "64", 64, None, (True, 8)])
def test_sizes_that_are_none(size):
    with pytest.raises(ConfigError, match="2 or 3 positive whole numbers"):
        check_size(size)


@pytest.mark.parametrize("shape", [(3, 32, 24), (3, 16, 12, 6)])
def test_augmentation_keeps_shapes_and_moves_label_with_image(shape):
    transform = augmentation(len(shape) - 1)
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
