"""Table of the implementations that quantize a tensor, and the function that dispatches to them."""

from __future__ import annotations

from torch import Tensor

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.kernels import cpu_quantize, torch_quantize, triton_quantize
from monai_fp4.quantization.kernels.dispatch import dispatch
from monai_fp4.quantization.kernels.task import Quantizer, Task

__all__ = ["QUANTIZERS", "quantize"]

QUANTIZERS: tuple[Quantizer, ...] = (cpu_quantize, triton_quantize, torch_quantize)
"""Implementations: compiled C++, Triton, plain torch."""


def quantize(x: Tensor, task: Task) -> ScaledValues:
    """Quantize along the last axis with the first implementation that takes the tensor and the format."""
    return dispatch(QUANTIZERS, x, task, lambda row: row.quantize(x, task))
