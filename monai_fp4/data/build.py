"""Build a manifest from a data folder, and check a data folder against a manifest.

Both read every file once: what cannot be trained on is found here, and not in the middle of a run, and all patients
that are wrong are named together.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_fp4.data.checks import check_patients
from monai_fp4.data.datalist import patient_record, prepare_data
from monai_fp4.data.every_patient import every_patient
from monai_fp4.data.examination import Examined, Findings, examine
from monai_fp4.data.folds import check_folds
from monai_fp4.data.groups import folds_of, with_fields
from monai_fp4.data.layouts import AUTO, FoundPatient, Layout, Listing, data_root, find_patients, layout_of, left_over
from monai_fp4.data.manifest import from_json, load_manifest, to_json
from monai_fp4.data.paper_split import FOLDS, SEED, assign_paper_splits
from monai_fp4.data.patients import read_patient
from monai_fp4.data.pseudonyms import located
from monai_fp4.data.readers import reader_of
from monai_fp4.data.readers.dicom_series import is_there
from monai_fp4.data.readers.files import digest_of
from monai_fp4.data.records import HeldOut, ImagePair, Manifest, Patient, Reading, Split
from monai_fp4.errors import ConfigError, DataError, listed, unknown_name

__all__ = ["SPLIT_RULES", "build_manifest", "check_manifest", "find_and_examine"]

logger = logging.getLogger(__name__)

SPLIT_RULES = ("folds", "paper")
"""Ways to choose whom to validate and to test on."""


def build_manifest(dataset_dir: str | Path, **options: Any) -> Manifest:
    """Read all of a data folder and assign its patients to folds; what :func:`find_and_examine` doubts is a warning.

    Arguments and errors are those of :func:`find_and_examine`.

    Returns:
        The manifest; :func:`monai_fp4.data.save_manifest` writes it.
    """
    manifest, findings = find_and_examine(dataset_dir, **options)
    for doubt in findings.doubts:
        warnings.warn(doubt, stacklevel=2)
    return manifest


def find_and_examine(
    dataset_dir: str | Path,
    *,
    format: str = AUTO,
    folds: int = 5,
    seed: int = 0,
    split: str = "train",
    name: str | None = None,
    groups: Mapping[str, str] | Mapping[str, Mapping[str, str]] | None = None,
    description: str = "",
    patient_pattern: str | None = None,
    series: str | None = None,
    channels: Sequence[str] = (),
    reading: Reading | None = None,
    split_rule: str = "folds",
) -> tuple[Manifest, Findings]:
    """Read all of a data folder, assign its patients to folds, and say what was found.

    Args:
        dataset_dir: the data folder; for ``lgg`` the ``kaggle_3m`` folder or its parent.
        format: the layout, a key of :data:`monai_fp4.data.layouts.LAYOUTS`, or ``"auto"``.
        folds: how many folds; not used by the test split, nor where a table names them.
        seed: what assigns them.
        split: ``"train"``, or ``"test"`` to put every patient into the named test split, without folds.
        name: what reports call it; the folder's name if left out.
        groups: by patient id the institution, or the fields ``group``, ``person``, ``fold`` and ``split``; in place of
            what the layout tells.
        description: free text.
        patient_pattern: a regular expression; its first group (or all of it) in a file's or patient's name says who one
            person is.
        series: a regular expression for the DICOM series to take, by description or UID.
        channels: names of the channels in their order, in place of those of the files.
        reading: how the files become images and masks.
        split_rule: ``"folds"``, or ``"paper"`` for the splits of :mod:`monai_fp4.data.paper_split`, which draw from
            their own seed and make five folds and a holdout, with patients to test on in each.

    Raises:
        DataError: whatever is wrong with the data, in one sentence.
        ConfigError: no such split or rule, fewer than two folds, or a regular expression that is none.
    """
    reading = reading or Reading()
    if split not in tuple(Split):
        raise unknown_name("split", split, [each.value for each in Split])
    if split == Split.TRAIN:
        check_folds(folds)
    if split_rule not in SPLIT_RULES:
        raise unknown_name("split_rule", split_rule, SPLIT_RULES)
    by_paper = split_rule == "paper"
    if by_paper and split != Split.TRAIN:
        raise ConfigError("split_rule 'paper' chooses the patients to test on itself; leave split at 'train'")
    root = data_root(dataset_dir)
    logger.info("looking for patients in %s ...", root)
    listing = Listing(root, _pattern("patient_pattern", patient_pattern), _pattern("series", series), groups or ())
    format, found = find_patients(listing, format)
    found = with_fields(found, groups)
    files = {path for entry in found for pair in entry.pairs for path in pair}
    logger.info("%d patients found; reading %d files ...", len(found), len(files))
    both = every_patient(found, lambda entry: _read(entry, root, Split(split), reading))
    patients, examined = zip(*both, strict=True)
    channels = _channels(layout_of(format), found, examined, root, channels)
    named = patient_pattern is not None or format == "table" or {entry.id for entry in found} <= listing.named
    findings = Findings.of(format, channels, found, examined, left_over(listing, found), reading, root, named)
    splits: dict[str, HeldOut] = {}
    if by_paper:
        if any(entry.split or entry.fold is not None for entry in found):
            raise ConfigError("split_rule 'paper' draws folds and splits itself; leave them out of the table of groups")
        patients, splits = assign_paper_splits(patients)
        folds, seed = FOLDS, SEED
    else:
        patients, folds = folds_of(patients, folds, seed)
    manifest = Manifest(
        name=name or Path(str(dataset_dir)).resolve().name or "data",
        format=format,
        channels=channels,
        patients=patients,
        folds=folds,
        seed=seed,
        description=description,
        reading=reading,
        splits=splits,
    )
    check_patients(manifest, source=str(root))
    from_json(json.loads(to_json(manifest)), source=f"what {root} holds")  # names that no manifest can hold
    return manifest, findings


def _pattern(name: str, text: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise ConfigError(f"expected {name} to be a regular expression, found {text!r} ({error}); correct it") from None


def _read(entry: FoundPatient, root: Path, split: Split, reading: Reading) -> tuple[Patient, Examined]:
    paths = [{"image": str(root / image), "mask": str(root / mask)} for image, mask in entry.pairs]
    examined = examine({"patient": entry.id, "images": paths, "reading": reading.to_json()})
    digests = {path: digest_of(root / path, reader_of(path)) for pair in entry.pairs for path in pair}
    if split is Split.TRAIN:
        split = entry.split or split
    patient = Patient(
        id=entry.id,
        group=entry.group,
        fold=entry.fold if split is Split.TRAIN else None,
        split=split,
        tumour_voxels=examined.tumour_voxels,
        images=tuple(ImagePair(image, mask, digests[image], digests[mask]) for image, mask in entry.pairs),
        tumour_slices=examined.tumour_slices,
        person="" if entry.person == entry.id else entry.person,
        voxels=examined.voxels,
    )
    return patient, examined


def _channels(
    layout: Layout, found: Sequence[FoundPatient], examined: Sequence[Examined], root: Path, wanted: Sequence[str]
) -> tuple[str, ...]:
    """The channels' names, those that the user ``wanted`` or the files' own, the same for all patients.

    Raises:
        DataError: patients with other channels, all of whom are named.
        ConfigError: the user named more or fewer, or one twice.
    """
    names = [layout.channel_names(entry, each.channels) for entry, each in zip(found, examined, strict=True)]
    wrong = {entry.id: each for entry, each in zip(found, names, strict=True) if each != names[0]}
    if wrong:
        raise DataError(
            f"expected {len(names[0])} channels as in patient {found[0].id!r}, found {len(next(iter(wrong.values())))} "
            f"in {listed(map(repr, wrong))} in {root}; bring all patients to the same channels"
        )
    if wanted and (len(wanted) != len(names[0]) or len(set(wanted)) < len(wanted)):
        raise ConfigError(
            f"expected {len(names[0])} different names of channels for {', '.join(names[0])}, found "
            f"{', '.join(wanted)}; give one for each"
        )
    own = [name.lower() for name in names[0]]
    for at, name in enumerate(wanted):
        if name.lower() in own and own.index(name.lower()) != at:
            raise ConfigError(
                f"expected names for the channels {', '.join(names[0])}, in this order, found '{name}', which is "
                f"another channel's own, for '{names[0][at]}'; leave --channels out, or name them in the files' order"
            )
    return tuple(wanted) or names[0]


def check_manifest(manifest: str | Path | Manifest, dataset_dir: str | Path) -> Manifest:
    """Read every file that a manifest names and compare hash, size, mask and tumour volume.

    Returns:
        The manifest, as loaded.

    Raises:
        DataError: what does not agree, of all patients together.
    """
    manifest = load_manifest(manifest)
    check_patients(manifest, source=f"manifest {manifest.name!r}")
    folder = Path(str(dataset_dir)).expanduser()
    if manifest.generator is not None and not (folder.is_dir() and any(folder.iterdir())):
        raise DataError(  # a check that wrote the data would find nothing wrong with a misspelt folder
            f"expected the synthetic scans of manifest {manifest.name!r} in {folder}, found none; the first run of a "
            "bundle on that manifest and dataset_dir writes them"
        )
    root = prepare_data(manifest, dataset_dir)
    absent = [p.id for p in manifest.patients if not is_there(root / located(manifest, p).images[0].image)]
    if absent:
        raise DataError(
            f"expected all {len(manifest.patients)} patients of manifest {manifest.name!r} in {root}, found that "
            f"{len(absent)} are not there, {absent[0]!r} first; complete the data folder"
        )

    def check(patient: Patient) -> None:
        volume = read_patient(patient_record(manifest, patient, root))
        found = int(np.count_nonzero(volume.mask == 1))
        if patient.tumour_voxels is not None and found != patient.tumour_voxels:
            raise DataError(
                f"expected {patient.tumour_voxels} lesion voxels in patient {patient.id!r}, found {found} in {root}; "
                "build the manifest again"
            )

    files = {path for patient in manifest.patients for pair in patient.images for path in (pair.image, pair.mask)}
    logger.info("reading %d files of %d patients ...", len(files), len(manifest.patients))
    every_patient(manifest.patients, check)
    return manifest
