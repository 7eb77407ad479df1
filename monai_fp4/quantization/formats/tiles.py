"""Work in pieces that stay in a CPU's cache, for arithmetic that takes many passes over its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["tiles"]

_TILE = 1 << 16  # numbers worked on at once by each CPU thread: 256 KiB of FP32 stay in its cache over all passes


def tiles(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of equal leading axes into pieces that stay in a CPU's cache, along the axis of largest stride.

    The last axis is never cut, and on other devices than CPUs nothing is.
    """
    first = tensors[0]
    limit = _TILE * torch.get_num_threads()
    axes = [axis for axis in range(first.ndim - 1) if first.shape[axis] > 1]
    if first.device.type != "cpu" or first.numel() <= limit or not axes:
        yield tensors
        return
    axis = max(axes, key=first.stride)
    count = min(first.shape[axis], -(-first.numel() // limit))
    for pieces in zip(*(tensor.chunk(count, axis) for tensor in tensors), strict=True):
        yield from tiles(*pieces)
