"""TensorBoard in one event file: what a training did, and how its validations looked.

The handlers take the same `SummaryWriter`; MONAI's would each open a file of their own without it. TensorBoard shows
tags in the order of the alphabet, so their names put first what is looked at first:

- `loss/train` by epoch and `loss/train_step` by step, `loss/val` by epoch;
- `metrics/<name>` by epoch, for every other number in the evaluator's `state.metrics`, `metrics/auprc` the first;
- `overlays/<reason>` by epoch;
- `predictions/pr_curve` and `predictions/probabilities` (a histogram) by epoch;
- `quantization/...`: see `monai_fp4.handlers.health`;
- `training/learning_rate` by step, and `training/input_wait` by epoch: the share of it that was spent waiting for
  batches, where `InputWait` is attached.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from monai_fp4.handlers.auprc import cohort_of
from monai_fp4.metrics.histogram import ScoreHistogram
from monai_fp4.visualize import SliceGallery, overlay_figure, to_array

__all__ = ["TensorBoard", "TensorBoardValidation"]

_PR_POINTS = 127  # as many as TensorBoard's plugin holds
_BINS = 50


class TensorBoard:
    """Writes a trainer's losses and its learning rate.

    `state.output` must be a dict with "loss".

    Args:
        summary_writer: the run's one writer; None writes nothing (ranks but the first).
        optimizer: whose learning rate to write; None takes the trainer's `optimizer`.
    """

    def __init__(self, summary_writer: SummaryWriter | None, *, optimizer: Optimizer | None = None) -> None:
        self.writer: Any = summary_writer  # nothing is attached where there is none
        self.optimizer = optimizer
        self._losses: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if self.writer is None:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._learning_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iterate)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)

    def _begin_epoch(self, _engine: Engine) -> None:
        self._losses = []

    def _learning_rate(self, engine: Engine) -> None:
        optimizer = self.optimizer if self.optimizer is not None else getattr(engine, "optimizer", None)
        if optimizer is not None:
            self.writer.add_scalar("training/learning_rate", optimizer.param_groups[0]["lr"], engine.state.iteration)

    def _iterate(self, engine: Engine) -> None:
        loss = float(engine.state.output["loss"])
        self._losses.append(loss)
        self.writer.add_scalar("loss/train_step", loss, engine.state.iteration)

    def _end_epoch(self, engine: Engine) -> None:
        mean = math.fsum(self._losses) / max(len(self._losses), 1)
        self.writer.add_scalar("loss/train", mean, engine.state.epoch)
        if (waited := engine.state.metrics.get("input_wait")) is not None:
            self.writer.add_scalar("training/input_wait", waited, engine.state.epoch)
        self.writer.flush()


class TensorBoardValidation:
    """Writes an evaluator's metrics, precision-recall curve, histogram of probabilities and overlays.

    It draws the counts that `monai_fp4.handlers.AUPRC` leaves. Steps are the evaluator's epoch, the trainer's
    when the trainer runs it. Overlays are chosen from this rank's patients.

    Args:
        summary_writer: the run's one writer; None writes nothing (ranks but the first).
        overlays: how many slices of each kind to show; 0 shows none.
    """

    def __init__(self, summary_writer: SummaryWriter | None, *, overlays: int = 3) -> None:
        self.writer: Any = summary_writer  # nothing is attached where there is none
        self._gallery = SliceGallery(overlays)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        if self.writer is None:
            return
        if self._gallery.each:
            self._gallery.attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        step, metrics = engine.state.epoch, engine.state.metrics
        for name, value in metrics.items():
            if isinstance(value, (int, float)) and not math.isnan(value):
                tag = "loss/val" if name == "val_loss" else f"metrics/{name}"
                self.writer.add_scalar(tag, value, step)
        cohort = cohort_of(engine)
        if cohort is not None and cohort.pooled.total:
            if cohort.pooled.positives:
                self.writer.add_pr_curve_raw("predictions/pr_curve", **pr_curve_rows(cohort.pooled), global_step=step)
            self.writer.add_histogram_raw(
                "predictions/probabilities", **histogram_fields(cohort.pooled), global_step=step
            )
        threshold = float(metrics.get("threshold", 0.5))
        for reason, slices in self._gallery.chosen(threshold).items():
            picture = to_array(overlay_figure(slices, threshold=threshold, title=reason.value))
            self.writer.add_image(f"overlays/{reason.value.replace(' ', '_')}", picture, step, dataformats="HWC")
        self.writer.flush()


def pr_curve_rows(histogram: ScoreHistogram, points: int = _PR_POINTS) -> dict[str, Any]:
    """The arguments of `SummaryWriter.add_pr_curve_raw`, at equally spaced thresholds of a histogram of probabilities.

    TensorBoard takes the position of a point for its threshold, so that the thresholds cannot follow the recall.
    """
    counts = [histogram.confusion(float(threshold)) for threshold in np.linspace(0, 1, points)]

    def row(name: str) -> NDArray[np.float64]:
        return np.nan_to_num(np.array([getattr(c, name) for c in counts], dtype=np.float64), nan=1.0)

    short = {"true_positive": "tp", "false_positive": "fp", "true_negative": "tn", "false_negative": "fn"}
    rows: dict[str, Any] = {f"{name}_counts": row(attribute) for name, attribute in short.items()}
    return rows | {"precision": row("precision"), "recall": row("recall"), "num_thresholds": points}


def histogram_fields(histogram: ScoreHistogram) -> dict[str, Any]:
    """The arguments of `SummaryWriter.add_histogram_raw` for probabilities, in equal bins of [0, 1]."""
    edges = np.linspace(0, 1, _BINS + 1)
    middle, cells = histogram.middles(), histogram.cells
    mass = (cells.positives + cells.negatives).astype(np.float64)
    return {
        "min": float(middle[0]),
        "max": float(middle[-1]),
        "num": int(mass.sum()),
        "sum": float(middle @ mass),
        "sum_squares": float(middle**2 @ mass),
        "bucket_limits": edges[1:].tolist(),
        "bucket_counts": np.sum(histogram.binned(edges), axis=0).tolist(),
    }
