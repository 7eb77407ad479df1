"""The split rule of arXiv 2605.27616: five folds and one holdout, each with patients to train, validate and test on.

Patients are put into three bins by the share of their slices that hold tumour, cut at the thirds of that share (a
share on a cut belongs to the lower bin). All drawing is scikit-learn's, from the seed 2026, stratified by the bins:

* ``holdout``: a fifth of the patients is held out.
* ``0`` to ``4``: the folds of a shuffled five-fold split; each holds out a fifth.

The held-out fifth is cut in half at random, again stratified: the first half validates, the second tests. So the folds
together test only half of the patients. On LGG's 110 patients the rule gives the paper's own lists, which
``data_manifests/lgg_paper.json`` holds; on fewer patients it is the same rule and no longer the paper's lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.records import HeldOut, Patient, Split
from monai_fp4.errors import ConfigError, DataError

__all__ = ["FOLDS", "HOLDOUT", "SEED", "assign_paper_splits", "paper_splits"]

SEED = 2026
"""What the splits are drawn from."""
FOLDS = 5
"""How many folds the paper has."""
HOLDOUT = "holdout"
"""Name of the split that holds out a fifth of the patients."""
_SHARE = 0.2


def paper_splits(slices: Mapping[str, tuple[int, int]]) -> dict[str, HeldOut]:
    """Draw the holdout and the folds, from each patient's number of slices and number of those with tumour.

    Returns:
        ``holdout`` and ``0`` to ``4`` -> whom they hold out; all others are trained on.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: too few patients to stratify.
    """
    try:
        from sklearn.model_selection import StratifiedKFold, train_test_split
    except ImportError as error:
        raise ConfigError(
            "the split rule 'paper' needs scikit-learn, which is not installed; pip install scikit-learn"
        ) from error
    names = sorted(slices)
    shares = np.array([slices[name][1] / slices[name][0] for name in names])
    bins = np.digitize(shares, np.quantile(shares, [1 / 3, 2 / 3]) if len(shares) else [0.0], right=True)
    everyone = np.arange(len(names))

    def halves(held_out: NDArray[np.intp], seed: int) -> HeldOut:
        parts = train_test_split(held_out, test_size=0.5, random_state=seed, stratify=bins[held_out])
        val, test = (tuple(sorted(names[i] for i in part)) for part in parts)
        return HeldOut(val=val, test=test)

    try:
        _, held_out = train_test_split(everyone, test_size=_SHARE, random_state=SEED, stratify=bins)
        result = {HOLDOUT: halves(held_out, SEED)}
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(everyone, bins)
        return {**{str(f): halves(held_out, SEED + f) for f, (_, held_out) in enumerate(folds)}, **result}
    except ValueError as error:  # scikit-learn's own sentence names the class that is too small
        raise DataError(
            f"the split rule 'paper' expects enough patients to halve a fifth of them within three bins of tumour "
            f"share, found {len(names)} ({error}); use folds"
        ) from error


def assign_paper_splits(patients: Sequence[Patient]) -> tuple[tuple[Patient, ...], dict[str, HeldOut]]:
    """Apply the rule to patients of a manifest; their ``fold`` is the one that holds them out.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: too few patients, or one whose number of slices with tumour is not known.
    """
    unknown = [patient.id for patient in patients if patient.tumour_slices is None]
    if unknown:
        raise DataError(
            f"the split rule 'paper' expects the number of slices with tumour of every patient, found none for "
            f"{unknown[0]!r}; build the manifest from the data"
        )
    if len({patient.who for patient in patients}) < len(patients):
        raise DataError(
            "the split rule 'paper' expects one entry a person, found persons with several; use folds, which keep them "
            "together"
        )
    splits = paper_splits({patient.id: (len(patient.images), patient.tumour_slices or 0) for patient in patients})
    fold_of = {name: fold for fold in range(FOLDS) for name in (*splits[str(fold)].val, *splits[str(fold)].test)}
    assigned = [replace(patient, split=Split.TRAIN, fold=fold_of[patient.id]) for patient in patients]
    return tuple(sorted(assigned, key=lambda patient: patient.id)), splits
