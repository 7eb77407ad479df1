"""The random Hadamard transform: 16 numbers are mixed, so that no single one dominates its block.

**The order of the sums is part of the definition.** Sixteen FP32 numbers that nearly cancel have another sum in another
order, so the order is written out here, for every device and every kernel, rather than left to a library:

* FP32 and FP16: products are added one after another, from the first number of the block to the last.
* BF16: in the order 2nd, 1st, 4th, 3rd, ..., 16th, 15th, subnormal numbers and sums being zero. That is what the
  processors' BF16 dot product does (AVX-512), hence Transformer Engine's reference on a CPU, bit for bit.

A product with +-1/4 is exact, so a fused multiply-add and a product that is added are the same, except where a quarter
of a number is subnormal; there the fused one is meant.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.rounding import check_dtype
from monai_fp4.quantization.formats.tiles import tiles

__all__ = ["BLOCK_SIZE", "rotate"]

BLOCK_SIZE = 16
"""Numbers that share one E4M3 scale, along the axis that a matrix product sums over."""

_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


@torch.no_grad()
def rotate(x: Tensor) -> Tensor:
    """Apply the random Hadamard transform to each run of 16 numbers along the last axis.

    The transform is ``v @ (diag(signs) @ H16 / 4)`` with the Sylvester matrix ``H16`` and one fixed sign vector: it is
    orthogonal and the same on both operands of a product, where it cancels. It spreads an outlier over its block, which
    makes the block easier to quantize. Sums are formed in FP32 and the result is rounded to BF16, as the hardware does.

    Args:
        x: FP32, BF16 or FP16, shape ``[..., K]`` with K a multiple of 16.

    Returns:
        The rotated tensor, BF16, in the shape of ``x``.

    Raises:
        ConfigError: the dtype is none of the three, or K is not a multiple of 16.
    """
    check_dtype(x)
    if x.ndim == 0 or x.shape[-1] % BLOCK_SIZE:
        raise ConfigError(
            f"rotate expected a last axis that is a multiple of {BLOCK_SIZE}, found shape {tuple(x.shape)}:"
            " pad it with zeros"
        )
    blocks = x.unflatten(-1, (x.shape[-1] // BLOCK_SIZE, BLOCK_SIZE))
    result = torch.empty_like(blocks, dtype=torch.bfloat16)
    for piece, out in tiles(blocks, result):
        # Position k of all blocks as one long row, so that each step is a multiple of a row added to sixteen.
        numbers = piece.movedim(-1, 0).to(torch.float32)
        out.copy_(_sums(numbers, x.dtype is torch.bfloat16).movedim(0, -1))
    return result.flatten(-2)


def _sums(numbers: Tensor, pairwise: bool) -> Tensor:
    """The sixteen sums ``[16, ...]`` of sixteen FP32 numbers ``[16, ...]``, in the order of this module."""
    matrix = _matrix(numbers.device).view(BLOCK_SIZE, BLOCK_SIZE, *[1] * (numbers.ndim - 1))
    order = [position ^ pairwise for position in range(BLOCK_SIZE)]
    sums = torch.zeros_like(numbers)
    if numbers.device.type == "cpu" and not _has_tiny(numbers, 2.0**-100 if pairwise else 2.0**-124):
        for k in order:
            sums.addcmul_(matrix[k], numbers[k])
        return sums
    # The double of a sum of two FP32 numbers is rounded again without harm: 53 bits are more than twice 24.
    if pairwise:
        numbers = _flush(numbers)
    for k in order:
        sums = torch.addcmul(sums.double(), matrix[k].double(), numbers[k].double()).float()
        if pairwise:
            sums = _flush(sums)
    return sums


def _has_tiny(numbers: Tensor, limit: float) -> bool:
    """Whether there is a magnitude between zero and the limit; above it, sums are exact where that matters."""
    magnitudes = numbers.abs()
    return bool(((magnitudes < limit) & (magnitudes > 0)).any())


def _flush(numbers: Tensor) -> Tensor:
    """Subnormal numbers become zero."""
    return torch.where(numbers.abs() < _SMALLEST_NORMAL, 0.0, numbers)


@lru_cache(maxsize=16)
def _matrix(device: torch.device) -> Tensor:
    """``diag(signs) @ H16 / 4``, FP32."""
    hadamard = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    while len(hadamard) < BLOCK_SIZE:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    return (torch.tensor(_SIGNS, device="cpu")[:, None] * hadamard / 4).to(device)
