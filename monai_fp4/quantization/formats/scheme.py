"""Schemes, the four-bit formats that a tensor can be quantized to: what a block is, and how its scale is chosen.

All three store E2M1 codes and differ in the scales above them:

=====================  ======  =====================================  ==================
scheme                 block   scale of a block                       scale of a tensor
=====================  ======  =====================================  ==================
`Scheme.NVFP4`         16      E4M3, the maximum becomes 6            amax becomes 2688
`Scheme.FOUR_OVER_SIX` 16      E4M3, the maximum becomes 6 or 4       amax becomes 1536
`Scheme.MXFP4`         32      a power of two (E8M0), at most 6       none
=====================  ======  =====================================  ==================

2688 is 448 * 6, with the largest E4M3 number. Four over six needs room above a block's scale, since a maximum that
becomes 4 takes a scale 1.5 times as large: it uses 256 * 6 = 1536, and 256 * 1.5 = 384 is still an E4M3 number.

`monai_fp4.quantization.recipes` says which tensor of a layer has which scheme,
`monai_fp4.quantization.formats.block_scales` computes the scales. The kernels of `monai_fp4.quantization.kernels` know
`STANDARD` only; the others are computed in plain torch.

>>> Scheme.MXFP4.block_size, Scheme.FOUR_OVER_SIX.bound
(32, 1536.0)
"""

from __future__ import annotations

from enum import Enum

__all__ = ["E2M1_MAX", "E4M3_MAX", "STANDARD", "TENSOR_MAX", "Scheme"]

# The largest values of the two formats; here and not in `rounding`, since recipes are read without torch.
E2M1_MAX = 6.0
"""The largest value of E2M1, the format of the values."""
E4M3_MAX = 448.0
"""The largest value of E4M3, the format of the blocks' scales."""

TENSOR_MAX = E2M1_MAX * E4M3_MAX
"""2688: what amax becomes after the first level of scaling."""


class Scheme(Enum):
    """A four-bit format.

    Attributes:
        block_size: numbers along the last axis that share a scale; blocks over two axes are as large along both.
        bound: what the tensor's maximum becomes after the first level of scaling. A number is ``code * block_scale *
            amax / bound``. Where there is no first level, both amax and bound are 1.
    """

    NVFP4 = ("nvfp4", 16, TENSOR_MAX)
    FOUR_OVER_SIX = ("four_over_six", 16, 256 * E2M1_MAX)
    MXFP4 = ("mxfp4", 32, 1.0)

    block_size: int
    bound: float

    def __init__(self, label: str, block_size: int, bound: float) -> None:
        self.label, self.block_size, self.bound = label, block_size, bound

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


STANDARD = Scheme.NVFP4
"""The scheme of every recipe that does not say otherwise, and the only one that the kernels know."""
