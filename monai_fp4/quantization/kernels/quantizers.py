"""Table of the implementations that quantize a tensor, and the function that dispatches to them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.formats.scheme import STANDARD, Scheme
from monai_fp4.quantization.kernels import cpu_quantize, torch_quantize, triton_quantize
from monai_fp4.quantization.kernels.dispatch import dispatch

__all__ = ["QUANTIZERS", "Quantizer", "quantize"]


class Quantizer(Protocol):
    """Module that quantizes; all give the same bits."""

    def takes(self, x: Tensor, scheme: Scheme, /) -> bool:
        """Whether it can be had here, and knows where the tensor lies and the format."""

    def quantize(
        self,
        x: Tensor,
        /,
        *,
        two_d: bool,
        rht: bool,
        key: int | None,
        amax: Tensor | None,
        dtype: torch.dtype,
        decoded: bool,
        with_scales: bool,
        scheme: Scheme,
    ) -> ScaledValues:
        """Quantize along the last axis.

        Args:
            x: FP32, BF16 or FP16, ``[..., K]``, any strides.
            two_d: share one scale among the square blocks of the last two axes.
            rht: rotate the blocks first; K is padded to whole blocks then and stays so.
            key: of the random bits of stochastic rounding; ``None`` rounds to nearest.
            amax: the largest magnitude to scale by; ``None`` for that of ``x``.
            dtype: of the values.
            decoded: give ``code * ((scale * amax) * (1 / bound))`` instead of ``code * scale``.
            with_scales: whether block scales are wanted; without, they may be an empty tensor.
            scheme: the format.
        """


QUANTIZERS: tuple[Quantizer, ...] = (cpu_quantize, triton_quantize, torch_quantize)
"""Implementations: compiled C++, Triton, plain torch."""


def quantize(
    x: Tensor,
    *,
    two_d: bool = False,
    rht: bool = False,
    key: int | None = None,
    amax: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    decoded: bool = False,
    with_scales: bool = True,
    scheme: Scheme = STANDARD,
) -> ScaledValues:
    """Quantize along the last axis with the first implementation that takes the tensor, see `Quantizer`."""
    return dispatch(
        QUANTIZERS,
        x,
        scheme,
        lambda row: row.quantize(
            x,
            two_d=two_d,
            rht=rht,
            key=key,
            amax=amax,
            dtype=dtype,
            decoded=decoded,
            with_scales=with_scales,
            scheme=scheme,
        ),
    )
