"""Check what a schema cannot say of a manifest: no patient twice, no file shared, and tumour in every fold.

A patient in two folds, under one id or under two, would be trained on and validated on at once, and the result would
look better than it is. The copy is found by its files: by their paths, and by their hashes.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from pathlib import PurePosixPath

from monai_fp4.data.identity import image_keys, same_images
from monai_fp4.data.layouts import layout_of
from monai_fp4.data.layouts.listing import is_control
from monai_fp4.data.records import Manifest, Patient, Split
from monai_fp4.errors import DataError

__all__ = ["check_patients", "slice_number"]


def check_patients(manifest: Manifest, source: str) -> None:
    """Check that a manifest's patients do not contradict each other; ``source`` is the file or folder that it is from.

    Raises:
        DataError: a patient listed twice or in two folds, a file of two patients, a slice missing within a patient, a
            patient whose fold does not fit its split, or a fold without tumour.
    """
    _check_names(manifest, source)
    _check_ids(manifest, source)
    _check_people(manifest, source)
    _check_files(manifest, source)
    for patient in manifest.patients:
        _check_fold(patient, manifest, source)
        if layout_of(manifest.format).numbered:
            _check_slices(patient, source)
    for name, held_out in manifest.splits.items():
        _check_split(name, (*held_out.val, *held_out.test), manifest, source)
    for fold in range(manifest.folds):
        members = [patient for patient in manifest.patients if patient.fold == fold]
        if not any(_may_have_tumour(patient) for patient in members):
            found = f"none in its {len(members)} patients" if members else "no patient at all"
            raise DataError(
                f"expected a lesion in every fold, found {found} in fold {fold} of {source}; use fewer folds or "
                f"another seed"
            )


def slice_number(image: str) -> int | None:
    """The number that ends a slice's file name, ``None`` where there is none.

    >>> slice_number("TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_12.tif")
    12
    """
    number = re.search(r"(?:^|_)([0-9]{1,9})$", PurePosixPath(image).stem)
    return int(number[1]) if number else None


def _check_names(manifest: Manifest, source: str) -> None:
    """Names reach terminals, figures, tables and configs, where some characters are commands."""
    twice = [name for name, count in Counter(manifest.channels).items() if count > 1]
    if twice:
        raise DataError(
            f"expected in {ascii(source)[1:-1]} channels of different names, found {twice[0][:80]!a} twice; give names "
            "in their order with --channels"
        )
    names = {("the manifest's name", manifest.name), *(("a channel", name) for name in manifest.channels)}
    paths = set()
    for patient in manifest.patients:
        names |= {("a patient's id", patient.id), ("a group", patient.group), ("a person", patient.person)}
        paths |= {path for pair in patient.images for path in (pair.image, pair.mask)}
    for what, name in sorted(names):
        if is_control(name) or "$" in name or name.startswith(("@", "%")):
            raise DataError(
                f"expected {what} of printable text without $, and without @ or % at its beginning, found "
                f"{name[:80]!a} in {ascii(source)[1:-1]}; rename it"
            )
    for id in sorted({patient.id for patient in manifest.patients}):
        if _leads_out(id):
            raise DataError(
                f"expected patients' ids that can be folders below the results, found {id[:80]!a} in "
                f"{ascii(source)[1:-1]}; rename it"
            )
    for path in sorted(paths):
        if is_control(path) or _leads_out(path):
            raise DataError(
                f"expected paths of printable text that stay in the data folder, found {path[:200]!a} in "
                f"{ascii(source)[1:-1]}; correct it"
            )


def _leads_out(path: str) -> bool:
    """Whether a path, below a folder, leads out of it, on any system."""
    return path.startswith("/") or "\\" in path or ".." in path.split("/") or path[1:2] == ":"


def _check_ids(manifest: Manifest, source: str) -> None:
    for patient_id, count in Counter(patient.id for patient in manifest.patients).items():
        if count > 1:
            entries = [patient for patient in manifest.patients if patient.id == patient_id]
            places = ", ".join(_place(patient) for patient in entries)
            raise DataError(
                f"expected every patient once, found {patient_id!r} {count} times in {source} ({places}); "
                "keep one entry, since slices of one patient on both sides make every result too good"
            )


def _check_people(manifest: Manifest, source: str) -> None:
    owners: dict[str, Patient] = {}
    for patient in manifest.patients:
        owner = owners.setdefault(patient.who, patient)
        if (owner.fold, owner.split) != (patient.fold, patient.split):
            raise DataError(
                f"expected every person in one fold, found {patient.who!r} as {owner.id!r} ({_place(owner)}) and as "
                f"{patient.id!r} ({_place(patient)}) in {source}; put both in one, since they look alike"
            )


def _check_files(manifest: Manifest, source: str) -> None:
    owners: dict[str, Patient] = {}
    for patient in manifest.patients:
        for path in {path for pair in patient.images for path in (pair.image, pair.mask)}:
            owner = owners.setdefault(path, patient)
            if owner is not patient:
                raise DataError(
                    f"expected every file in one patient, found {path} in {owner.id!r} ({_place(owner)}) and "
                    f"{patient.id!r} ({_place(patient)}) of {source}; remove one of the two"
                )
    _check_copies(manifest, source)


def _check_copies(manifest: Manifest, source: str) -> None:
    owners: dict[str, list[Patient]] = defaultdict(list)
    digests = {patient.id: image_keys(patient) for patient in manifest.patients}
    for patient in manifest.patients:
        for digest in digests[patient.id]:
            owners[digest].append(patient)
    shared = dict.fromkeys(pair for patients in owners.values() for pair in combinations(patients, 2))
    for one, other in shared:
        if same_images(digests[one.id], digests[other.id]):
            count = max(1, len({pair.sha256 for pair in one.images} & {pair.sha256 for pair in other.images}))
            raise DataError(
                f"expected every image in one patient, found {count} images of {one.id!r} ({_place(one)}) again under "
                f"{other.id!r} ({_place(other)}) in {source}; keep one of the two"
            )


def _check_fold(patient: Patient, manifest: Manifest, source: str) -> None:
    if patient.split is Split.TEST and patient.fold is not None:
        raise DataError(
            f"expected no fold in the test split, found fold {patient.fold} for patient {patient.id!r} in {source}; "
            "set it to null, or the split to train"
        )
    if patient.split is Split.TRAIN and (patient.fold is None) != (manifest.folds == 0):
        wanted = f"0 to {manifest.folds - 1}" if manifest.folds else "null, as there are no folds"
        raise DataError(
            f"expected a fold of {wanted}, found {patient.fold} for patient {patient.id!r} in {source}; correct it"
        )
    if patient.fold is not None and patient.fold >= manifest.folds:
        raise DataError(
            f"expected a fold below {manifest.folds}, found {patient.fold} for patient {patient.id!r} in {source}; "
            "correct it, or the number of folds"
        )


def _check_split(name: str, ids: tuple[str, ...], manifest: Manifest, source: str) -> None:
    known = {patient.id for patient in manifest.patients if patient.split is Split.TRAIN}
    for patient_id, count in Counter(ids).items():
        if count > 1 or patient_id not in known:
            found = f"{count} times" if count > 1 else "who is not among the patients to train on"
            raise DataError(
                f"expected split {name!r} to hold out patients of the manifest, each once, found {patient_id!r} "
                f"{found} in {source}; correct the split"
            )
    if not known - set(ids):
        raise DataError(f"expected patients to train on in split {name!r}, found none in {source}; hold out fewer")


def _check_slices(patient: Patient, source: str) -> None:
    numbers = [slice_number(pair.image) for pair in patient.images]
    for before, after in pairwise(numbers):
        if before is None or after is None or after != before + 1:
            raise DataError(
                f"expected the slices of patient {patient.id!r} to be numbered without a gap, found {after} after "
                f"{before} in {source}; add the missing slice"
            )


def _may_have_tumour(patient: Patient) -> bool:
    """True unless it is known that there is none."""
    known = [count for count in (patient.tumour_voxels, patient.tumour_slices) if count is not None]
    return not known or any(count > 0 for count in known)


def _place(patient: Patient) -> str:
    return f"fold {patient.fold}" if patient.fold is not None else f"split {patient.split.value}"
