"""Copies that were saved again, resized, brightened or mirrored are found; patients that only look alike are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from survey_scans import scan

from monai_fp4.report.survey.copies import SAME, Prints, _candidates, find_copies, prints_of


def volume(seed: int) -> np.ndarray:
    return scan(seed)[0][None]


def as_jpeg(image: np.ndarray) -> np.ndarray:
    """Every slice as 8-bit JPEG."""
    low, high = image.min(), image.max()
    slices = []
    for plane in np.moveaxis(image[0], -1, 0):
        content = io.BytesIO()
        Image.fromarray(np.rint(255 * (plane - low) / (high - low)).astype(np.uint8)).save(content, "JPEG", quality=90)
        slices.append(np.asarray(Image.open(content), np.float32))
    return np.moveaxis(np.stack(slices), 0, -1)[None]


def resized(image: np.ndarray) -> np.ndarray:
    edge = round(0.8 * image.shape[1])
    slices = [torch.from_numpy(image[..., z])[None] for z in range(image.shape[-1])]
    small = [torch.nn.functional.interpolate(each, (edge, edge), mode="bilinear")[0].numpy() for each in slices]
    return np.stack(small, axis=-1)


CHANGES = {
    "saved as JPEG": as_jpeg,
    "resized": resized,
    "noisy": lambda image: image + np.random.default_rng(9).normal(0, 3, image.shape).astype(np.float32),
    "brightened": lambda image: (image - image.min()) ** 0.6,
    "moved by a pixel": lambda image: np.roll(image, 1, axis=1),
    "a half of the slices": lambda image: image[..., 4:],
}


def test_patients_that_differ_are_no_copies() -> None:
    assert find_copies([prints_of(volume(seed)) for seed in range(12)]) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(change: str) -> None:
    prints = [prints_of(volume(seed)) for seed in range(5)] + [prints_of(CHANGES[change](volume(3)))]
    (copy,) = find_copies(prints)
    assert (copy.one, copy.other, copy.mirrored) == (3, 5, "")
    assert copy.similar >= 4 and copy.correlation >= SAME
    assert copy.identical == (4 if change == "a half of the slices" else 0)


@pytest.mark.parametrize(
    ("axes", "words"), [((2,), "left to right"), ((1,), "top to bottom"), ((1, 2), "both ways")], ids=str
)
def test_a_mirrored_copy_is_found_and_said_to_be(axes: tuple[int, ...], words: str) -> None:
    prints = [prints_of(volume(0)), prints_of(np.flip(volume(1), axes)), prints_of(volume(1))]
    (copy,) = find_copies(prints)
    assert (copy.one, copy.other, copy.mirrored, copy.identical) == (1, 2, words, 0)


def test_an_untouched_copy_is_identical_in_every_slice() -> None:
    (copy,) = find_copies([prints_of(volume(1)), prints_of(volume(1))])
    assert (copy.identical, copy.similar) == (8, 8)
    assert copy.correlation == pytest.approx(1, abs=1e-3)
    assert copy.pictures is not None and copy.pictures[0].shape == (64, 64)


def test_one_slice_in_common_is_not_enough_for_scans_but_is_for_pictures() -> None:
    one, other = volume(1), volume(2)
    other[..., 5] = one[..., 5]
    assert find_copies([prints_of(one), prints_of(other)]) == []
    other[..., 6] = one[..., 6]
    (copy,) = find_copies([prints_of(one), prints_of(other)])
    assert (copy.identical, copy.similar) == (2, 2)
    (picture,) = find_copies([prints_of(one[..., :1]), prints_of(one[..., :1])])
    assert (picture.identical, picture.similar) == (1, 1)


def test_air_and_flat_slices_tell_nobody_from_another() -> None:
    flat = np.full((1, 32, 32, 4), 7.0, np.float32)
    assert len(prints_of(flat).numbers) == 0 and prints_of(flat).digests == frozenset()
    one, other = volume(1), volume(2)
    one[..., :4] = other[..., :4] = 0
    assert find_copies([prints_of(one), prints_of(other)]) == []
    assert find_copies([prints_of(flat), prints_of(flat.copy())]) == []


def test_numbers_as_large_as_a_reader_takes() -> None:
    huge = (volume(3) * 1e33).astype(np.float32)
    assert np.isfinite(prints_of(huge).pictures).all()
    (copy,) = find_copies([prints_of(huge), prints_of(volume(3))])
    assert copy.similar == 8


def test_many_slices_are_thinned_and_identical_ones_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_fp4.report.survey.copies._MOST_SLICES", 10)
    prints = [prints_of(volume(seed)) for seed in (0, 1, 2, 1)]
    (copy,) = find_copies(prints)
    assert (copy.one, copy.other, copy.identical) == (1, 3, 8)


def test_nobody_and_one() -> None:
    assert find_copies([]) == []
    assert find_copies([Prints(np.zeros((0, 64, 64), np.float16), np.zeros(0, np.int64), frozenset())]) == []


def test_what_is_alike_at_a_glance_and_differs_in_detail_is_no_copy() -> None:
    """Two heads in one atlas: the same shape, other folds of the brain."""
    shape = 100 * ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(64, 64, 8)), (2.5, 2.5, 0))
    details = [np.random.default_rng(seed).normal(0, 1.6, shape.shape) for seed in (1, 2)]
    one, other = (prints_of((shape + detail)[None].astype(np.float32)) for detail in details)
    every = np.concatenate([one.pictures, other.pictures]).astype(np.float32)
    coarse = every.reshape(16, 32, 2, 32, 2).mean((2, 4))
    owners = np.repeat([0, 1], 8)
    assert len(_candidates(coarse, coarse, owners)) >= 8  # looked at closely
    assert find_copies([one, other]) == []
