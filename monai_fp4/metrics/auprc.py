"""AUPRC: the area under the precision-recall curve, exact, streaming, and merged over ranks.

It is the study's main metric, because it needs no threshold and, unlike ROC-AUC, does not reward a model for the 99 %
of voxels that are obviously background. The definition is scikit-learn's step-wise average precision, without
interpolation: equal scores are one step. Counting is in `monai_fp4.metrics.histogram`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

from monai_fp4.errors import DataError
from monai_fp4.metrics.cohort import Cohort
from monai_fp4.metrics.histogram import NoPositivesWarning, ScoreHistogram
from monai_fp4.metrics.keys import SortedScores

__all__ = ["AUPRCMetric", "compute_auprc"]


def compute_auprc(scores: Any, labels: Any) -> float:
    """Compute the exact step-wise average precision.

    Args:
        scores: tensor or array of any shape; probabilities or logits, compared as float32.
        labels: as many, 0 or 1.

    Returns:
        The area, within rounding of `sklearn.metrics.average_precision_score`; NaN, with a `NoPositivesWarning`,
        when no label is positive.

    Raises:
        NumericsError: a score is NaN.
        DataError: the sizes differ, a score is no real number, or a label is neither 0 nor 1.

    Example:
        >>> round(compute_auprc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1])), 4)
        0.8333
    """
    ordered = SortedScores.of(scores, labels)
    if not len(ordered.positives):
        message = f"AUPRC is undefined without positive labels, found {ordered.size} negative ones; NaN is returned"
        warnings.warn(message, NoPositivesWarning, stacklevel=2)
    return ordered.auprc()


class AUPRCMetric(CumulativeIterationMetric):
    """AUPRC in the manner of MONAI's metrics: call it with predictions and labels, then `aggregate`, then `reset`.

    Each call returns the AUPRC of every item, `[B, 1]`, NaN for items without positives. `aggregate` is the AUPRC of
    all voxels of all calls on all ranks, pooled over items and channels. Memory does not grow with the number of
    voxels.

    Args:
        keep_items: also keep a small histogram of every item, so that `cohort` has per-item metrics and intervals; for
            whole scans, not for thousands of slices.
        threshold: with `keep_items`, a threshold at which to count every item exactly.

    Example:
        >>> metric = AUPRCMetric()
        >>> metric(torch.tensor([[[0.9, 0.2]], [[0.8, 0.3]]]), torch.tensor([[[1, 0]], [[0, 1]]]))
        tensor([[1.0000],
                [0.5000]])
        >>> round(float(metric.aggregate()), 4)
        0.8333
    """

    def __init__(self, keep_items: bool = False, threshold: float | None = None) -> None:
        self.keep_items = keep_items
        self.threshold = threshold
        super().__init__()

    def reset(self) -> None:
        """Forget everything counted."""
        super().reset()
        self._cohort = Cohort(threshold=self.threshold)
        self._items = 0

    def __call__(  # type: ignore[override]
        self, y_pred: Any, y: Any, names: Sequence[str] | None = None, losses: Sequence[float] | None = None
    ) -> Tensor:
        """Count a batch.

        Args:
            y_pred: scores `[B, C, *spatial]`, or a list of `[C, *spatial]`.
            y: labels of the same shapes, 0 or 1.
            names: names of the items, kept if `keep_items`.
            losses: losses of the items, kept likewise.

        Returns:
            `[B, 1]`, the AUPRC of each item.

        Raises:
            NumericsError: a score is NaN.
            DataError: the shapes differ, or a label is neither 0 nor 1.
        """
        if len(y_pred) != len(y):
            raise DataError(
                f"AUPRC expects as many labels as predictions, found {len(y)} for {len(y_pred)}; check output_transform"
            )
        result = []
        for index, (scores, labels) in enumerate(zip(y_pred, y, strict=True)):
            if scores.shape != labels.shape:
                raise DataError(
                    f"AUPRC expects labels of the scores' shape {tuple(scores.shape)}, found {tuple(labels.shape)}; "
                    "resample one of them"
                )
            name = names[index] if names is not None else f"item {self._items} of rank {_rank()}"
            loss = float(losses[index]) if losses is not None else float("nan")
            self._items += 1
            if self.keep_items:
                value = self._cohort.add(name, scores, labels, loss).auprc
            else:
                ordered = SortedScores.of(scores, labels)
                value = ordered.auprc()
                self._cohort.pooled.add_sorted(ordered)
            result.append(value)
        values = torch.tensor(result, dtype=torch.float32).reshape(-1, 1)
        self.extend(values)
        return values

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        raise NotImplementedError("AUPRCMetric counts in __call__")

    @property
    def cohort(self) -> Cohort:
        """Counts of all ranks."""
        return self._cohort.gather()

    @property
    def histogram(self) -> ScoreHistogram:
        """Pooled counts of all ranks."""
        return self.cohort.pooled

    def aggregate(self) -> Tensor:
        """AUPRC of all voxels on all ranks, a float64 scalar; NaN, with a `NoPositivesWarning`, without positives."""
        return torch.tensor(self.histogram.auprc(), dtype=torch.float64)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
