"""Tversky plus binary cross-entropy, the study's loss, on logits.

Tumours fill about one voxel in a hundred, and missing one costs more than a false alarm. Cross-entropy gives every
voxel a gradient from the first step on, but is content to call everything background; the Tversky index looks only at
the overlap, and weighs false negatives (`beta`) against false positives (`alpha`). Their weighted sum trains well from
scratch and keeps recall first.

The Tversky index of Salehi et al. 2017 (arXiv 1706.05721), for probabilities p and labels y:

    T = (sum(p y) + s) / (sum(p y) + alpha sum(p (1 - y)) + beta sum((1 - p) y) + s),    loss = 1 - T

The arithmetic is FP32 whatever the logits' dtype and whether or not autocast is on: BF16 has 8 bits of precision, so
that every probability above 0.998 is 1 and its logarithm is lost.
"""

from __future__ import annotations

import math

import torch
from monai.losses import TverskyLoss
from torch import Tensor, nn
from torch.nn import functional

from monai_fp4.errors import ConfigError

__all__ = ["TverskyBCELoss"]


class TverskyBCELoss(nn.Module):
    """Weighted sum of binary cross-entropy and MONAI's Tversky loss, from logits.

    Args:
        bce_weight: weight of the mean binary cross-entropy.
        tversky_weight: weight of the mean Tversky loss.
        alpha: weight of false positives inside the Tversky index.
        beta: weight of false negatives; above `alpha`, recall counts more than precision.
        smooth: added to the numerator and denominator of the index, in voxels. With it, a slice without tumour that is
            predicted as empty costs nothing.
        batch: True sums the voxels of the whole batch before dividing, as MONAI's `batch`, so that a slice with three
            tumour voxels does not weigh as much as one with 3,000; False takes one index an item.
        pos_weight: weight of the tumour voxels inside the cross-entropy; None is 1.
        max_logit: clamp the logits to plus and minus this, beyond which there is no gradient; None clamps nothing.

    Raises:
        ConfigError: a weight is negative or not finite, or both terms, or alpha and beta, are zero.

    Example:
        >>> loss = TverskyBCELoss()
        >>> labels = torch.zeros(2, 1, 4, 4)
        >>> labels[:, :, :2] = 1
        >>> round(float(loss(torch.zeros(2, 1, 4, 4), labels)), 4)
        1.1931
        >>> float(loss(40 * labels - 20, labels)) < 1e-6
        True
    """

    def __init__(
        self,
        *,
        bce_weight: float = 1.0,
        tversky_weight: float = 1.0,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1e-5,
        batch: bool = True,
        pos_weight: float | None = None,
        max_logit: float | None = None,
    ) -> None:
        super().__init__()
        given = {
            "bce_weight": bce_weight,
            "tversky_weight": tversky_weight,
            "alpha": alpha,
            "beta": beta,
            "smooth": smooth,
            "pos_weight": 1.0 if pos_weight is None else pos_weight,
            "max_logit": 0.0 if max_logit is None else max_logit,
        }
        for name, value in given.items():
            if not math.isfinite(value) or value < 0:
                raise ConfigError(
                    f"TverskyBCELoss expects {name} to be finite and not negative, found {value}; change it"
                )
        for first, second in (("bce_weight", "tversky_weight"), ("alpha", "beta")):
            if given[first] == given[second] == 0:
                raise ConfigError(
                    f"TverskyBCELoss expects {first} or {second} above 0, found 0 for both; set one of them"
                )
        self.bce_weight = float(bce_weight)
        self.tversky_weight = float(tversky_weight)
        self.max_logit = max_logit
        self.tversky = TverskyLoss(alpha=alpha, beta=beta, smooth_nr=smooth, smooth_dr=smooth, batch=batch)
        self.pos_weight: Tensor | None
        self.register_buffer(
            "pos_weight", None if pos_weight is None else torch.tensor(float(pos_weight)), persistent=False
        )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: `[B, C, *spatial]`, any floating dtype, before the sigmoid.
            labels: `[B, C, *spatial]`, 0 or 1, any dtype; NaN where a voxel does not count.

        Returns:
            An FP32 scalar.

        Raises:
            ConfigError: the shapes differ.
        """
        if logits.shape != labels.shape:
            raise ConfigError(
                f"the loss expects labels of the logits' shape {tuple(logits.shape)}, found {tuple(labels.shape)}; "
                "check out_channels of the network and the label transform"
            )
        with torch.autocast(logits.device.type, enabled=False):
            logits, labels = logits.float(), labels.float()
            if self.max_logit is not None:
                logits = logits.clamp(-self.max_logit, self.max_logit)
            counted = ~torch.isnan(labels)
            every = bool(counted.all())
            loss = logits.new_zeros(())
            if self.bce_weight:
                pairs = (logits, labels) if every else (logits[counted], labels[counted])
                if pairs[0].numel():
                    bce = functional.binary_cross_entropy_with_logits(*pairs, pos_weight=self.pos_weight)
                    loss = loss + self.bce_weight * bce
            if self.tversky_weight:
                scores = torch.sigmoid(logits)
                if not every:  # where both are zero, nothing is counted
                    scores, labels = scores.where(counted, 0.0), labels.where(counted, 0.0)
                loss = loss + self.tversky_weight * self.tversky(scores, labels)
            return loss
