"""Masks that were moved, mirrored or reversed are found, with where they belong; masks in their place are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage
from survey_scans import scan

from monai_fp4.report.survey.placement import Fit, Placement, Verdict, fit_of, judge

Change = Callable[[np.ndarray], np.ndarray]


def fits(count: int = 8, changed: dict[int, Change] | None = None, channels: int = 1) -> dict[int, Fit]:
    found = {}
    for seed in range(count):
        image, mask = scan(seed)
        noise = np.random.default_rng(100 + seed).normal(size=(channels - 1, *image.shape)).astype(np.float32)
        changes = changed or {}
        fit = fit_of(np.concatenate([noise, image[None]]), changes.get(seed, lambda same: same)(mask))
        assert fit is not None
        found[seed] = fit
    return found


def test_the_fit_is_a_correlation_within_lesion_and_rim() -> None:
    image, mask = (np.kron(each, np.ones((2, 2, 1), each.dtype)) for each in scan(4))  # not resized at 128 x 128
    z = int(mask.sum((0, 1)).argmax())
    fit = fit_of(image[None, ..., z : z + 1], mask[..., z : z + 1])
    assert fit is not None
    rim = max(2, round(0.5 * (mask[..., z].sum() / np.pi) ** 0.5))
    window = ndimage.binary_dilation(mask[..., z], iterations=rim)
    for down, right in ((0, 0), (3, -5)):
        moved = np.roll(image[..., z], (-down, -right), (0, 1))
        expected = np.corrcoef(mask[..., z][window], moved[window])[0, 1]
        assert fit.maps["moved"][0, 16 + down, 16 + right] == pytest.approx(expected, abs=1e-4)


def test_masks_in_their_place_are_not_suspected() -> None:
    verdict = judge(fits(12, channels=2))
    assert verdict.usable and verdict.brighter and verdict.channel == 1
    assert verdict.common is None and verdict.suspects == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mask: np.roll(mask, (-6, 5), (0, 1)), "moved by 6 pixels down and 5 to the left"),
        (lambda mask: mask[:, ::-1], "mirrored left to right"),
        (lambda mask: mask[::-1], "mirrored top to bottom"),
        (lambda mask: mask[::-1, ::-1], "turned by 180 degrees"),
        (lambda mask: mask.transpose(1, 0, 2), "with rows and columns exchanged"),
        (lambda mask: mask[..., ::-1], "with its slices in reverse order"),
    ],
    ids=["moved", "columns", "rows", "turned", "exchanged", "slices"],
)
def test_a_misplaced_mask_is_found_with_its_place(change: Change, words: str) -> None:
    verdict = judge(fits(changed={2: change}))
    assert verdict.common is None and list(verdict.suspects) == [2]
    given, place = verdict.suspects[2]
    assert str(place) == words
    assert given < 0.4 < place.fit


def test_masks_that_are_all_misplaced_are_suspected_together() -> None:
    verdict = judge(fits(changed=dict.fromkeys(range(8), lambda mask: mask[:, ::-1])))
    assert verdict.usable and str(verdict.common) == "mirrored left to right"
    assert verdict.agreeing == 1


def test_dark_lesions_are_told_as_well() -> None:
    found = {}
    for seed in range(6):
        image, mask = scan(seed)
        fit = fit_of(-image[None], np.roll(mask, 7, 0) if seed == 3 else mask)
        assert fit is not None
        found[seed] = fit
    verdict = judge(found)
    assert not verdict.brighter and list(verdict.suspects) == [3]
    assert str(verdict.suspects[3][1]) == "moved by 7 pixels up"


def test_where_lesions_are_not_told_by_brightness_the_rule_says_nothing() -> None:
    random = np.random.default_rng(0)
    found = {}
    for seed in range(10):
        fit = fit_of(random.normal(size=(1, 64, 64, 8)).astype(np.float32), scan(seed)[1])
        assert fit is not None
        found[seed] = fit
    verdict = judge(found)
    assert not verdict.usable and verdict.suspects == {} and verdict.common is None


def test_few_masks_empty_masks_and_full_masks() -> None:
    assert judge({}) == Verdict(0)
    assert not judge(fits(4)).usable
    image, mask = scan(0)
    assert fit_of(image[None], np.zeros_like(mask)) is None
    assert fit_of(image[None], np.ones_like(mask)) is None


def test_steps_are_pixels_of_the_scan() -> None:
    image, mask = (np.kron(each, np.ones((4, 4, 1))) for each in scan(1))  # 256 x 256, tried at 128 x 128
    fit = fit_of(image[None].astype(np.float32), mask.astype(bool))
    assert fit is not None and fit.step == 2


def test_flat_scans_and_numbers_as_large_as_a_reader_takes() -> None:
    image, mask = scan(0)
    for values in (np.zeros_like(image), image * np.float32(1e33)):
        fit = fit_of(values[None], mask)
        assert fit is not None
        assert all(np.isfinite(each).all() and np.abs(each).max() <= 1 + 1e-4 for each in fit.maps.values())


def test_places_in_words() -> None:
    assert str(Placement("moved", 0, 0, 1)) == "where it is"
    assert (
        str(Placement("mirrored left to right", 0, -2, 1))
        == "mirrored left to right, then moved by 2 pixels to the left"
    )
