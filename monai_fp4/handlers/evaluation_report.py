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

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events

from monai_fp4.atomic import make_folder, write_atomically
from monai_fp4.errors import ConfigError, DataError
from monai_fp4.handlers.auprc import cohort_of
from monai_fp4.metrics.bootstrap import Interval
from monai_fp4.metrics.cohort import Cohort
from monai_fp4.metrics.lesions import missed_lesions
from monai_fp4.visualize import SliceGallery, overlay_figure, pr_curve_figure, probabilities_figure, save_figure

__all__ = ["EvaluationReport", "report"]


class EvaluationReport:
    """Writes `metrics.json`, `pr_curve.png`, `probabilities.png` and `overlays/*.png` when an evaluator completes.

    Attach it beside a `monai_fp4.handlers.AUPRC` with the threshold that the run chose: it reports what that has
    counted. `state.output` is a list of dicts with "image", "label", "pred" and "patient", in one process. Each file is
    written whole or not at all.

    Args:
        output_dir: created when the evaluation begins; a folder that already holds a `metrics.json` is refused.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        overlays: how many slices of each kind to show.
        title: of the figures, such as the run's name.
        source: what was evaluated, such as run, manifest and split; kept in `metrics.json`.

    Raises:
        ConfigError: the folder holds an evaluation; and when the evaluator's run begins: there is no `AUPRC`, its
            threshold is not a probability, there are several processes, or the folder cannot be written to.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        resamples: int = 1000,
        seed: int = 0,
        overlays: int = 4,
        title: str = "",
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(output_dir)
        if (self.folder / "metrics.json").exists():
            raise ConfigError(
                f"an evaluation expects a new output_dir, found metrics.json in {self.folder}; give another output_dir"
            )
        self.resamples, self.seed, self.overlays, self.title = resamples, seed, overlays, title
        self.source = dict(source or {})
        self._gallery = SliceGallery(overlays)
        self._lesions: dict[str, tuple[int, int]] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        self._gallery.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count_lesions)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _begin(self, engine: Engine) -> None:
        cohort = cohort_of(engine)
        if cohort is None:
            raise ConfigError("EvaluationReport expects handlers.AUPRC on the same evaluator, found none; add it")
        if cohort.threshold is None or not 0 <= cohort.threshold <= 1:
            raise ConfigError(
                f"an evaluation expects AUPRC with a threshold from 0 to 1, found {cohort.threshold}; take the one of "
                "the run"
            )
        if idist.get_world_size() > 1:
            raise ConfigError(f"an evaluation expects one process, found {idist.get_world_size()}; start one")
        make_folder(self.folder)
        self._gallery.threshold, self._lesions = float(cohort.threshold), {}

    def _count_lesions(self, engine: Engine) -> None:
        for item in engine.state.output:
            label, pred = (item[name][0].cpu().numpy() for name in ("label", "pred"))
            called = pred >= np.float32(self._gallery.threshold)
            self._lesions[str(item["patient"])] = missed_lesions(label == 1, called)

    def _write(self, engine: Engine) -> None:
        cohort = cohort_of(engine)
        assert cohort is not None and cohort.threshold is not None  # seen when the run began
        threshold = float(cohort.threshold)
        numbers = report(cohort, threshold, self._lesions, resamples=self.resamples, seed=self.seed)
        if cohort.pooled.positives:
            # Where the report has None, no resample had a tumour.
            known = {
                name: math.nan if number is None else number for name, number in numbers["intervals"]["auprc"].items()
            }
            figure = pr_curve_figure(cohort.pooled, threshold=threshold, interval=Interval(**known), title=self.title)
            save_figure(figure, self.folder / "pr_curve.png")
        figure = probabilities_figure(cohort.pooled, threshold=threshold, title=self.title)
        save_figure(figure, self.folder / "probabilities.png")
        for reason, slices in self._gallery.chosen(threshold).items():
            figure = overlay_figure(slices, threshold=threshold, title=reason.value)
            save_figure(figure, self.folder / "overlays" / f"{reason.value.replace(' ', '_')}.png")
        # Last: a folder that holds metrics.json is complete.
        content = {"source": self.source, **numbers} if self.source else numbers
        write_atomically(self.folder / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
        print(f"Of {numbers['lesions']} lesions, {numbers['missed_lesions']} missed altogether.")
        print(f"The evaluation is in {self.folder}: metrics.json, pictures, and overlays to look at.")


def report(
    cohort: Cohort, threshold: float, lesions: Mapping[str, tuple[int, int]], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Compute the numbers of an evaluation.

    Args:
        cohort: scores of every patient.
        threshold: at or above which a voxel is called tumour.
        lesions: of each patient, how many it has and how many of them nothing was found of.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A JSON-ready dict; what is undefined is None, and `undefined` says for whom and why.

    Raises:
        DataError: there is no patient.
    """
    if not cohort.patients:
        raise DataError("an evaluation expects at least one patient, found none; check the manifest's split")
    counts = cohort.confusion(threshold)
    intervals = cohort.bootstrap(threshold, resamples=resamples, seed=seed)
    empty = cohort.without_tumour
    silent = [name for name, c in counts.items() if not c.tp + c.fp]
    reasons = {
        "auprc": (empty, "no lesion voxel in the reference"),
        "recall": (empty, "no lesion voxel in the reference"),
        "precision": (silent, "no voxel reaches the threshold"),
        "dice": ([name for name in silent if name in empty], "no lesion voxel, neither in the reference nor predicted"),
    }
    undefined = {name: {"patients": list(who), "why": why} for name, (who, why) in reasons.items() if who}
    numbers: dict[str, Any] = {name: interval.value for name, interval in intervals.items()}
    numbers |= {
        "threshold": threshold,
        "intervals": {name: vars(interval) for name, interval in intervals.items()},
        "interval_method": f"95 % percentile bootstrap over patients, {resamples} resamples, seed {seed}",
        "patients": len(counts),
        "patients_with_tumour": len(counts) - len(empty),
        "patients_without_tumour": list(empty),
        "missed_patients": [name for name, c in counts.items() if c.fn and not c.tp],
        "lesions": sum(count for count, _ in lesions.values()),
        "missed_lesions": sum(missed for _, missed in lesions.values()),
        "voxels": cohort.pooled.total,
        "tumour_voxels": cohort.pooled.positives,
        "distinct_probabilities": cohort.pooled.distinct,
        "distinct_probabilities_exact": cohort.pooled.exact,
        "undefined": undefined,
        "per_patient": [
            row | dict(zip(("lesions", "missed_lesions"), lesions[row["patient"]], strict=True))
            for row in cohort.per_patient(threshold)
        ],
    }
    return to_json_value(numbers)


def to_json_value(value: Any) -> Any:
    """Make a value JSON-ready: NaN and infinity, which JSON does not know, become None.

    >>> to_json_value({"auprc": float("nan"), "patients": (1, 2)})
    {'auprc': None, 'patients': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
