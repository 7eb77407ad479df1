"""The soft scores of arXiv 2605.27616 beside the usual metrics of an evaluator."""

from __future__ import annotations

import math
from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events

from monai_fp4.handlers.auprc import cohort_of
from monai_fp4.metrics import SoftScores

__all__ = ["SoftScoring"]


class SoftScoring:
    """Write the soft scores into an evaluator's ``state.metrics``; see `monai_fp4.metrics.soft`.

    Args:
        batch_size: slices that ``dice_paper`` averages before it averages batches.

    Outputs are dicts with ``pred`` (probabilities), ``label`` (both ``[1, H, W, D]``) and ``patient``, as those of
    `monai_fp4.engines.EvaluationStep`. Where they have ``slice_losses``, ``val_loss`` becomes the mean over batches of
    slices, too. ``roc_auc`` is among the scores where `monai_fp4.handlers.AUPRC` is attached.
    """

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self._scores = SoftScores(batch_size)

    def attach(self, engine: Engine) -> None:
        """Begin at STARTED, count after every patient, write at COMPLETED."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _begin(self, _engine: Engine) -> None:
        self._scores = SoftScores(self.batch_size)

    def _count(self, engine: Engine) -> None:
        for item in engine.state.output:
            pred, label = (item[key].movedim(-1, 0).contiguous() for key in ("pred", "label"))
            self._scores.add(str(item["patient"]), pred, label, item.get("slice_losses"))

    def _write(self, engine: Engine) -> None:
        scores = self._scores
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, scores)
            scores = SoftScores(self.batch_size)
            for part in parts:
                scores.merge(part)
        cohort = cohort_of(engine)
        engine.state.metrics.update(scores.summary(None if cohort is None else cohort.pooled))
        if not math.isnan(scores.loss):
            engine.state.metrics["val_loss"] = scores.loss
