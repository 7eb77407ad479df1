"""Scans of another kind and of another scanner are unusual; what differs without mattering is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from survey_scans import AFFINE, scan, write_scans

from monai_fp4.data import build_manifest
from monai_fp4.report.survey import survey_manifest
from monai_fp4.report.survey.unusual import modified_z


def test_another_spacing_and_another_scanner_are_unusual(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scans = {f"p{seed}": scan(seed) for seed in range(9)}
    for image, _ in scans.values():
        image += random.normal(0, 3)
    scans["p4"] = scans["p4"][0] + 4000, scans["p4"][1]
    root = write_scans(tmp_path, scans)
    thick = write_scans(tmp_path, {"p9": scan(9)}, AFFINE * [1, 1, 2, 1])
    found = survey_manifest(build_manifest(thick, folds=2), root)
    unusual = {found.measured[number].patient.id: words for number, words in found.unusual.items()}
    assert sorted(unusual) == ["p4", "p9"]
    assert unusual["p9"] == ["slices are 8 mm apart, those of the others 4 mm"]
    assert "the mean of the foreground of 'image' is 4" in unusual["p4"][0]


def test_a_tenth_of_the_patients_may_be_another_kind_together(tmp_path: Path) -> None:
    root = write_scans(tmp_path, {f"p{seed:02}": scan(seed) for seed in range(18)})
    write_scans(root, {f"q{seed}": scan(seed + 20) for seed in range(2)}, AFFINE * [1, 1, 3, 1])
    found = survey_manifest(build_manifest(root, folds=2), root)
    assert {found.measured[number].patient.id for number in found.unusual} == {"q0", "q1"}
    half = write_scans(tmp_path / "half", {f"p{seed}": scan(seed) for seed in range(2)})
    write_scans(half, {f"q{seed}": scan(seed + 20) for seed in range(2)}, AFFINE * [1, 1, 3, 1])
    assert survey_manifest(build_manifest(half, folds=2), half).unusual == {}


def test_the_score_is_the_published_one() -> None:
    values = np.random.default_rng(1).normal(size=201)
    values[7] = 9
    away = np.abs(values - np.median(values))
    assert modified_z(values) == pytest.approx(0.6745 * away / stats.median_abs_deviation(values))
    assert (modified_z(np.ones(5)) == 0).all()
    assert modified_z(np.array([1.0, 1.0, 1.0, 2.0])).tolist() == [0, 0, 0, np.inf]
