"""Quantization in plain torch: the definition, with the call that the kernels have."""

from __future__ import annotations

from torch import Tensor

from monai_fp4.quantization.formats.blocks import ScaledValues, decode_factors, prepare_blocks, round_blocks
from monai_fp4.quantization.kernels.task import STANDARD_TASK, Task

__all__ = ["quantize", "takes"]


def takes(x: Tensor, task: Task) -> bool:
    """Every tensor on every device, in every format."""
    return True


def quantize(x: Tensor, task: Task = STANDARD_TASK) -> ScaledValues:
    """Quantize along the last axis."""
    blocks = prepare_blocks(x, two_d=task.two_d, rht=task.rht, amax=task.amax, scheme=task.scheme)
    factors = decode_factors(blocks.scales, blocks.amax, task.scheme.bound) if task.decoded else blocks.scales
    values = round_blocks(blocks, factors, key=task.key, dtype=task.dtype)
    scales = blocks.scales.squeeze(-1) if task.with_scales else blocks.scales.new_empty(0)
    return ScaledValues(values, blocks.amax, scales, task.scheme)
