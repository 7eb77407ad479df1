"""What users say of their patients in a table: institution, person, and folds or splits of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from monai_fp4.data.folds import assign_folds
from monai_fp4.data.layouts import FoundPatient
from monai_fp4.data.layouts.listing import composed
from monai_fp4.data.records import Patient, Split
from monai_fp4.data.tables import fold_and_split, read_table
from monai_fp4.errors import DataError, unknown_name

__all__ = ["folds_of", "read_groups", "with_fields"]

_FIELDS = ("group", "person", "fold", "split")


def read_groups(path: str | Path) -> dict[str, dict[str, str]]:
    """Read what is known of patients from a CSV table with the column ``patient`` and at least one of the others.

    ``group`` is the institution, which is spread over the folds; ``person`` is who has several entries, which are kept
    in one fold; ``fold`` and ``split`` are splits of one's own.

    Raises:
        DataError: no such file, a column that is missing, or a patient listed twice with different fields.
    """
    rows = read_table(Path(path), ())
    fields = [name for name in _FIELDS if name in rows[0]]
    if "patient" not in rows[0] or not fields:
        raise DataError(
            f"expected the columns patient and group (or {', '.join(_FIELDS[1:])}) in {path}, found "
            f"{', '.join(rows[0])}; add a first line with these names"
        )
    known: dict[str, dict[str, str]] = {}
    for row in rows:
        entry = {name: row[name] for name in fields}
        if known.setdefault(row["patient"], entry) != entry:
            raise DataError(
                f"expected every patient once in {path}, found {row['patient']!r} with two {_differing(known, row)}s; "
                "keep one"
            )
    return known


def _differing(known: Mapping[str, Mapping[str, str]], row: Mapping[str, str]) -> str:
    return next(name for name, value in known[row["patient"]].items() if row[name] != value)


def with_fields(
    found: tuple[FoundPatient, ...], groups: Mapping[str, str] | Mapping[str, Mapping[str, str]] | None
) -> tuple[FoundPatient, ...]:
    """Replace what the layout tells by what the user's table tells."""
    if groups is None:
        return found
    ids = {composed(patient.id): patient.id for patient in found}
    for unknown in sorted(key for key in groups if composed(key) not in ids):
        raise unknown_name("patient in the table of groups", unknown, ids.values(), DataError)
    fields = {
        ids[composed(key)]: {"group": value} if isinstance(value, str) else value for key, value in groups.items()
    }
    if any("fold" in row or "split" in row for row in fields.values()) and (
        absent := sorted({*ids.values()} - set(fields))
    ):
        raise DataError(
            f"expected every patient in a table of folds, found {len(absent)} that are not there, {absent[0]!r} first; "
            "add them"
        )
    return tuple(
        replace(
            patient,
            group=row.get("group", patient.group),
            person=row.get("person") or patient.person,
            **fold_and_split(row, "the table of groups"),
        )
        if (row := fields.get(patient.id)) is not None else patient for patient in found
    )  # fmt: skip


def folds_of(patients: Sequence[Patient], folds: int, seed: int) -> tuple[tuple[Patient, ...], int]:
    """Patients by their ids, in the folds that the folder or a table has named or else in ``folds`` that are assigned.

    Raises:
        DataError: folds of some patients only.
    """
    ordered = tuple(sorted(patients, key=lambda patient: patient.id))
    trained = [patient for patient in ordered if patient.split is Split.TRAIN]
    numbers = sorted({patient.fold for patient in trained if patient.fold is not None})
    if not trained:
        return ordered, 0
    if not numbers:
        return assign_folds(ordered, folds, seed), folds
    absent = [patient.id for patient in trained if patient.fold is None]
    if absent:
        raise DataError(f"expected a fold of every patient or of none, found none of {absent[0]!r}; complete the table")
    if numbers != list(range(len(numbers))):
        raise DataError(
            f"expected folds numbered from 0 on without a gap in the table, found {', '.join(map(str, numbers[:9]))}; "
            "number them so"
        )
    return ordered, len(numbers)
