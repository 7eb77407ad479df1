"""Intervals over patients, against a bootstrap written out patient by patient."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_fp4.errors import ConfigError
from monai_fp4.metrics import Confusion, ScoreHistogram
from monai_fp4.metrics.bootstrap import bootstrap, known_mean

COUNTS = [Confusion(tp=8, fp=4, fn=2, tn=0), Confusion(tp=1, fp=0, fn=9, tn=0), Confusion(tp=0, fp=5, fn=0, tn=0)]
AUPRC = [0.9, 0.2, math.nan]  # the last has no tumour


def histograms() -> list[ScoreHistogram]:
    return [ScoreHistogram().add([0.9, 0.8, 0.1], [index < 2, 0, 0]) for index in range(3)]


def test_defaults_are_a_thousand_resamples_of_seed_0_and_95_percent() -> None:
    many = np.linspace(0.1, 0.9, 12) ** 2  # so many that each resample has a mean of its own
    found = bootstrap(histograms() * 4, many, 0.5)["auprc_per_patient"]
    times = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=1000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(times @ many / 12, [0.025, 0.975])), abs=1e-12)


def test_values_are_those_of_all_patients_and_of_the_mean_of_who_has_one() -> None:
    found = {name: interval.value for name, interval in bootstrap(histograms(), AUPRC, 0.5, COUNTS).items()}
    assert found == pytest.approx(
        {
            "auprc": 0.5,
            "auprc_per_patient": 0.55,
            "dice": 2 * 9 / (2 * 9 + 9 + 11),
            "dice_per_patient": (16 / 22 + 2 / 11 + 0) / 3,
            "recall": 9 / 20,
            "recall_per_patient": (0.8 + 0.1) / 2,
            "precision": 9 / 18,
            "precision_per_patient": (8 / 12 + 1 + 0) / 3,
        }
    )


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_bounds_are_quantiles_of_the_resamples_in_which_a_number_is_defined(level: float) -> None:
    found = bootstrap(histograms(), AUPRC, 0.5, COUNTS, resamples=200, seed=5, level=level)
    samples: dict[str, list[float]] = {name: [] for name in found}
    for times in np.random.default_rng(5).multinomial(3, np.full(3, 1 / 3), size=200):
        drawn = [index for index in range(3) for _ in range(times[index])]
        tp, fp, fn = (sum(getattr(COUNTS[index], name) for index in drawn) for name in ("tp", "fp", "fn"))
        for name, top, bottom in (
            ("dice", 2 * tp, 2 * tp + fp + fn), ("recall", tp, tp + fn), ("precision", tp, tp + fp),
        ):  # fmt: skip
            samples[name].append(top / bottom if bottom else math.nan)
            samples[f"{name}_per_patient"].append(known_mean([getattr(COUNTS[index], name) for index in drawn]))
        samples["auprc_per_patient"].append(known_mean([AUPRC[index] for index in drawn]))
        # One tumour voxel at 0.9, one of background beside it where there is none: each drawn patient has one at 0.9.
        hits = sum(index < 2 for index in drawn)
        samples["auprc"].append(hits / len(drawn) if hits else math.nan)
    assert any(math.isnan(value) for value in samples["recall"]), "some resample has no tumour at all"
    for name, values in samples.items():
        known = [value for value in values if not math.isnan(value)]
        bounds = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        assert (found[name].low, found[name].high) == pytest.approx(tuple(bounds)), name


def test_one_resample_will_do_and_none_will_not() -> None:
    assert bootstrap(histograms(), AUPRC, 0.5, resamples=1)["auprc"].value == 0.5
    with pytest.raises(ConfigError, match="1 resample or more"):
        bootstrap(histograms(), AUPRC, 0.5, resamples=0)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_a_level_that_is_no_share_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match="level in"):
        bootstrap(histograms(), AUPRC, 0.5, level=level)
