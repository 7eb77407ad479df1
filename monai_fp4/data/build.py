"""Build a manifest from a data folder, and check a data folder against a manifest.

Both read every file once: what cannot be trained on is found here, and not in the middle of a run.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from monai_fp4.data.checks import check_patients
from monai_fp4.data.datalist import patient_record, prepare_data
from monai_fp4.data.folds import assign_folds
from monai_fp4.data.layouts import FoundPatient, data_root, find_patients, layout_of
from monai_fp4.data.manifest import load_manifest
from monai_fp4.data.readers import Volume, read_patient, sha256_of
from monai_fp4.data.records import ImagePair, Manifest, Patient, Split
from monai_fp4.errors import ConfigError, DataError, unknown_name

__all__ = ["build_manifest", "check_manifest", "read_groups"]


def build_manifest(
    dataset_dir: str | Path,
    *,
    format: str = "lgg",
    folds: int = 5,
    seed: int = 0,
    split: str = "train",
    name: str | None = None,
    groups: Mapping[str, str] | None = None,
    description: str = "",
) -> Manifest:
    """Read all of a data folder and assign its patients to folds.

    Args:
        dataset_dir: the data folder; for ``lgg`` the ``kaggle_3m`` folder or its parent.
        format: the layout, a key of :data:`monai_fp4.data.layouts.LAYOUTS`.
        folds: how many folds; not used by the test split.
        seed: what assigns them.
        split: ``"train"``, or ``"test"`` to put every patient into the named test split, without folds.
        name: what reports call it; the folder's name if left out.
        groups: institutions by patient id, in place of those that the layout tells.
        description: free text.

    Raises:
        DataError: whatever is wrong with the data, in one sentence.
        ConfigError: no such split, or fewer than two folds.

    Returns:
        The manifest; :func:`monai_fp4.data.save_manifest` writes it.
    """
    layout = layout_of(format)
    if split not in tuple(Split):
        raise unknown_name("split", split, [each.value for each in Split])
    if split == Split.TRAIN and folds < 2:
        raise ConfigError(f"expected at least 2 folds, found folds={folds}; with one there is nothing to validate on")
    root = data_root(dataset_dir)
    found = find_patients(root, format)
    if groups is not None:
        for unknown in sorted(groups.keys() - {patient.id for patient in found}):
            raise unknown_name("patient in the table of groups", unknown, [patient.id for patient in found], DataError)
    patients = []
    channels: tuple[str, ...] | None = None
    for entry in tqdm(found, desc="patients", disable=None):
        patient, volume = _read(entry, root, Split(split), (groups or {}).get(entry.id, entry.group))
        patients.append(patient)
        names = layout.channel_names(entry, volume.image.shape[0])
        if channels is not None and names != channels:
            raise DataError(
                f"expected {len(channels)} channels as in patient {found[0].id!r}, found {len(names)} in "
                f"{entry.id!r} in {root}; bring all patients to the same channels"
            )
        channels = names
    assigned = assign_folds(patients, folds, seed) if split == Split.TRAIN else tuple(patients)
    manifest = Manifest(
        name=name or Path(dataset_dir).resolve().name,
        format=format,
        channels=channels or (),
        patients=assigned,
        folds=folds if split == Split.TRAIN else 0,
        seed=seed,
        description=description,
    )
    check_patients(manifest, source=str(root))
    return manifest


def _read(entry: FoundPatient, root: Path, split: Split, group: str) -> tuple[Patient, Volume]:
    paths = [{"image": str(root / image), "mask": str(root / mask)} for image, mask in entry.pairs]
    volume = read_patient({"patient": entry.id, "images": paths})
    digests = {path: sha256_of(root / path) for pair in entry.pairs for path in pair}
    images = tuple(ImagePair(image, mask, digests[image], digests[mask]) for image, mask in entry.pairs)
    patient = Patient(
        id=entry.id,
        group=group,
        fold=None,
        split=split,
        tumour_voxels=int(np.count_nonzero(volume.mask)),
        images=images,
        tumour_slices=int(volume.mask.any(axis=(0, 1, 2)).sum()),
    )
    return patient, volume


def check_manifest(manifest: str | Path | Manifest, dataset_dir: str | Path) -> Manifest:
    """Read every file that a manifest names and compare hash, size, mask and tumour volume.

    Returns:
        The manifest, as loaded.

    Raises:
        DataError: the first thing that does not agree.
    """
    manifest = load_manifest(manifest)
    check_patients(manifest, source=f"manifest {manifest.name!r}")
    folder = Path(dataset_dir).expanduser()
    if manifest.generator is not None and not (folder.is_dir() and any(folder.iterdir())):
        raise DataError(  # a check that wrote the data would find nothing wrong with a misspelt folder
            f"expected the synthetic scans of manifest {manifest.name!r} in {folder}, found none; the first run of a "
            "bundle on that manifest and dataset_dir writes them"
        )
    root = prepare_data(manifest, dataset_dir)
    absent = [patient.id for patient in manifest.patients if not (root / patient.images[0].image).is_file()]
    if absent:
        raise DataError(
            f"expected all {len(manifest.patients)} patients of manifest {manifest.name!r} in {root}, found that "
            f"{len(absent)} are not there, {absent[0]!r} first; complete the data folder"
        )
    for patient in tqdm(manifest.patients, desc="patients", disable=None):
        volume = read_patient(patient_record(manifest, patient, root))
        found = int(np.count_nonzero(volume.mask))
        if patient.tumour_voxels is not None and found != patient.tumour_voxels:
            raise DataError(
                f"expected {patient.tumour_voxels} tumour voxels in patient {patient.id!r}, found {found} in {root}; "
                "build the manifest again"
            )
    return manifest


def read_groups(path: str | Path) -> dict[str, str]:
    """Read institutions from a CSV table with the columns ``patient`` and ``group``.

    Raises:
        DataError: no such file, a column that is missing, or a patient listed twice.
    """
    table = Path(path)
    if not table.is_file():
        raise DataError(f"expected a CSV table of patient and group at {table}, found no file; correct the path")
    groups: dict[str, str] = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"patient", "group"} <= set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise DataError(
                f"expected the columns patient and group in {table}, found {found}; add a first line with these names"
            )
        for row in reader:
            if groups.setdefault(row["patient"], row["group"] or "") != (row["group"] or ""):
                raise DataError(
                    f"expected every patient once in {table}, found {row['patient']!r} with two groups; keep one"
                )
    return groups
