"""Assign patients to folds, and pick the patients of one part of a fold.

Always whole patients: neighbouring slices look alike, and one on each side would be a leak. The folds are
stratified. Within each institution the patients are sorted by tumour volume and cut into runs of as many patients as
there are folds; every run gives one patient to each fold, its largest tumour to the fold that has the least so far.
A run that is cut short (the end of an institution) goes to the folds that have the fewest patients. Ties are drawn
from the seed, and the first run is nothing but ties. So the folds' sizes, and their shares of every institution,
differ by one at most, and small and large tumours are everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import groupby

from monai_fp4.data.records import Manifest, Patient, Split
from monai_fp4.errors import ConfigError, DataError, unknown_name

__all__ = ["Part", "assign_folds", "check_folds", "parts_of", "select_patients", "unseen_patients"]


class Part(StrEnum):
    """Purpose of a set of patients."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


def assign_folds(patients: Sequence[Patient], folds: int, seed: int) -> tuple[Patient, ...]:
    """Assign patients of the train split to folds, stratified by institution and tumour volume, a person in one fold.

    The draw is a hash of seed and id, so it is the same for every Python and NumPy, and no matter in which order the
    patients come.

    Args:
        patients: whom to assign; those of the test split keep ``fold=None``.
        folds: how many, at least 2.
        seed: another seed gives other folds.

    Returns:
        The patients, sorted by id, with their ``fold`` set.

    Raises:
        ConfigError: fewer than two folds.
        DataError: fewer patients than folds.
    """
    check_folds(folds)
    people: dict[str, list[Patient]] = {}
    for patient in patients:
        if patient.split is Split.TRAIN:
            people.setdefault(patient.who, []).append(patient)
    assigned = [_Person(entries) for entries in people.values()]
    if len(assigned) < folds:
        raise DataError(
            f"expected at least one patient a fold, found {len(assigned)} patients for {folds} folds; use fewer folds"
        )

    def draw(label: str) -> bytes:
        return hashlib.sha256(f"{seed}:{label}".encode()).digest()

    sizes, volumes = [0] * folds, [0] * folds
    fold_of: dict[str, int] = {}
    assigned.sort(key=lambda person: (person.group, person.volume, person.id))
    for _, members in groupby(assigned, key=lambda person: person.group):
        institution = list(members)
        for start in range(0, len(institution), folds):
            run = institution[start : start + folds]
            order = sorted(range(folds), key=lambda fold: (sizes[fold], draw(f"{run[0].id}:{fold}")))
            # Of the folds with the fewest patients, the one with the least tumour gets the largest.
            order = sorted(order[: len(run)], key=lambda fold: volumes[fold])
            for fold, person in zip(order, reversed(run), strict=True):
                fold_of[person.who] = fold
                sizes[fold] += len(person.entries)
                volumes[fold] += person.volume
    return tuple(
        replace(patient, fold=fold_of[patient.who] if patient.split is Split.TRAIN else None)
        for patient in sorted(patients, key=lambda patient: patient.id)
    )


def check_folds(folds: int) -> None:
    """See that there are folds to train on beside the one that validates.

    Raises:
        ConfigError: fewer than two folds.
    """
    if folds < 2:
        raise ConfigError(f"expected at least 2 folds, found folds={folds}; with one there is nothing to validate on")


class _Person:
    """All entries of one person, who goes to one fold."""

    def __init__(self, entries: list[Patient]) -> None:
        self.entries, self.who = entries, entries[0].who
        self.id = min(patient.id for patient in entries)
        self.group = min(patient.group for patient in entries)
        self.volume = sum(patient.tumour_voxels or 0 for patient in entries)


def select_patients(manifest: Manifest, fold: int | str, part: str) -> tuple[Patient, ...]:
    """The patients of one part of one fold.

    ``train`` are all folds but this one, ``val`` is this fold, ``test`` is the named test split, whatever the fold.
    Under ``fold="all"``, ``train`` is every patient outside the test split and ``val`` is empty, as nobody is held out.
    In a manifest with named splits the fold names one, which says who validates and who tests; the others train.

    Args:
        manifest: where to pick from.
        fold: a number, its digits, the name of a split, or ``"all"``.
        part: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        ConfigError: no such part, or no such fold.
        DataError: the part has no patient, or the fold to validate on has no tumour.

    >>> from monai_fp4.data import load_manifest
    >>> phantom = load_manifest("phantom")
    >>> [len(select_patients(phantom, 0, part)) for part in ("train", "val", "test")]
    [16, 4, 4]
    >>> len(select_patients(phantom, "all", "train"))
    20
    """
    if part not in tuple(Part):
        raise unknown_name("part", part, [each.value for each in Part])
    if part == Part.TEST:
        chosen = unseen_patients(manifest, fold)
        if not chosen:
            raise DataError(
                f"expected patients to test on, found none in manifest {manifest.name!r} for fold {fold!r}; "
                "build them with: monai-fp4 manifest build --split test, or --split_rule paper"
            )
        return chosen
    pool = tuple(patient for patient in manifest.patients if patient.split is Split.TRAIN)
    if not pool:
        raise DataError(
            f"expected patients to train on, found only the test split in manifest {manifest.name!r}; use another"
        )
    if str(fold) == "all":
        return pool if part == Part.TRAIN else ()
    name = _fold_name(fold, manifest)
    if manifest.splits:
        held_out = manifest.splits[name]
        without = {*held_out.val, *held_out.test}
        return tuple(p for p in pool if (p.id in held_out.val if part == Part.VAL else p.id not in without))
    return tuple(patient for patient in pool if (str(patient.fold) == name) == (part == Part.VAL))


def unseen_patients(manifest: Manifest, fold: int | str) -> tuple[Patient, ...]:
    """Whom nobody trains on under this fold: the test split and, in a manifest with named splits, the fold's own.

    Raises:
        ConfigError: no such fold.
    """
    named = manifest.splits[_fold_name(fold, manifest)].test if manifest.splits and str(fold) != "all" else ()
    return tuple(patient for patient in manifest.patients if patient.split is Split.TEST or patient.id in named)


def parts_of(manifest: Manifest) -> dict[str, tuple[Patient, ...]]:
    """Whom each fold or named split holds out, and the test split; parts without a patient are left out.

    >>> from monai_fp4.data import load_manifest
    >>> {name: len(patients) for name, patients in parts_of(load_manifest("phantom")).items()}
    {'fold 0': 4, 'fold 1': 4, 'fold 2': 4, 'fold 3': 4, 'fold 4': 4, 'test': 4}
    """
    parts: dict[str, tuple[Patient, ...]] = {}
    for name in manifest.splits:
        parts[f"{name} val"] = select_patients(manifest, name, Part.VAL)
        parts[f"{name} test"] = unseen_patients(manifest, name)
    if not manifest.splits:
        for fold in range(manifest.folds):
            parts[f"fold {fold}"] = tuple(patient for patient in manifest.patients if patient.fold == fold)
    parts["test"] = tuple(patient for patient in manifest.patients if patient.split is Split.TEST)
    return {name: patients for name, patients in parts.items() if patients}


def _fold_name(fold: int | str, manifest: Manifest) -> str:
    known = [*(manifest.splits or map(str, range(manifest.folds))), "all"]
    if isinstance(fold, bool) or str(fold) not in known:
        raise ConfigError(
            f"expected fold to be one of {', '.join(known)} for manifest {manifest.name!r}, found {fold!r}; correct it"
        )
    return str(fold)
