"""The preview of a prediction: what is drawn where, and how large."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from monai_fp4.visualize import mask_thumbnail, prediction_preview


def preview(shape: tuple[int, int] = (40, 60), **options: object) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[10:20, 10:20] = True
    content = prediction_preview([(3, np.full(shape, 0.5, np.float32), mask)], depth=9, title="study", **options)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)


def test_the_sides_of_the_patient_stand_at_the_borders_where_they_are_known() -> None:
    changed = (preview() != preview(sides=("R", "L"))).any(-1)
    columns = np.flatnonzero(changed.any(0))
    assert changed.sum() > 100
    assert set((columns - 8) // 30) == {0, 11}  # within a twelfth of the slice from either border
    assert (preview(sides=("R", "R")) != preview(sides=("R", "L"))).any()


def test_pixels_that_are_no_squares_are_drawn_as_they_are() -> None:
    square, long = preview((40, 40)), preview((40, 40), spacing=(0.5, 2.0))
    assert square.shape[1] == long.shape[1] and square.shape[0] - long.shape[0] == 2 * (360 - 90)


def test_the_contour_is_below_and_surrounds_the_mask() -> None:
    picture = preview((40, 40))
    contour = (picture == (255, 77, 109)).all(-1)
    rows, columns = np.nonzero(contour)
    assert rows.min() > picture.shape[0] // 2
    assert columns.max() - columns.min() + 1 == 90  # ten of forty pixels


def test_a_thumbnail_outlines_its_mask() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:30, 10:30] = True
    picture = np.asarray(
        Image.open(io.BytesIO(mask_thumbnail(np.zeros((50, 50), np.float32), mask))).convert("RGB"), int
    )
    green = picture[..., 1] > 100
    assert green[10, 10:30].all() and not green[15:25, 15:25].any() and not green[35:].any()


@pytest.mark.parametrize("at", range(103, 800, 97))
def test_one_marked_pixel_of_a_large_slice_is_seen(at: int) -> None:
    mask = np.zeros((800, 800), bool)
    mask[at, at] = True
    content = prediction_preview([(0, mask.astype(np.float32), mask)], depth=1)
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)
    assert (picture == (255, 77, 109)).all(-1).any()
    above = picture[: picture.shape[0] // 2, 8:368]
    assert (above[60:].sum(-1) > 0).any()  # in the scan, too
