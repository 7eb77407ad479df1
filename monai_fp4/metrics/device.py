"""Scores that stay on their CUDA device: keys, sorting and AUPRC in torch, so that only counts travel to the host.

A key here is a signed 32-bit number, since torch sorts and searches those; flipping its sign bit gives the unsigned
key of `monai_fp4.metrics.keys`. The functions run on any device, and are tested on the CPU.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_fp4.errors import DataError, NumericsError

__all__ = ["device_auprc", "device_distinct", "from_host", "not_real", "on_device", "split_on_device", "to_host"]

_SIGN = np.uint32(0x80000000)


def on_device(scores: Any) -> bool:
    """Whether scores are counted where they are."""
    return isinstance(scores, Tensor) and scores.is_cuda


def split_on_device(scores: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
    """As `monai_fp4.metrics.keys.split_keys`, in signed keys, with one wait for the device to check both."""
    if scores.is_complex():
        raise not_real(scores.dtype)
    values = scores.detach().float().reshape(-1)
    truth = torch.as_tensor(labels, device=values.device).detach().reshape(-1)
    if len(values) != len(truth):
        raise DataError(
            f"a metric expects as many labels as scores, found {len(truth)} for {len(values)}; check shapes"
        )
    positive = truth == 1
    odd = ~positive & (truth != 0)
    nans, strange = torch.stack([values.isnan().sum(), odd.sum()]).tolist()
    if nans:
        raise NumericsError(
            f"a metric expects numbers as scores, found NaN in {nans} of {len(values)}; look at the network's output"
        )
    if strange:
        raise DataError(f"a metric expects labels that are 0 or 1, found {truth[odd][0].item()}; binarise the mask")
    bits = (values + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return keys[~positive], keys[positive]


def not_real(dtype: Any) -> DataError:
    """The error of scores that have no order, such as complex ones, whose imaginary part a cast would drop."""
    return DataError(f"a metric expects real numbers as scores, found {dtype}; give it probabilities or logits")


def to_host(keys: Tensor) -> NDArray[np.uint32]:
    """Unsigned keys on the host from signed ones on a device."""
    return keys.cpu().numpy().view(np.uint32) ^ _SIGN


def from_host(keys: NDArray[np.uint32], device: torch.device) -> Tensor:
    """Signed keys on a device from unsigned ones on the host.

    >>> from_host(to_host(torch.tensor([-5, 7], dtype=torch.int32)), torch.device("cpu")).tolist()
    [-5, 7]
    """
    return torch.from_numpy((keys ^ _SIGN).view(np.int32)).to(device)


def device_distinct(negatives: Tensor, positives: Tensor) -> int:
    """Number of distinct scores, from sorted keys."""
    own, other = torch.unique_consecutive(positives), torch.unique_consecutive(negatives)
    return len(own) + len(other) - int(torch.isin(own, other, assume_unique=True).sum())


def device_auprc(negatives: Tensor, positives: Tensor) -> float:
    """Step-wise average precision from sorted keys; NaN without positives."""
    size = len(positives)
    if not size:
        return math.nan
    own, counts = torch.unique_consecutive(positives, return_counts=True)
    tp = size - (counts.cumsum(0) - counts)
    fp = len(negatives) - torch.searchsorted(negatives, own)
    return float((counts * (tp.double() / (tp + fp))).sum()) / size
