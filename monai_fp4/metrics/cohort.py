"""Scores of many patients: pooled and per-patient metrics, from one set of counts.

Pooled metrics weigh every voxel alike, so large tumours rule; means over patients weigh every patient alike. Both are
reported, and patients for whom a number is undefined (no tumour: no AUPRC, no recall) are named, not dropped in
silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from monai_fp4.errors import DataError
from monai_fp4.metrics.bootstrap import Interval, bootstrap, known_mean
from monai_fp4.metrics.confusion import Confusion
from monai_fp4.metrics.histogram import DEFAULT_CAPACITY, ScoreHistogram
from monai_fp4.metrics.keys import SortedScores

__all__ = ["Cohort", "PatientScores"]

PATIENT_CAPACITY = 2**15


@dataclass(frozen=True, kw_only=True)
class PatientScores:
    """Scores of one patient, as far as they are kept.

    Attributes:
        name: the patient's id.
        auprc: NaN without tumour.
        voxels: voxels scored.
        positives: tumour voxels.
        distinct: distinct scores.
        histogram: counts by score, merged to a small size.
        confusion: counts at the cohort's threshold, if it has one.
        loss: the patient's loss, if it was given.
    """

    name: str
    auprc: float
    voxels: int
    positives: int
    distinct: int
    histogram: ScoreHistogram
    confusion: Confusion | None = None
    loss: float = math.nan


class Cohort:
    """Scores of patients, added one patient at a time.

    Args:
        capacity: cells of the pooled histogram.
        patient_capacity: cells kept of each patient.
        threshold: known beforehand (an evaluation), it is counted exactly; a validation chooses its own afterwards.

    Example:
        >>> cohort = Cohort()
        >>> _ = cohort.add("anna", [0.9, 0.2, 0.8], [1, 0, 1])
        >>> _ = cohort.add("ben", [0.9, 0.2, 0.8], [0, 1, 0])
        >>> _ = cohort.add("carl", [0.1, 0.2, 0.3], [0, 0, 0])
        >>> round(cohort.auprc_per_patient, 4), cohort.without_tumour
        (0.6667, ('carl',))
    """

    def __init__(
        self,
        capacity: int | None = DEFAULT_CAPACITY,
        patient_capacity: int | None = PATIENT_CAPACITY,
        threshold: float | None = None,
    ) -> None:
        self.pooled = ScoreHistogram(capacity)
        self.patient_capacity = patient_capacity
        self.threshold = threshold
        self._patients: dict[str, PatientScores] = {}

    def add(self, name: str, scores: Any, labels: Any, loss: float = math.nan) -> PatientScores:
        """Add all voxels of a patient.

        Args:
            name: the patient's id, new to this cohort.
            scores: any shape; higher means tumour.
            labels: as many, 0 or 1.
            loss: kept beside the scores.

        Raises:
            DataError: the patient was added before, or the labels do not fit.
            NumericsError: a score is NaN.
        """
        if name in self._patients:
            raise DataError(
                f"a cohort expects each patient once, found {name!r} twice; check the manifest and the sampler"
            )
        ordered = SortedScores.of(scores, labels)
        counts = None
        if self.threshold is not None:
            tp, fp = ordered.at_or_above(self.threshold)
            fn, tn = len(ordered.positives) - tp, len(ordered.negatives) - fp
            counts = Confusion(tp=tp, fp=fp, fn=fn, tn=tn)
        patient = PatientScores(
            name=name,
            auprc=ordered.auprc(),
            voxels=ordered.size,
            positives=len(ordered.positives),
            distinct=ordered.distinct,
            histogram=ScoreHistogram(self.patient_capacity).add_sorted(ordered).fold(),
            confusion=counts,
            loss=loss,
        )
        self.pooled.add_sorted(ordered)
        self._patients[name] = patient
        return patient

    @property
    def patients(self) -> tuple[PatientScores, ...]:
        """Every patient, in the order added."""
        return tuple(self._patients.values())

    @property
    def without_tumour(self) -> tuple[str, ...]:
        """Patients without a tumour voxel, whose AUPRC and recall are undefined."""
        return tuple(p.name for p in self.patients if not p.positives)

    @property
    def auprc(self) -> float:
        """AUPRC over the voxels of all patients."""
        return self.pooled.auprc()

    @property
    def auprc_per_patient(self) -> float:
        """Mean over the patients with tumour; NaN if there is none."""
        return known_mean([p.auprc for p in self.patients])

    @property
    def loss(self) -> float:
        """Mean over the patients whose loss is known."""
        return known_mean([p.loss for p in self.patients])

    def shared(self) -> ScoreHistogram:
        """The sum of the patients' histograms.

        Its cells split none of theirs, so that a threshold of its own counts exactly in each of them.
        """
        total = ScoreHistogram(None)
        total.merge(*(patient.histogram for patient in self.patients))
        return total

    def choose_threshold(self, beta: float = 2.0) -> float:
        """The threshold of the highest pooled F-beta, see `ScoreHistogram.choose_threshold`."""
        return self.shared().choose_threshold(beta)

    def confusion(self, threshold: float) -> dict[str, Confusion]:
        """Counts of each patient at a threshold, exact for the cohort's own and for one from `choose_threshold`."""
        own = threshold == self.threshold
        known = ((p, p.confusion if own else None) for p in self.patients)
        return {p.name: p.histogram.confusion(threshold) if counts is None else counts for p, counts in known}

    def per_patient(self, threshold: float) -> list[dict[str, Any]]:
        """Every patient's numbers at a threshold, JSON-ready: what is undefined is None."""
        counts = self.confusion(threshold)
        return [
            {
                "patient": p.name,
                "auprc": _defined(p.auprc),
                **{metric: _defined(getattr(counts[p.name], metric)) for metric in ("dice", "recall", "precision")},
                "voxels": p.voxels,
                "tumour_voxels": p.positives,
                "missed_voxels": counts[p.name].fn,
                "false_alarm_voxels": counts[p.name].fp,
            }
            for p in self.patients
        ]

    def summary(self, name: str = "auprc", beta: float = 2.0) -> dict[str, float]:
        """The numbers that a validation reports, at the threshold of the highest F-beta.

        Returns:
            `<name>`, `<name>_per_patient`, `distinct_scores`, `val_loss` where losses are known; and, where there is
            tumour, `threshold`, `dice`, `recall`, `precision` pooled and each with `_per_patient`.
        """
        positives = self.pooled.positives
        result = {name: self.auprc if positives else math.nan, f"{name}_per_patient": self.auprc_per_patient}
        result["distinct_scores"] = self.pooled.distinct
        if not math.isnan(self.loss):
            result["val_loss"] = self.loss
        if positives:
            result["threshold"] = self.choose_threshold(beta) if self.threshold is None else self.threshold
            each = list(self.confusion(result["threshold"]).values())
            total = sum(each[1:], each[0])
            for metric in ("dice", "recall", "precision"):
                result[metric] = getattr(total, metric)
                result[f"{metric}_per_patient"] = known_mean([getattr(c, metric) for c in each])
        return result

    def gather(self) -> Cohort:
        """The cohort of all ranks, on every rank, in the order of names; itself when nothing is distributed.

        Raises:
            DataError: two ranks hold the same patient (a sampler that pads to equal lengths).
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self
        parts: list[Any] = [None] * dist.get_world_size()
        # Counted first: scores that wait are many, and may be tensors of a GPU that another rank has no business with.
        dist.all_gather_object(parts, (self.pooled.fold(), self.patients))
        total = Cohort(self.pooled.capacity, self.patient_capacity, self.threshold)
        total.pooled.merge(*(pooled for pooled, _ in parts))
        for patient in sorted((p for _, patients in parts for p in patients), key=lambda p: p.name):
            if patient.name in total._patients:
                raise DataError(
                    f"ranks expect different patients, found {patient.name!r} on two; use a sampler that does not pad"
                )
            total._patients[patient.name] = patient
        return total

    def bootstrap(
        self,
        threshold: float | None = None,
        *,
        resamples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> dict[str, Interval]:
        """Intervals over resampled patients, with those of Dice, recall and precision where a threshold is given.

        Other arguments, result and errors as `bootstrap.bootstrap`.
        """
        return bootstrap(
            [patient.histogram for patient in self.patients],
            [patient.auprc for patient in self.patients],
            self.auprc if self.pooled.positives else math.nan,
            None if threshold is None else list(self.confusion(threshold).values()),
            resamples=resamples,
            seed=seed,
            level=level,
        )


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
