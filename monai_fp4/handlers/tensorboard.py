"""TensorBoard in one event file: what a training did, and how its validations looked.

Both handlers take the same `SummaryWriter`; MONAI's would each open a file of their own without it. Tags:

- `train/loss`, `train/learning_rate` by iteration, `train/epoch_loss` by epoch,
- `val/<metric>` by epoch, for every number in the evaluator's `state.metrics`,
- `val/pr_curve`, `val/probabilities` (a histogram), `val/overlays/...` by epoch,
- `quantization/<layer>/<operand>/...` by epoch, see `monai_fp4.health`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from monai_fp4.score_histogram import ScoreHistogram

__all__ = ["TensorBoard", "TensorBoardValidation"]

_PR_POINTS = 127  # what TensorBoard's plugin holds
_BINS = 50


class TensorBoard:
    """Writes a trainer's losses and learning rate.

    Args:
        summary_writer: the run's one writer; None writes nothing (ranks but the first).
        optimizer: whose learning rate to write; None takes the trainer's own `optimizer`.
        network: whose quantized layers to look at once an epoch; None takes the trainer's own `network`.
        health: write the quantization health.
    """

    def __init__(
        self,
        summary_writer: SummaryWriter | None,
        *,
        optimizer: Optimizer | None = None,
        network: nn.Module | None = None,
        health: bool = True,
    ) -> None:
        self.writer = summary_writer
        self.optimizer = optimizer
        self.network = network
        self.health = health
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
        if optimizer is not None and self.writer is not None:
            self.writer.add_scalar("train/learning_rate", optimizer.param_groups[0]["lr"], engine.state.iteration)

    def _iterate(self, engine: Engine) -> None:
        assert self.writer is not None
        loss = float(engine.state.output["loss"])
        self._losses.append(loss)
        self.writer.add_scalar("train/loss", loss, engine.state.iteration)

    def _end_epoch(self, engine: Engine) -> None:
        assert self.writer is not None
        self.writer.add_scalar(
            "train/epoch_loss", math.fsum(self._losses) / max(len(self._losses), 1), engine.state.epoch
        )
        self.writer.flush()


class TensorBoardValidation:
    """Writes an evaluator's metrics, precision-recall curve and histogram of probabilities.

    Put it after `AUPRC` in the evaluator, whose `state.cohort` it draws. Steps are the evaluator's epoch, which MONAI's
    `ValidationHandler` sets to the trainer's.

    Args:
        summary_writer: the run's one writer; None writes nothing (ranks but the first).
    """

    def __init__(self, summary_writer: SummaryWriter | None) -> None:
        self.writer = summary_writer

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        if self.writer is not None:
            engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        assert self.writer is not None
        step = engine.state.epoch
        for name, value in engine.state.metrics.items():
            if isinstance(value, (int, float)) and not math.isnan(value):
                self.writer.add_scalar(f"val/{name}", value, step)
        cohort = getattr(engine.state, "cohort", None)
        if cohort is not None:
            if cohort.pooled.positives:
                self.writer.add_pr_curve_raw("val/pr_curve", **pr_curve_rows(cohort.pooled), global_step=step)
            self.writer.add_histogram_raw("val/probabilities", **histogram_fields(cohort.pooled), global_step=step)
        self.writer.flush()


def pr_curve_rows(histogram: ScoreHistogram, points: int = _PR_POINTS) -> tuple[np.ndarray, ...]:
    """The rows that TensorBoard's PR plugin draws: tp, fp, tn, fn, precision, recall at rising thresholds."""
    thresholds = np.linspace(0, 1, points)
    counts = [histogram.confusion(float(t)) for t in thresholds]
    rows = [
        np.array([getattr(c, name) for c in counts], np.float64)
        for name in ("tp", "fp", "tn", "fn", "precision", "recall")
    ]
    rows[4] = np.nan_to_num(rows[4], nan=0.0)
    return tuple(rows)


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
