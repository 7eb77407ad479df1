"""A tensor whose block scales go through every subnormal number of E4M3, its ties and the numbers beside them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["subnormal_scales"]


def subnormal_scales() -> Tensor:
    """Build ``[65, 16]``, FP32: with amax 2688 the scale of a block is its maximum over 6, before it is rounded.

    The subnormal numbers of E4M3 are the multiples of 2^-9 below 2^-6. Here are the quarters of that step up to 2^-5,
    each with other numbers behind the maximum; the first block holds amax.
    """
    x = torch.linspace(-1.0, 1.0, 16).repeat(65, 1)
    x[:, -1] = 1.0
    x *= torch.arange(65)[:, None] * (6 * 2.0**-11)
    x[0, 0] = 2688.0
    return x
