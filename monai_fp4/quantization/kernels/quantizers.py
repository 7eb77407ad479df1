"""Table of the implementations that quantize a tensor, and the function that dispatches to them."""

from __future__ import annotations

from typing import Protocol, TypedDict, Unpack

import torch
from torch import Tensor

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.formats.scheme import STANDARD, Scheme
from monai_fp4.quantization.kernels import cpu_quantize, torch_quantize, triton_quantize
from monai_fp4.quantization.kernels.dispatch import dispatch

__all__ = ["QUANTIZERS", "Options", "Quantizer", "quantize"]


class Options(TypedDict, total=False):
    """Options of `quantize`; without any, values are FP32 and rounded to nearest, with their scales.

    Attributes:
        two_d: share one scale among the square blocks of the last two axes.
        rht: rotate the blocks first; K is padded to whole blocks then and stays so.
        key: of the random bits of stochastic rounding; ``None`` rounds to nearest.
        amax: the largest magnitude to scale by; ``None`` for that of ``x``.
        dtype: of the values.
        decoded: give ``code * ((scale * amax) * (1 / bound))`` instead of ``code * scale``.
        with_scales: whether block scales are wanted; without, they may be an empty tensor.
    """

    two_d: bool
    rht: bool
    key: int | None
    amax: Tensor | None
    dtype: torch.dtype
    decoded: bool
    with_scales: bool


class Quantizer(Protocol):
    """Module that quantizes; all give the same bits."""

    def takes(self, x: Tensor, scheme: Scheme, /) -> bool:
        """Whether it can be had here, and knows where the tensor lies and the format."""

    def quantize(self, x: Tensor, /, *, scheme: Scheme, **options: Unpack[Options]) -> ScaledValues:
        """Quantize along the last axis: FP32, BF16 or FP16, ``[..., K]``, any strides."""


QUANTIZERS: tuple[Quantizer, ...] = (cpu_quantize, triton_quantize, torch_quantize)
"""Implementations: compiled C++, Triton, plain torch."""


def quantize(x: Tensor, *, scheme: Scheme = STANDARD, **options: Unpack[Options]) -> ScaledValues:
    """Quantize along the last axis with the first implementation that takes the tensor and the format."""
    return dispatch(QUANTIZERS, x, scheme, lambda row: row.quantize(x, scheme=scheme, **options))
