"""Several tensors in one forward pass, each quantized by its own maximum.

NVFP4 scales a tensor by its largest magnitude. Pictures of different patients that are evaluated in one batch would
share that maximum, and a patient's result would depend on who else is in the batch. Inside `separate` each patient's
images are a tensor of their own in every FP4 product, as if they had been given alone, while weights are quantized and
kernels started once for all of them.

A product is linear, so that needs no kernel: an input divided by its maximum has the maximum 1, whatever stands beside
it, and the product is multiplied by that maximum in FP32, before it is cast. Numbers differ from those of the tensor
alone by roundings of FP32.

This is for evaluation. In a compiled or traced network the forward pass is of several tensors too, but gradients are
those of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["maxima", "separate", "separated"]

_counts: ContextVar[tuple[int, ...]] = ContextVar("counts", default=())


@contextmanager
def separate(counts: Sequence[int]) -> Iterator[None]:
    """Take the first axis of whatever FP4 layers are given for the images of several tensors.

    Args:
        counts: images of each tensor, in order. One tensor is quantized as it is outside of this context. A layer whose
            first axis is no multiple of their sum (it holds something else than images, or windows of them) takes its
            input for one tensor.

    >>> with separate([1, 2]):
    ...     maxima(torch.tensor([[1.0, -2.0], [3.0, 0.0], [-4.0, 1.0]])).flatten()
    tensor([2., 4., 4.])
    """
    token = _counts.set(tuple(counts))
    try:
        yield
    finally:
        _counts.reset(token)


def separated() -> bool:
    """Whether a forward pass is of several tensors now."""
    return len(_counts.get()) > 1


def maxima(x: Tensor) -> Tensor | None:
    """The largest magnitude of the tensor that each row of ``x`` belongs to, or None where ``x`` is one tensor.

    Returns:
        FP32, ``[len(x), 1, ...]``; 1 for a tensor that is zero, or not finite and so is nothing to scale by.
    """
    counts = _counts.get()
    if len(counts) < 2 or len(x) % sum(counts):
        return None
    in_memory = x if x.is_contiguous() or x.ndim < 3 else x.movedim(1, -1)  # channels last
    images = in_memory.detach().reshape(sum(counts), -1).abs().amax(1).float()
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(x.device)
    own = images.new_zeros(len(counts)).scatter_reduce_(0, owners, images, "amax")
    own = own.where(own.isfinite() & (own > 0), 1.0)[owners]
    return own.repeat_interleave(len(x) // len(own)).view(-1, *(1,) * (x.ndim - 1))
