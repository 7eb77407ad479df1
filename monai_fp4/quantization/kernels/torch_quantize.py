"""Quantization in plain torch: the definition, with the call that the kernels have."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_fp4.quantization.formats.blocks import ScaledValues, decode_factors, prepare_blocks, round_blocks
from monai_fp4.quantization.formats.scheme import STANDARD, Scheme

__all__ = ["quantize", "takes"]


def takes(x: Tensor, scheme: Scheme) -> bool:
    """Every tensor on every device, in every format."""
    return True


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
    """Quantize along the last axis, see :class:`monai_fp4.quantization.kernels.quantizers.Quantizer`."""
    blocks = prepare_blocks(x, two_d=two_d, rht=rht, amax=amax, scheme=scheme)
    factors = decode_factors(blocks.scales, blocks.amax, scheme.bound) if decoded else blocks.scales
    values = round_blocks(blocks, factors, key=key, dtype=dtype)
    scales = blocks.scales.squeeze(-1) if with_scales else blocks.scales.new_empty(0)
    return ScaledValues(values, blocks.amax, scales, scheme)
