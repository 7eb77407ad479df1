"""Scores as sorted integers of the same order, split into tumour and background.

A float32 becomes an unsigned 32-bit key by flipping the sign bit of positive numbers and every bit of negative ones.
Keys sort and compare as the scores do, whatever their range, and lose nothing: next to 1, where a saturated sigmoid
crowds its values and equal-width bins would see one, every float32 keeps a key of its own.

What is written here in NumPy is the definition. On the host `monai_fp4.metrics.native` does the same in C++ where it
can be compiled; scores on a CUDA device stay there (`monai_fp4.metrics.device`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_fp4.errors import DataError, NumericsError
from monai_fp4.metrics.device import device_auprc, device_distinct, from_host, not_real, on_device, split_on_device
from monai_fp4.metrics.native import sort_natively, split_natively

__all__ = ["Keys", "SortedScores", "key_scores", "runs", "score_keys", "sort_keys", "split_keys"]

Keys = NDArray[np.uint32]
"""An array of keys."""
_SIGN = np.uint32(0x80000000)


def score_keys(scores: NDArray[np.float32]) -> Keys:
    """Map float32 scores to integers of the same order; equal scores (-0.0 and 0.0 too) have equal keys.

    >>> keys = score_keys(np.array([-np.inf, -1.5, -0.0, 0.0, 1e-40, 1.0, np.inf], dtype=np.float32))
    >>> bool((np.diff(keys.astype(np.int64)) >= 0).all()), bool(keys[2] == keys[3])
    (True, True)
    """
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 + 0.0 is 0.0
    flip = (bits >> np.int32(31)).view(np.uint32) | _SIGN  # all ones for negative numbers, the sign bit for the others
    return bits.view(np.uint32) ^ flip


def key_scores(keys: Keys) -> NDArray[np.float32]:
    """Invert `score_keys`; keys beyond those of the infinities, which no score has, become the infinity."""
    least, most = score_keys(np.array([-np.inf, np.inf], dtype=np.float32))
    keys = np.clip(keys, least, most)
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).astype(np.uint32).view(np.float32)


def split_keys(scores: Any, labels: Any) -> tuple[Keys, Keys] | tuple[Tensor, Tensor]:
    """Check scores and labels, and return the keys of the negatives and of the positives, unsorted.

    Args:
        scores: tensor, array or list of any shape, compared as float32.
        labels: as many, 0 or 1 (or bool).

    Returns:
        Arrays of unsigned keys; of scores on a CUDA device, tensors of signed keys there.

    Raises:
        NumericsError: a score is NaN.
        DataError: the sizes differ, a score is no real number, or a label is neither 0 nor 1.
    """
    if on_device(scores):
        return split_on_device(scores, labels)
    values, truth = _flat(scores), _flat(labels)
    if values.size != truth.size:
        raise DataError(
            f"a metric expects as many labels as scores, found {truth.size} for {values.size}; check shapes"
        )
    if values.dtype.kind not in "biufVO":  # V: NumPy's name for other people's formats, such as bfloat16
        raise not_real(values.dtype)
    values = values.astype(np.float32, copy=False)
    if truth.dtype in (np.bool_, np.uint8) and (split := split_natively(values, truth.view(np.uint8))) is not None:
        return split
    if count := int(np.count_nonzero(np.isnan(values))):
        raise NumericsError(
            f"a metric expects numbers as scores, found NaN in {count} of {values.size}; look at the network's output"
        )
    positive = truth if truth.dtype == np.bool_ else truth == 1
    if truth.dtype != np.bool_ and np.count_nonzero(truth) != np.count_nonzero(positive):
        odd = truth[~positive & (truth != 0)][0]
        raise DataError(f"a metric expects labels that are 0 or 1, found {odd!s}; binarise the mask")
    keys = score_keys(values)
    return keys[~positive], keys[positive]


def sort_keys(keys: Any) -> Any:
    """Sort keys from `split_keys`, in rising order and in an array or tensor of their own."""
    if isinstance(keys, Tensor):
        return keys.sort().values
    ordered = sort_natively(keys)
    return np.sort(keys) if ordered is None else ordered


def runs(ordered: NDArray[Any]) -> NDArray[np.int64]:
    """Return where each run of equal values of a sorted array begins.

    >>> runs(np.array([1, 1, 2, 5, 5])).tolist()
    [0, 2, 3]
    """
    if not ordered.size:
        return np.empty(0, np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])


@dataclass(frozen=True, eq=False)
class SortedScores:
    """Every score of a scan, sorted, for what must be exact.

    Attributes:
        negatives: keys of the background's scores, rising; an array, or a tensor on a device.
        positives: keys of the tumour's scores, likewise.
    """

    negatives: Any
    positives: Any

    @classmethod
    def of(cls, scores: Any, labels: Any) -> SortedScores:
        """Check and sort; arguments and errors as `split_keys`."""
        negatives, positives = split_keys(scores, labels)
        return cls(sort_keys(negatives), sort_keys(positives))

    @property
    def size(self) -> int:
        """Number of scores."""
        return len(self.negatives) + len(self.positives)

    @property
    def distinct(self) -> int:
        """Number of distinct scores."""
        if isinstance(self.negatives, Tensor):
            return device_distinct(self.negatives, self.positives)
        own = self.positives[runs(self.positives)]
        at = np.searchsorted(self.negatives, own)
        inside = at < self.negatives.size
        both = np.count_nonzero(self.negatives[at[inside]] == own[inside])
        others = np.count_nonzero(self.negatives[1:] != self.negatives[:-1])
        return int(own.size + others + bool(self.negatives.size) - both)

    def auprc(self) -> float:
        """Step-wise average precision; NaN without positives.

        Only thresholds at positive scores add area, so the background is searched and never grouped.
        """
        if isinstance(self.negatives, Tensor):
            return device_auprc(self.negatives, self.positives)
        size = self.positives.size
        if not size:
            return math.nan
        starts = runs(self.positives)
        counts = np.diff(np.append(starts, size))
        tp = size - starts
        fp = self.negatives.size - np.searchsorted(self.negatives, self.positives[starts])
        return math.fsum(counts * (tp / (tp + fp))) / size

    def at_or_above(self, threshold: float) -> tuple[int, int]:
        """Numbers of positives and negatives whose score reaches a threshold."""
        key = score_keys(np.array([threshold], dtype=np.float32))
        if isinstance(self.negatives, Tensor):
            wanted = from_host(key, self.negatives.device)
            tp, fp = (len(keys) - int(torch.searchsorted(keys, wanted)) for keys in (self.positives, self.negatives))
        else:
            tp, fp = (keys.size - int(np.searchsorted(keys, key[0])) for keys in (self.positives, self.negatives))
        return tp, fp


def _flat(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach()
        values = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values).reshape(-1)
