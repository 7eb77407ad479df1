"""Operands as the products of `kernels.cpu_gemm` read them: BF16 rows, and pairs of neighbours."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monai_fp4.quantization.formats.philox import draw_key
from monai_fp4.quantization.kernels.cpu_quantize import quantize
from monai_fp4.quantization.kernels.task import Task
from monai_fp4.quantization.numerics import BLOCK_SIZE, ScaledValues, pad_last
from monai_fp4.quantization.recipes import Encoding

__all__ = ["quantized", "quantized_rows", "round_trip", "swap_pairs"]


def quantized(
    x: Tensor, how: Encoding, amax: Tensor | None = None, *, pairs: bool = False, out: Tensor | None = None
) -> ScaledValues:
    """Quantize along the last axis to BF16 operands; see `monai_fp4.quantization.kernels.cpu_quantize.quantize`."""
    key = draw_key() if how.stochastic else None
    task = Task(how.two_d, how.rht, key, amax, torch.bfloat16, with_scales=False)
    return quantize(x, task, pairs=pairs, out=out)


def quantized_rows(x: Tensor, how: Encoding) -> ScaledValues:
    """Quantize ``[M, K]`` along K to rows whose length is a multiple of 16, padded with zeros."""
    length = x.shape[-1]
    if length % BLOCK_SIZE == 0 and x.stride(-1) == 1:
        return quantized(x, how)
    padded = x.new_empty((len(x), length + -length % BLOCK_SIZE), dtype=torch.bfloat16)
    padded[:, length:] = 0
    return replace(quantized(x, how, out=padded[:, :length]), values=padded)


def round_trip(x: Tensor, dtype: torch.dtype, how: Encoding, amax: Tensor | None = None) -> Tensor:
    """Quantize to nearest along the last axis and decode, into ``dtype``."""
    return quantize(x, Task(how.two_d, amax=amax, dtype=dtype, decoded=True, with_scales=False)).values


def swap_pairs(kernel: ScaledValues, length: int) -> ScaledValues:
    """The pairs along the other axis of a kernel with 16 x 16 blocks: the same numbers, laid out anew.

    Args:
        kernel: ``[..., K / 2, N, 2]`` with K padded, from `quantized` with ``pairs``.
        length: K without its padding.

    Returns:
        ``[..., N / 2, K, 2]`` with N padded to a multiple of 16.
    """
    matrix = kernel.values.mT.flatten(-3, -2)[..., :length, :]  # [..., K, N]
    padded = pad_last(matrix, BLOCK_SIZE).unflatten(-1, (-1, 2))  # [..., K, N / 2, 2]
    return replace(kernel, values=padded.movedim(-3, -2).contiguous())
