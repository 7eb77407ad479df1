"""What scans a run was trained on, and whether another scan is one of their kind.

A network answers whatever it is given. So a run keeps the range of its training scans (``training_data.json``), and a
prediction says where a scan lies outside of it:

* the spacing of an axis: more than a quarter below the smallest or above the largest;
* the slice plane: none of the training scans had it;
* the intensities of a channel, by mean and spread of the foreground as `NormalizeForegroundd` finds them: a spread
  below half the smallest or above twice the largest, or a mean more than two of the largest spreads outside the range.

The modality is kept too, where the training scans were DICOM: another one is refused before anything is read.

>>> scan = {"plane": "axial", "slices": 9, "modality": ["MR"], "mean": [100.0], "spread": [20.0]}
>>> known = summarize([scan | {"spacing": [0.5, 0.5, z]} for z in (1.0, 2.0)])
>>> known["modalities"]
[['MR']]
>>> outside(known, {"spacing": [0.5, 0.5, 5.0], "plane": "axial", "mean": [110.0], "spread": [25.0]}, ["flair"])
['slices are 5 mm apart, those of the training scans 1 to 2 mm']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator

from monai_fp4.data.readers import Place
from monai_fp4.data.transforms import Scale
from monai_fp4.errors import ConfigError

__all__ = ["check_summary", "facts", "outside", "summarize"]

_SPACING, _SPREAD, _MEANS = 1.25, 2.0, 2.0
_AXES = ("rows", "columns", "slices")
_RANGE = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_WORDS = {"type": "array", "items": {"type": "string"}}


def facts(place: Place | None, scales: Sequence[Scale], *, slices: int = 0) -> dict[str, Any]:
    """What one scan is like.

    Returns:
        ``spacing`` and ``plane``, None where its files do not say, ``slices``, and of each channel ``modality``, ``""``
        where its file does not say, ``mean`` and ``spread``.
    """
    return {
        "spacing": None if place is None else list(place.spacing),
        "plane": None if place is None else place.plane,
        "slices": slices,
        "modality": [""] * len(scales) if place is None or not place.modalities else list(place.modalities),
        "mean": [scale.mean for scale in scales],
        "spread": [scale.spread for scale in scales],
    }


def summarize(scans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The range of the `facts` of scans, as plain JSON; no number of a single patient is in it beside the extremes."""
    return {
        "scans": len(scans),
        "spacing": _ranges(scan["spacing"] for scan in scans if scan["spacing"] is not None),
        "planes": sorted({scan["plane"] for scan in scans if scan["plane"] is not None}),
        "slices": [min(scan["slices"] for scan in scans), max(scan["slices"] for scan in scans)],
        "modalities": [sorted(set(each) - {""}) for each in zip(*(scan["modality"] for scan in scans), strict=True)],
        "mean": _ranges(scan["mean"] for scan in scans),
        "spread": _ranges(scan["spread"] for scan in scans),
    }


def _ranges(scans: Iterable[Sequence[float]]) -> list[list[float]]:
    """The least and the most of each axis, or channel."""
    return [[min(each), max(each)] for each in zip(*scans, strict=True)]


def check_summary(document: Mapping[str, Any], channels: int, path: Any) -> dict[str, Any]:
    """What `summarize` gave of so many channels, read back from a file that anybody may have written.

    Returns:
        The summary; ``slices`` is ``[0, 0]``, and nothing stands in ``modalities``, where an earlier version wrote it.

    Raises:
        ConfigError: it is no such summary.
    """
    known = {"slices": [0, 0], "modalities": [[] for _ in range(channels)], **document}
    counted = {"minItems": channels, "maxItems": channels}
    schema = {
        "required": ["spacing", "planes", "mean", "spread"],
        "properties": {
            "spacing": {"type": "array", "items": _RANGE, "maxItems": 3},
            "planes": _WORDS,
            "slices": _RANGE,
            "modalities": {"type": "array", "items": _WORDS, **counted},
            "mean": {"type": "array", "items": _RANGE, **counted},
            "spread": {"type": "array", "items": _RANGE, **counted},
        },
    }
    if not Draft202012Validator(schema).is_valid(known):
        raise ConfigError(
            f"{path} must hold the range of the training scans in {channels} channels, but does not; restore it, or "
            "remove it to predict without a comparison"
        )
    return known


def outside(known: Mapping[str, Any], scan: Mapping[str, Any], channels: Sequence[str]) -> list[str]:
    """Where the `facts` of a scan lie outside of what `summarize` gave, a sentence each, by the rule of this module."""
    found = []
    if scan["spacing"] is not None and not known["spacing"]:
        found.append("the training scans had no known spacing, so that of this scan was not compared")
    elif scan["spacing"] is None and known["spacing"]:
        found.append("the files do not say the spacing, which was not compared")
    for name, length, (low, high) in zip(_AXES, scan["spacing"] or (), known["spacing"], strict=False):
        if not low / _SPACING <= length <= high * _SPACING:
            found.append(f"{name} are {length:.3g} mm apart, those of the training scans {_range(low, high)} mm")
    if scan["plane"] is not None and known["planes"] and scan["plane"] not in known["planes"]:
        found.append(f"slices are {scan['plane']}, those of the training scans {' or '.join(known['planes'])}")
    for number, name in enumerate(channels):
        mean, spread = scan["mean"][number], scan["spread"][number]
        (low, high), (least, most) = known["mean"][number], known["spread"][number]
        if not (low - _MEANS * most <= mean <= high + _MEANS * most and least / _SPREAD <= spread <= most * _SPREAD):
            found.append(
                f"the foreground of channel '{name}' is {mean:.3g} with a spread of {spread:.3g}, that of the training"
                f" scans {_range(low, high)} with {_range(least, most)}"
            )
    return found


def _range(low: float, high: float) -> str:
    first, last = f"{low:.3g}", f"{high:.3g}"
    return first if first == last else f"{first} to {last}"
