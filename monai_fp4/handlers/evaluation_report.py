"""The report on a trained model: numbers with intervals, curves, and the slices worth looking at.

The threshold comes from the run that trained the model, which chose it on validation patients; to choose it on the
patients that are reported would flatter the model. It is counted exactly, patient by patient, as they stream by.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from monai_fp4.atomic import make_folder, write_atomically
from monai_fp4.errors import ConfigError, DataError
from monai_fp4.metrics.bootstrap import Interval
from monai_fp4.metrics.cohort import Cohort
from monai_fp4.metrics.confusion import Confusion
from monai_fp4.visualize.figures import overlay_figure, pr_curve_figure, probabilities_figure, save_figure
from monai_fp4.visualize.overlays import Reason, SliceGallery

__all__ = ["EvaluationReport", "report"]


class EvaluationReport:
    """Writes `metrics.json`, `pr_curve.png`, `probabilities.png` and `overlays/*.png` when an evaluator completes.

    Attach it beside `monai_fp4.handlers.AUPRC`, whose `state.cohort` it reports; `state.output` is a list of dicts
    with "image", "label", "pred" and "patient", in one process. Each file is written whole or not at all.

    Args:
        output_dir: created when the evaluation begins; a folder that already holds a `metrics.json` is refused.
        threshold: probability at or above which a voxel is called tumour, as the run chose it.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        overlays: how many slices of each kind to show.
        title: of the figures, such as the run's name.
        source: what was evaluated, such as run, manifest and split; kept in `metrics.json`.

    Raises:
        ConfigError: the threshold is not a probability, or the folder holds an evaluation; and from the evaluator's
            run, when the folder cannot be written to.
    """

    def __init__(
        self,
        output_dir: str | Path,
        threshold: float,
        *,
        resamples: int = 1000,
        seed: int = 0,
        overlays: int = 4,
        title: str = "",
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(output_dir)
        self.threshold = float(threshold)
        if not 0 <= self.threshold <= 1:
            raise ConfigError(
                f"an evaluation expects a threshold from 0 to 1, found {threshold}; take the one of the run"
            )
        if (self.folder / "metrics.json").exists():
            raise ConfigError(
                f"an evaluation expects a new output_dir, found metrics.json in {self.folder}; give another output_dir"
            )
        self.resamples, self.seed, self.overlays, self.title = resamples, seed, overlays, title
        self.source = dict(source or {})
        self._confusions: dict[str, Confusion] = {}
        self._gallery = SliceGallery(overlays)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _begin(self, _engine: Engine) -> None:
        make_folder(self.folder)
        self._confusions, self._gallery = {}, SliceGallery(self.overlays)

    def _look(self, engine: Engine) -> None:
        for item in engine.state.output:
            predicted, truth = item["pred"] >= self.threshold, item["label"] > 0
            cells = (predicted & truth, predicted & ~truth, ~predicted & truth)
            tp, fp, fn = (int(torch.count_nonzero(cell)) for cell in cells)
            counts = Confusion(tp=tp, fp=fp, fn=fn, tn=truth.numel() - tp - fp - fn)
            self._confusions[str(item["patient"])] = counts
            self._gallery.add(item)

    def _write(self, engine: Engine) -> None:
        cohort = getattr(engine.state, "cohort", None)
        if not isinstance(cohort, Cohort):
            raise ConfigError("EvaluationReport expects handlers.AUPRC on the same evaluator, found none; add it")
        if {p.name for p in cohort.patients} != set(self._confusions):
            raise DataError(
                f"EvaluationReport expects the {len(cohort.patients)} patients that AUPRC saw, found "
                f"{len(self._confusions)}; evaluate in one process"
            )
        numbers = report(cohort, self._confusions, threshold=self.threshold, resamples=self.resamples, seed=self.seed)
        interval = Interval(value=cohort.auprc, low=math.nan, high=math.nan) if cohort.pooled.positives else None
        known = numbers["intervals"].get("auprc")
        if known is not None and known["low"] is not None:
            interval = Interval(value=known["value"], low=known["low"], high=known["high"])
        if cohort.pooled.positives:
            figure = pr_curve_figure(cohort.pooled, threshold=self.threshold, interval=interval, title=self.title)
            save_figure(figure, self.folder / "pr_curve.png")
        figure = probabilities_figure(cohort.pooled, threshold=self.threshold, title=self.title)
        save_figure(figure, self.folder / "probabilities.png")
        chosen = self._gallery.chosen()
        for reason in Reason:
            slices = [overlay for overlay in chosen if overlay.reason is reason]
            if slices:
                figure = overlay_figure(slices, threshold=self.threshold, title=reason.value)
                save_figure(figure, self.folder / "overlays" / f"{reason.value.replace(' ', '_')}.png")
        # Last: a folder that holds metrics.json is complete.
        content = {"source": self.source, **numbers} if self.source else numbers
        write_atomically(self.folder / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def report(
    cohort: Cohort, confusions: Mapping[str, Confusion], *, threshold: float, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute the numbers of an evaluation.

    Args:
        cohort: scores of every patient.
        confusions: counts of every patient at the threshold, by name.
        threshold: what was counted at.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A JSON-ready dict; what is undefined is None, and `undefined` says for whom and why.

    Raises:
        DataError: there is no patient.
    """
    patients = cohort.patients
    if not patients:
        raise DataError("an evaluation expects at least one patient, found none; check the manifest's split")
    each = [confusions[p.name] for p in patients]
    intervals = cohort.bootstrap(each, resamples=resamples, seed=seed)
    with_tumour = [(p, c) for p, c in zip(patients, each, strict=True) if p.positives]
    empty = cohort.without_tumour
    silent = [p.name for p, c in zip(patients, each, strict=True) if not c.tp + c.fp]
    reasons = {
        "auprc": (empty, "no tumour voxel in the reference"),
        "recall": (empty, "no tumour voxel in the reference"),
        "precision": (silent, "no voxel reaches the threshold"),
        "dice": ([name for name in silent if name in empty], "no tumour voxel, neither in the reference nor predicted"),
    }
    undefined = {name: {"patients": list(who), "why": why} for name, (who, why) in reasons.items() if who}
    numbers: dict[str, Any] = {name: interval.value for name, interval in intervals.items()}
    numbers |= {
        "threshold": threshold,
        "intervals": {name: vars(interval) for name, interval in intervals.items()},
        "interval_method": f"95 % percentile bootstrap over patients, {resamples} resamples, seed {seed}",
        "patients": len(patients),
        "patients_with_tumour": len(with_tumour),
        "patients_without_tumour": list(empty),
        "missed_patients": [p.name for p, c in with_tumour if c.tp == 0],
        "voxels": sum(p.voxels for p in patients),
        "tumour_voxels": sum(p.positives for p in patients),
        "distinct_probabilities": cohort.pooled.distinct,
        "distinct_probabilities_exact": cohort.pooled.exact,
        "undefined": undefined,
        "per_patient": [
            {
                "patient": p.name,
                "auprc": p.auprc,
                "dice": c.dice,
                "recall": c.recall,
                "precision": c.precision,
                "voxels": p.voxels,
                "tumour_voxels": p.positives,
                "missed_voxels": c.fn,
                "false_alarm_voxels": c.fp,
            }
            for p, c in zip(patients, each, strict=True)
        ],
    }
    return plain(numbers)


def plain(value: Any) -> Any:
    """Make a value JSON-ready: NaN and infinity, which JSON does not know, become None.

    >>> plain({"auprc": float("nan"), "patients": (1, 2)})
    {'auprc': None, 'patients': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
