"""The paper's normalisation and augmentation, against OpenCV's definitions written out."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from small_data import lgg_ids, write_lgg

from monai_fp4.data import (
    PaperAugmentationd,
    PaperNormalization,
    PatientDataset,
    SliceDataset,
    build_manifest,
    load_datalist,
)
from monai_fp4.errors import DataError

STILL = {
    "flip_columns": 1.0, "flip_rows": 1.0, "brighten": 1.0, "factor": 1.0, "offset": 0.0, "move": 1.0, "angle": 0.0,
    "scale_rows": 1.0, "scale_columns": 1.0, "shift_rows": 0.0, "shift_columns": 0.0,
}  # fmt: skip
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def picture(size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, size, size), generator=generator).float()
    return image, (torch.rand(1, size, size, generator=generator) > 0.7).float()


def changed(**drawn: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture and label after one change, as numbers of 0 to 255 in the file's order of channels."""
    image, label = (values[None].clone() for values in picture())
    batch = {"image": image, "label": label}
    PaperAugmentationd().apply(batch, [STILL | drawn])
    return ((batch["image"][0] * STD + MEAN) * 255).flip(0), batch["label"][0]


def test_without_changes_it_normalises_with_reversed_channels() -> None:
    image, label = picture()
    found, same = changed()
    torch.testing.assert_close(found, image, rtol=0, atol=1e-3)
    assert torch.equal(same, label)
    expected = (torch.stack([image[2], image[1], image[0]]) / 255 - MEAN) / STD
    torch.testing.assert_close(PaperNormalization().scale(image, None, torch.empty_like(image)), expected)
    volume = torch.stack([image, image + 0], dim=-1)
    torch.testing.assert_close(PaperNormalization().scale(volume, None, volume)[..., 1], expected)


def test_flips_reverse_an_axis_of_both() -> None:
    image, label = picture()
    for name, axis in (("flip_columns", 2), ("flip_rows", 1)):
        found, moved = changed(**{name: 0.4})
        torch.testing.assert_close(found, image.flip(axis), rtol=0, atol=1e-3)
        assert torch.equal(moved, label.flip(axis))


def test_brightness_is_rounded_down_and_clipped() -> None:
    image, label = picture()
    found, same = changed(brighten=0.2, factor=1.15, offset=-0.1)
    torch.testing.assert_close(found, (image * 1.15 - 25.5).clamp(0, 255).floor(), rtol=0, atol=1e-2)
    assert torch.equal(same, label)


def warp(channel: np.ndarray, forwards: np.ndarray, shift: np.ndarray, nearest: bool) -> np.ndarray:
    """Sample each pixel of the result where it comes from, 0 outside; centre (n - 1) / 2."""
    size = channel.shape[0]
    centre, inverse, result = (size - 1) / 2, np.linalg.inv(forwards), np.zeros_like(channel)
    padded = np.pad(channel, size)
    for row in range(size):
        for column in range(size):
            at = inverse @ (np.array([row, column]) - centre - shift) + centre + size
            if nearest:
                low = np.rint(at).astype(int)
                result[row, column] = padded[low[0], low[1]]
                continue
            low = np.floor(at).astype(int)
            a, b = at - low
            corners = padded[low[0] : low[0] + 2, low[1] : low[1] + 2]
            result[row, column] = np.array([1 - a, a]) @ corners @ np.array([1 - b, b])
    return result


@pytest.mark.parametrize(
    "drawn",
    [
        {"shift_rows": 0.099, "shift_columns": -0.06},  # 1.98 and 1.2 pixels: whole ones towards 0
        {"angle": 15.0},
        {"scale_rows": 0.9, "scale_columns": 1.1, "angle": -7.0, "shift_rows": -0.1},
    ],
    ids=["shift", "turn", "all"],
)
def test_affine_fills_with_zero_before_normalisation(drawn: dict[str, float]) -> None:
    image, label = picture()
    all_drawn = STILL | drawn
    found, moved = changed(move=0.1, **drawn)
    angle = np.radians(all_drawn["angle"])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forwards = turn @ np.diag([all_drawn["scale_rows"], all_drawn["scale_columns"]])
    shift = np.trunc(np.array([all_drawn["shift_rows"], all_drawn["shift_columns"]]) * 20)
    for channel, result in zip(image, found, strict=True):
        expected = warp(channel.double().numpy(), forwards, shift, nearest=False)
        assert np.abs(result.numpy() - expected).max() <= 0.51  # rounded to whole numbers, as 8-bit pictures are
    expected = warp(label[0].double().numpy(), forwards, shift, nearest=True)
    assert (moved[0].numpy() != expected).mean() < 0.01  # ties of rounding
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-2)


def test_draws_follow_the_state_and_their_ranges() -> None:
    transform = PaperAugmentationd()
    drawn = []
    for _ in range(2):
        transform.set_random_state(seed=3)
        drawn.append([transform.draw(2) for _ in range(2000)])
    assert drawn[0] == drawn[1]
    ranges = {"factor": (0.8, 1.2), "offset": (-0.2, 0.2), "angle": (-15, 15), "scale_rows": (0.9, 1.1)}
    for name, (low, high) in ranges.items():
        values = [each[name] for each in drawn[0]]
        assert low <= min(values) < low + 0.01 * (high - low) and high - 0.01 * (high - low) < max(values) <= high
    apart = np.corrcoef([[each["scale_rows"], each["scale_columns"]] for each in drawn[0]], rowvar=False)[0, 1]
    assert abs(apart) < 0.1


@pytest.fixture
def data(tmp_path: Any) -> Any:
    folder = write_lgg(tmp_path, dict.fromkeys(lgg_ids(4), 3), size=16)
    return load_datalist(build_manifest(folder, folds=2), folder, fold=0)


def test_data_sets_take_both(data: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # not "item by item"
        train = SliceDataset(data, (16, 16), PaperAugmentationd(), seed=5, normalization=PaperNormalization(raw=True))
    batch = train.__getitems__(range(6))
    again = [train[index] for index in range(6)]
    for one, other in zip(batch, again, strict=True):
        torch.testing.assert_close(one["image"], other["image"], rtol=0, atol=1e-5)
        assert torch.equal(one["label"], other["label"])
    patient = PatientDataset(data, (16, 16), normalization=PaperNormalization())[0]["image"]
    levels = (patient.double() * STD[..., None] + MEAN[..., None]) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=0.1)  # kept as float16


@pytest.mark.parametrize(
    "wrong", [torch.full((3, 2, 2, 1), 0.5), torch.full((3, 2, 2, 1), 300.0), torch.zeros(1, 2, 2, 1)]
)
def test_other_data_is_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(DataError, match="8-bit pictures of three channels"):
        PaperNormalization().scales(wrong)
