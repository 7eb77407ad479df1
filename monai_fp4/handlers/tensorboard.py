"""TensorBoard in one event file: what a training did, and how its validations looked.

Both handlers take the same `SummaryWriter`; MONAI's would each open a file of their own without it. Tags:

- `train/loss`, `train/learning_rate` by step, `train/epoch_loss` by epoch;
- `train/input_wait` by epoch: the share of it that was spent waiting for batches, where `InputWait` is attached;
- `val/<metric>` by epoch, for every number in the evaluator's `state.metrics`;
- `val/pr_curve`, `val/probabilities` (a histogram), `val/overlays/<reason>` by epoch;
- `attention/entropy/<layer>` (nats) and `attention/entropy_share/<layer>` (of log(tokens)) by epoch, for the first
  batch of a validation, of networks with attention;
- `quantization/<snr_db, underflow, clipped>/<layer>/<operand>`, for the first step of an epoch, by step.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from monai_fp4.handlers.auprc import cohort_of
from monai_fp4.metrics.histogram import ScoreHistogram
from monai_fp4.quantization.monitor.entropy import AttentionEntropy, attention_entropy
from monai_fp4.quantization.monitor.health import OperandHealth, quantization_health
from monai_fp4.visualize.figures import overlay_figure, to_array
from monai_fp4.visualize.overlays import Reason, SliceGallery

__all__ = ["TensorBoard", "TensorBoardValidation"]

_PR_POINTS = 127  # as many as TensorBoard's plugin holds
_BINS = 50


class TensorBoard:
    """Writes a trainer's losses, its learning rate, and the health of its quantized layers.

    `state.output` must be a dict with "loss".

    Args:
        summary_writer: the run's one writer; None writes nothing (ranks but the first).
        optimizer: whose learning rate to write; None takes the trainer's `optimizer`.
        network: whose quantized layers to look at; None looks at none.
        health_every: look at the first step of every so many epochs; 0 never looks.
    """

    def __init__(
        self,
        summary_writer: SummaryWriter | None,
        *,
        optimizer: Optimizer | None = None,
        network: nn.Module | None = None,
        health_every: int = 1,
    ) -> None:
        self.writer = summary_writer
        self.optimizer = optimizer
        self.network = getattr(network, "module", network)  # inside of DDP's wrapper
        self.health_every = health_every
        self._losses: list[float] = []
        self._watching = ExitStack()
        self._health: dict[str, dict[str, OperandHealth]] | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if self.writer is None:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._learning_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iterate)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, lambda _: self._watching.close())

    def _begin_epoch(self, engine: Engine) -> None:
        self._losses = []
        due = self.health_every and (engine.state.epoch - 1) % self.health_every == 0
        if self.network is not None and due:
            self._watching.close()
            self._health = self._watching.enter_context(quantization_health(self.network))

    def _learning_rate(self, engine: Engine) -> None:
        optimizer = self.optimizer if self.optimizer is not None else getattr(engine, "optimizer", None)
        if optimizer is not None and self.writer is not None:
            self.writer.add_scalar("train/learning_rate", optimizer.param_groups[0]["lr"], engine.state.iteration)

    def _iterate(self, engine: Engine) -> None:
        assert self.writer is not None
        loss = float(engine.state.output["loss"])
        self._losses.append(loss)
        self.writer.add_scalar("train/loss", loss, engine.state.iteration)
        if self._health is not None:
            self._watching.close()
            write_health(self.writer, self._health, engine.state.iteration)
            self._health = None

    def _end_epoch(self, engine: Engine) -> None:
        assert self.writer is not None
        mean = math.fsum(self._losses) / max(len(self._losses), 1)
        self.writer.add_scalar("train/epoch_loss", mean, engine.state.epoch)
        if (waited := engine.state.metrics.get("input_wait")) is not None:
            self.writer.add_scalar("train/input_wait", waited, engine.state.epoch)
        self.writer.flush()


class TensorBoardValidation:
    """Writes an evaluator's metrics, precision-recall curve, histogram of probabilities and overlays.

    Where the evaluator's `network` has attention blocks, their entropy in the first batch is written too.
    It draws the counts that `monai_fp4.handlers.AUPRC` leaves. Steps are the evaluator's epoch, the trainer's
    when the trainer runs it. Overlays are chosen from this rank's patients.

    Args:
        summary_writer: the run's one writer; None writes nothing (ranks but the first).
        overlays: how many slices of each kind to show; 0 shows none.
    """

    def __init__(self, summary_writer: SummaryWriter | None, *, overlays: int = 3) -> None:
        self.writer = summary_writer
        self.overlays = overlays
        self._gallery = SliceGallery(overlays)
        self._watching = ExitStack()
        self._entropy: dict[str, AttentionEntropy] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        if self.writer is None:
            return
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self._watching.close())
        if self.overlays:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _begin(self, engine: Engine) -> None:
        self._gallery, self._entropy = SliceGallery(self.overlays), {}
        self._watching.close()  # of a validation that failed before its first batch was through
        network = getattr(engine, "network", None)
        if isinstance(network, nn.Module):
            self._entropy = self._watching.enter_context(attention_entropy(getattr(network, "module", network)))

    def _look(self, engine: Engine) -> None:
        for item in engine.state.output:
            self._gallery.add(item)

    def _write(self, engine: Engine) -> None:
        assert self.writer is not None
        step, metrics = engine.state.epoch, engine.state.metrics
        for name, value in metrics.items():
            if isinstance(value, (int, float)) and not math.isnan(value):
                self.writer.add_scalar(f"val/{name}", value, step)
        cohort = cohort_of(engine)
        if cohort is not None and cohort.pooled.total:
            if cohort.pooled.positives:
                self.writer.add_pr_curve_raw("val/pr_curve", **pr_curve_rows(cohort.pooled), global_step=step)
            self.writer.add_histogram_raw("val/probabilities", **histogram_fields(cohort.pooled), global_step=step)
        for layer, entropy in self._entropy.items():
            for measure, number in (("entropy", entropy.nats), ("entropy_share", entropy.share)):
                if math.isfinite(number):
                    self.writer.add_scalar(f"attention/{measure}/{layer}", number, step)
        threshold = float(metrics.get("threshold", 0.5))
        chosen = self._gallery.chosen()
        for reason in Reason:
            slices = [overlay for overlay in chosen if overlay.reason is reason]
            if slices:
                picture = to_array(overlay_figure(slices, threshold=threshold, title=reason.value))
                tag = f"val/overlays/{reason.value.replace(' ', '_')}"
                self.writer.add_image(tag, picture, step, dataformats="HWC")
        self.writer.flush()


def write_health(writer: SummaryWriter, health: dict[str, dict[str, OperandHealth]], step: int) -> None:
    """Write the health of every layer; values that are not finite (an operand of zeros) are left out."""
    for layer, operands in health.items():
        for operand, values in operands.items():
            for measure in ("snr_db", "underflow", "clipped"):
                value = getattr(values, measure)
                if math.isfinite(value):
                    writer.add_scalar(f"quantization/{measure}/{layer}/{operand}", value, step)


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
