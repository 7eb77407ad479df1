"""The soft scores of arXiv 2605.27616: recall, precision, F2, IoU and Dice of probabilities, without a threshold.

They are not the usual metrics of these names, and bear names of their own so that nobody takes them for those. With
probabilities p, clipped to [1e-7, 1 - 1e-7], labels y, and sums over all pixels of all slices:

    soft_recall = TP / (TP + FN + e)       soft_precision = TP / (TP + FP + e)       e = 1e-6
    TP = sum(p y)                          FP = sum(p (1 - y))                       FN = sum((1 - p) y)
    soft_f2 = 5 P R / (4 P + R + e)        soft_iou = TP / (sum p + sum y - TP + e)

A network that is sure of nothing has a low soft precision even where its ranking is perfect. ``dice_paper`` is taken a
slice, ``(2 TP + e) / (sum p + sum y + e)`` of unclipped probabilities, and averaged in batches of 32 slices, the means
of the batches then counting alike. A slice without tumour scores about 0 unless it is predicted as empty to within
1e-6, so the value can hardly pass the share of slices with tumour (a third of LGG's).

``ece_15`` is the expected calibration error over 15 bins ``(low, high]`` of equal width, and ``roc_auc`` the area
under the ROC curve, both pooled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from monai_fp4.errors import DataError, NumericsError
from monai_fp4.metrics.histogram import ScoreHistogram

__all__ = ["SOFT_SCORES", "SoftScores"]

SOFT_SCORES = ("soft_recall", "soft_precision", "soft_f2", "soft_iou", "dice_paper", "roc_auc", "ece_15")
"""Names of the scores, in the order of `SoftScores.summary`."""

_EPSILON = 1e-6
_SMALLEST = 1e-7
_BINS = 15


class SoftScores:
    """The sums behind the soft scores, added to patient by patient.

    Args:
        batch_size: slices that ``dice_paper`` averages before it averages batches.

    Example:
        >>> scores = SoftScores()
        >>> scores.add("anna", torch.tensor([[[0.9, 0.2]], [[0.4, 0.1]]]), torch.tensor([[[1, 0]], [[1, 0]]]))
        >>> {name: round(value, 4) for name, value in scores.summary().items() if name.startswith("soft")}
        {'soft_recall': 0.65, 'soft_precision': 0.8125, 'soft_f2': 0.6771, 'soft_iou': 0.5652}
    """

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self._sums = torch.zeros(3, dtype=torch.float64)  # p, y, p y
        self._bins = torch.zeros(3, _BINS, dtype=torch.float64)  # pixels, p, y
        self._dice: dict[str, Tensor] = {}
        self._losses: dict[str, Tensor] = {}

    def add(self, patient: str, probabilities: Tensor, labels: Tensor, losses: Tensor | None = None) -> None:
        """Count a patient's slices.

        Args:
            patient: the patient's id, new to these scores; slices of ``dice_paper`` are in the order of ids.
            probabilities: `[slices, ...]`, from 0 to 1.
            labels: of the same shape, 0 or 1; pixels of any other label are not counted.
            losses: `[slices]`, the loss of each; averaged as ``dice_paper`` is.

        Raises:
            DataError: the shapes differ, or the patient was added before.
            NumericsError: a probability is not between 0 and 1.
        """
        if probabilities.shape != labels.shape or patient in self._dice:
            raise DataError(
                f"soft scores expect each patient once, with labels of shape {tuple(probabilities.shape)}, found "
                f"{tuple(labels.shape)} for {patient!r}; check the manifest and the label transform"
            )
        p, y = (values.detach().flatten(1).contiguous() for values in (probabilities.float(), labels))
        if not bool(((p >= 0) & (p <= 1)).all()):
            raise NumericsError(
                f"soft scores expect probabilities from 0 to 1, found others for {patient!r}; apply a sigmoid to logits"
            )
        counted = (y <= 1).double()
        p, y = p.double() * counted, y.double() * counted
        self._dice[patient] = ((2 * (p * y).sum(1) + _EPSILON) / (p.sum(1) + y.sum(1) + _EPSILON)).cpu()
        if losses is not None:
            self._losses[patient] = losses.detach().double().cpu()
        p = p.clamp(_SMALLEST, 1 - _SMALLEST) * counted
        self._sums += torch.stack([p.sum(), y.sum(), (p * y).sum()]).cpu()
        edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=p.device)[1:-1]
        at = torch.bucketize(p, edges).flatten()
        parts = (counted, p, y)
        self._bins += torch.stack([at.bincount(v.flatten(), minlength=_BINS) for v in parts]).cpu()

    def merge(self, other: SoftScores) -> SoftScores:
        """Add another rank's counts, in place; returns itself."""
        self._sums += other._sums
        self._bins += other._bins
        self._dice |= other._dice
        self._losses |= other._losses
        return self

    def summary(self, histogram: ScoreHistogram | None = None) -> Mapping[str, float]:
        """The scores by name; NaN where there is nothing to divide by.

        Args:
            histogram: the same pixels' scores; with it, ``roc_auc`` is among the scores.
        """
        sum_p, sum_y, tp = self._sums.tolist()
        recall, precision = tp / (sum_y + _EPSILON), tp / (sum_p + _EPSILON)
        pixels, p, y = self._bins
        result = {
            "soft_recall": recall,
            "soft_precision": precision,
            "soft_f2": 5 * precision * recall / (4 * precision + recall + _EPSILON),
            "soft_iou": tp / (sum_p + sum_y - tp + _EPSILON),
            "dice_paper": self._mean_of_batches(self._dice),
        }
        if histogram is not None:
            result["roc_auc"] = histogram.roc_auc()
        return result | {"ece_15": float((p - y).abs().sum() / pixels.sum())}

    @property
    def loss(self) -> float:
        """Mean over batches of slices of the mean loss in each; NaN where no losses were given."""
        return self._mean_of_batches(self._losses)

    def _mean_of_batches(self, values: Mapping[str, Tensor]) -> float:
        slices = torch.cat([values[name] for name in sorted(values)]) if values else torch.empty(0)
        means = [batch.mean() for batch in slices.split(self.batch_size)]
        return float(torch.stack(means).mean()) if len(slices) else math.nan
