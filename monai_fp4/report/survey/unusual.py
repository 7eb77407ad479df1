"""Patients whose scans are unlike the others': another spacing, another slice plane, or other intensities.

* Spacing and plane, where at most a tenth of the patients share them: what a prediction would warn of after a training
  on the rest (:mod:`monai_fp4.data.acquisition`).
* Mean and spread of a channel's foreground: a modified z score of 3.5 or more (Iglewicz and Hoaglin, How to Detect and
  Handle Outliers, 1993), if it matters: a mean half a spread away from the others', or a spread by a quarter larger or
  smaller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.acquisition import facts, outside, summarize
from monai_fp4.report.survey.measures import Measured

__all__ = ["modified_z", "unusual_patients"]

_SCORE, _MEANS, _SPREADS, _FEW = 3.5, 0.5, 1.25, 0.1


def unusual_patients(patients: Sequence[Measured], channels: Sequence[str]) -> dict[int, list[str]]:
    """What is unusual about patients, a sentence each, by number.

    Args:
        patients: all of them.
        channels: what the channels are called.
    """
    found: dict[int, list[str]] = {}
    for number, sentence in [*_places(patients), *_intensities(patients, channels)]:
        found.setdefault(number, []).append(sentence)
    return found


def _places(patients: Sequence[Measured]) -> list[tuple[int, str]]:
    places = [facts(each.place, ()) for each in patients]
    kinds = [None if p.place is None else (*np.round(p.place.spacing, 3), p.place.plane) for p in patients]
    rare = [kind for kind, count in Counter(kinds).items() if count <= max(1, _FEW * len(patients)) < len(patients)]
    said = {}
    for kind in rare:
        rest = summarize([place for place, other in zip(places, kinds, strict=True) if other != kind])
        said[kind] = outside(rest, places[kinds.index(kind)], ())
    sentences = [(number, sentence) for number, kind in enumerate(kinds) for sentence in said.get(kind, ())]
    return [(number, sentence.replace("training scans", "others")) for number, sentence in sentences]


def _intensities(patients: Sequence[Measured], channels: Sequence[str]) -> list[tuple[int, str]]:
    found = []
    for at, name in enumerate(channels if patients else ()):
        means, spreads = (np.array([getattr(p.intensities[at], what) for p in patients]) for what in ("mean", "spread"))
        typical = np.median(spreads)
        far = np.abs(means - np.median(means)) > _MEANS * typical
        other = (spreads > _SPREADS * typical) | (spreads < typical / _SPREADS)
        for what, values, matters in (("mean", means, far), ("spread", spreads, other)):
            low, high = np.percentile(values, (25, 75))
            found += [
                (
                    number,
                    f"the {what} of the foreground of '{name}' is {values[number]:.4g}, that of half of the patients "
                    f"{low:.4g} to {high:.4g}",
                )
                for number in np.flatnonzero((modified_z(values) >= _SCORE) & matters).tolist()
            ]
    return found


def modified_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """0.6745 times the distance from the median over the median of all such distances; infinity where that is 0.

    >>> modified_z(np.array([1.0, 1.1, 0.9, 1.0, 5.0])).round(2).tolist()
    [0.0, 0.67, 0.67, 0.0, 26.98]
    """
    away = np.abs(values - np.median(values))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(away > 0, 0.6745 * away / np.median(away), 0.0)
