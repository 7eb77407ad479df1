"""The tables of a manifest's report, as frames that the page's template formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from monai_fp4.data.records import Patient
from monai_fp4.report.survey import Measured, Survey
from monai_fp4.report.survey.measures import PERCENTS

__all__ = [
    "common", "depths", "duplicates", "intensities", "mask_shifts", "mask_values", "parts", "patients", "spacing",
    "summary", "unusual",
]  # fmt: skip

_FEW = 12
"""Rows of a table of what is common."""
_NOTHING = "\u00a0"
"""An empty cell, where a dash would say that something is not known."""


def summary(found: Survey) -> dict[str, str]:
    """What the manifest says and its files hold, in a few lines."""
    manifest, measured = found.manifest, found.measured
    slices = sum(each.shape[2] for each in measured)
    with_lesion = sum(each.examined.tumour_slices for each in measured)
    groups = Counter(patient.group for patient in manifest.patients)
    labels = ", ".join(map(str, manifest.reading.labels)) or "the one value beside 0"
    soft = manifest.reading.mask_threshold
    split = {name: len(members) for name, members in found.parts.items()}
    modalities = sorted({name for each in measured if each.place for name in each.place.modalities} - {""})
    planes = sorted({each.place.plane for each in measured if each.place is not None})
    return {
        "Patients": f"{len(manifest.patients):,}"
        + (f", of whom {len(measured):,} were read" if found.unreadable else ""),
        "Persons": f"{len({patient.who for patient in manifest.patients}):,}",
        "Slices": f"{slices:,}, of which {with_lesion:,} show a lesion",
        "Groups": _grouped(groups),
        "Folds and splits": ", ".join(f"{name}: {count}" for name, count in split.items()) or "none",
        "Channels": ", ".join(manifest.channels),
        "Modality": ", ".join(modalities),
        "Slice plane": ", ".join(planes) or "not said by the files",
        "Format": manifest.format,
        "Lesion": labels if soft is None else f"values from {soft:g} on",
        "Description": manifest.description,
    }


def _grouped(counts: Counter[str]) -> str:
    """Groups with how many patients they have; nothing where no patient's group is known."""
    if not any(counts):
        return ""
    return ", ".join(f"{name or 'not said'} {count}" for name, count in sorted(counts.items()))


def parts(found: Survey) -> pd.DataFrame:
    """A row a fold or split: how many of what, and how much of it is lesion."""
    by_id = {each.patient.id: each for each in found.measured}
    rows = []
    for name, members in found.parts.items():
        own = [by_id[patient.id] for patient in members if patient.id in by_id]
        lesion = sum(each.examined.tumour_voxels for each in own)
        volumes = [each.lesion_ml for each in own if each.lesion_ml is not None]
        groups = Counter(patient.group for patient in members)
        rows.append(
            {
                "part": name,
                "patients": len(members),
                "persons": len({patient.who for patient in members}),
                "slices": sum(each.shape[2] for each in own),
                "lesion_slices": sum(each.examined.tumour_slices for each in own),
                "voxels": lesion,
                "share": 100 * lesion / max(1, sum(each.voxels for each in own)),
                "ml": sum(volumes) if len(volumes) == len(own) else None,
                "without": sum(not each.lesions for each in own),
                "groups": _grouped(groups),
            }
        )
    return pd.DataFrame(rows)


def common(measured: Sequence[Measured], text: Callable[[Measured], str], column: str) -> pd.DataFrame:
    """What patients have in common, the most frequent first."""
    counts = Counter(map(text, measured)).most_common()
    rows = [{column: name, "patients": count} for name, count in counts[:_FEW]]
    if len(counts) > _FEW:
        rest = sum(count for _, count in counts[_FEW:])
        rows.append({column: f"{len(counts) - _FEW} others", "patients": rest})
    return pd.DataFrame(rows, columns=[column, "patients"])


def spacing(each: Measured) -> str:
    """Millimetres between rows, columns and slices, in words."""
    if each.place is None:
        return "not said by the files"
    return " x ".join(f"{length:.4g}" for length in each.place.spacing) + " mm"


def depths(measured: Sequence[Measured]) -> str:
    """How many slices patients have, in words."""
    depths = [each.shape[2] for each in measured]
    if len(set(depths)) < 2:
        return "".join(map(str, set(depths)))
    return f"{min(depths)} to {max(depths)}, median {np.median(depths):g}"


def intensities(found: Survey) -> pd.DataFrame:
    """Of each channel, the median of the patients' percentiles and the range of their foregrounds."""
    rows = []
    for at, name in enumerate(found.manifest.channels if found.measured else ()):
        own = [each.intensities[at] for each in found.measured]
        middle = np.median([each.percentiles for each in own], axis=0)
        means, spreads = [each.mean for each in own], [each.spread for each in own]
        row = {"channel": name} | {f"p{percent}": value for percent, value in zip(PERCENTS, middle, strict=True)}
        rows.append(row | {"mean": _range(means), "spread": _range(spreads)})
    return pd.DataFrame(rows)


def _range(values: list[float]) -> str:
    return f"{min(values):.4g} to {max(values):.4g}"


def unusual(found: Survey) -> list[tuple[str, str]]:
    """Who is unusual, and why."""
    return [(found.measured[number].patient.id, "; ".join(words)) for number, words in sorted(found.unusual.items())]


def mask_values(measured: Sequence[Measured]) -> pd.DataFrame:
    """How many patients' masks hold each value."""
    counts = Counter(value for each in measured for value in each.examined.values)
    rows = [{"value": f"{value:g}", "patients": count} for value, count in sorted(counts.items())]
    return pd.DataFrame(rows, columns=["value", "patients"])


def duplicates(found: Survey) -> pd.DataFrame:
    """A row a pair of patients that show the same, those on different sides of a split first."""
    columns = ["one", "other", "where", "similar", "identical", "correlation", "mirrored"]
    rows = []
    for pair in found.pairs:
        one, other = (found.measured[number].patient for number in (pair.one, pair.other))
        where = "different sides" if found.divided(pair.one, pair.other) else "same side"
        rows.append(
            [
                f"{one.id} ({_part(one, found)})",
                f"{other.id} ({_part(other, found)})",
                where + (", one person" if one.who == other.who else ""),
                pair.similar,
                pair.identical,
                pair.correlation,
                pair.mirrored or _NOTHING,
            ]
        )
    return pd.DataFrame(rows, columns=columns)


def _part(patient: Patient, found: Survey) -> str:
    if found.manifest.splits:
        names = [name for name, members in found.parts.items() if patient in members]
        return ", ".join(names) or "train"
    return "test" if patient.fold is None else f"fold {patient.fold}"


def mask_shifts(found: Survey) -> pd.DataFrame:
    """A row a mask that fits better elsewhere."""
    rows = [
        [found.measured[number].patient.id, given, place.fit, str(place)]
        for number, (given, place) in sorted(found.placement.suspects.items())
    ]
    return pd.DataFrame(rows, columns=["patient", "given", "fit", "place"])


def patients(found: Survey) -> pd.DataFrame:
    """A row a patient."""
    rows = []
    for number, each in enumerate(found.measured):
        rows.append(
            {
                "patient": each.patient.id,
                "part": _part(each.patient, found),
                "group": each.patient.group,
                "size": " x ".join(map(str, each.shape)),
                "spacing": "" if each.place is None else spacing(each),
                "lesion_slices": each.examined.tumour_slices,
                "voxels": each.examined.tumour_voxels,
                "ml": each.lesion_ml,
                "lesions": len(each.lesions),
                "notes": "; ".join(_notes(found, number)) or _NOTHING,
            }
        )
    return pd.DataFrame(rows)


def _notes(found: Survey, number: int) -> Iterator[str]:
    each = found.measured[number]
    notes = {
        "suspected duplicate": any(number in (pair.one, pair.other) for pair in found.copies),
        "suspected mask shift": number in found.placement.suspects,
        "unusual": number in found.unusual,
        "no lesion": not each.lesions,
        "channels alike": each.alike,
        "mask may be inverted": each.examined.inverted,
    }
    return (note for note, holds in notes.items() if holds)
