"""Lesions one by one, against SciPy's labels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_fp4.metrics.lesions import lesions_of, missed_lesions


@pytest.mark.parametrize("seed", range(4))
def test_lesions_and_missed_ones_are_those_of_scipy(seed: int) -> None:
    random = np.random.default_rng(seed)
    reference, called = random.random((14, 11, 9)) < 0.04, random.random((14, 11, 9)) < 0.2
    numbers, count = ndimage.label(reference, np.ones((3, 3, 3)))
    assert sorted(lesions_of(reference.astype(np.uint8))) == sorted(np.bincount(numbers.ravel())[1:].tolist())
    missed = sum(not called[numbers == number].any() for number in range(1, count + 1))
    assert missed_lesions(reference, called) == (count, missed) and 0 < missed < count


def test_no_lesion_is_none() -> None:
    empty = np.zeros((4, 3, 2), bool)
    assert lesions_of(empty) == [] and missed_lesions(empty, ~empty) == (0, 0)
