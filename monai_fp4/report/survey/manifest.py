"""Measure every patient of a manifest, one at a time, and say what is worth a look.

A patient that cannot be read is named with the reason, and the others go on. Reasons name files by number, as paths
and headers may name a person.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from monai_fp4.data import load_manifest
from monai_fp4.data.datalist import patient_record, prepare_data
from monai_fp4.data.doubts import doubts_of
from monai_fp4.data.folds import parts_of
from monai_fp4.data.layouts import FoundPatient
from monai_fp4.data.records import Manifest, Patient
from monai_fp4.errors import DataError
from monai_fp4.report.survey.copies import Copies, find_copies
from monai_fp4.report.survey.measures import Measured, measure
from monai_fp4.report.survey.placement import Verdict, judge
from monai_fp4.report.survey.unusual import unusual_patients

__all__ = ["Survey", "survey_manifest"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """A manifest and what its files hold.

    Attributes:
        manifest: the manifest.
        measured: the patients that could be read, in the manifest's order.
        unreadable: why the others could not, by id, without paths.
        copies: patients that show the same, by their numbers in ``measured``.
        placement: whether masks lie where the lesions are, by the same numbers.
    """

    manifest: Manifest
    measured: tuple[Measured, ...]
    unreadable: Mapping[str, str]
    copies: tuple[Copies, ...]
    placement: Verdict

    @cached_property
    def parts(self) -> dict[str, tuple[Patient, ...]]:
        """Whom each fold or named split holds out, and the test split."""
        return parts_of(self.manifest)

    def divided(self, one: int, other: int) -> bool:
        """Whether some fold or split has one of two patients on one side and the other on another."""
        ids = self.measured[one].patient.id, self.measured[other].patient.id
        return any(len({*ids} & {patient.id for patient in members}) == 1 for members in self.parts.values())

    @cached_property
    def pairs(self) -> list[Copies]:
        """``copies``, those on different sides of a split first."""
        return sorted(self.copies, key=lambda pair: not self.divided(pair.one, pair.other))

    @cached_property
    def doubts(self) -> list[str]:
        """What ``manifest build`` warns of, of the patients that could be read."""
        if not self.measured:
            return []
        found = [
            FoundPatient(
                each.patient.id,
                tuple((pair.image, pair.mask) for pair in each.patient.images),
                group=each.patient.group,
                person=each.patient.person,
            )
            for each in self.measured
        ]
        examined = [each.examined for each in self.measured]
        manifest = self.manifest
        # Who is who was asked when the manifest was built, and is not asked again.
        return list(doubts_of(manifest.format, manifest.channels, found, examined, manifest.reading, named=True))

    @cached_property
    def unusual(self) -> dict[int, list[str]]:
        """What is unusual about patients, a sentence each, by their numbers in ``measured``."""
        return unusual_patients(self.measured, self.manifest.channels)


def survey_manifest(manifest: str | Path | Manifest, dataset_dir: str | Path) -> Survey:
    """Read and measure every patient of a manifest; progress is shown where there is a terminal.

    Args:
        manifest: a shipped name, a path or a manifest.
        dataset_dir: the data folder; synthetic data is written there on first use.

    Raises:
        DataError: a manifest that cannot be read, or no data folder.
    """
    manifest = load_manifest(manifest)
    root = prepare_data(manifest, dataset_dir)
    logger.info("reading the scans of %d patients ...", len(manifest.patients))
    measured, unreadable = [], {}
    for patient in tqdm(manifest.patients, desc="patients", disable=None):
        try:
            measured.append(measure(patient_record(manifest, patient, root), patient))
        except DataError as error:
            unreadable[patient.id] = str(error)
    fits = {number: each.fit for number, each in enumerate(measured) if each.fit is not None}
    copies = find_copies([each.prints for each in measured])
    return Survey(manifest, tuple(measured), unreadable, tuple(copies), judge(fits))
