"""What is asked of a kernel that quantizes, and what makes a module one."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.formats.scheme import STANDARD, Scheme

__all__ = ["STANDARD_TASK", "Quantizer", "Task"]


class Task(NamedTuple):
    """How to quantize a tensor along its last axis.

    Attributes:
        two_d: share one scale among the square blocks of the last two axes.
        rht: rotate the blocks first; K is padded to whole blocks then and stays so.
        key: of the random bits of stochastic rounding (64 bits); ``None`` rounds to nearest.
        amax: the largest magnitude to scale by, an FP32 scalar; ``None`` for that of the (rotated) tensor.
        dtype: of the values.
        decoded: give ``code * ((scale * amax) * (1 / bound))`` instead of ``code * scale``.
        with_scales: whether block scales are wanted; without, they are an empty tensor.
        scheme: the format.
    """

    two_d: bool = False
    rht: bool = False
    key: int | None = None
    amax: Tensor | None = None
    dtype: torch.dtype = torch.float32
    decoded: bool = False
    with_scales: bool = True
    scheme: Scheme = STANDARD


STANDARD_TASK = Task()
"""To nearest, in the standard format, with FP32 values and their scales."""


class Quantizer(Protocol):
    """Module that quantizes; all give the same bits."""

    def takes(self, x: Tensor, task: Task, /) -> bool:
        """Whether it can be had here, and knows where the tensor lies and the format."""

    def quantize(self, x: Tensor, task: Task, /) -> ScaledValues:
        """Quantize FP32, BF16 or FP16, ``[..., K]``, with any strides."""
