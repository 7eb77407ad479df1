"""How the operands of a layer's three products become four bits: a recipe's switches, spelled out once.

======  =============================  =================================
GEMM    first operand                  second operand
======  =============================  =================================
fprop   x, along input channels        W, along input channels
dgrad   dy, along output channels, SR  W, along output channels
wgrad   dy, along pixels, RHT and SR   x, along pixels, RHT
======  =============================  =================================

"Along" names the reduction axis of the GEMM, which the blocks lie on; each technique where the recipe has it.
"""

from __future__ import annotations

from typing import NamedTuple

from monai_fp4.quantization.formats.scheme import STANDARD, Scheme

__all__ = ["Encoding", "Encodings"]


class Encoding(NamedTuple):
    """How one operand is quantized: options of `monai_fp4.quantization.numerics.scaled_values`."""

    scheme: Scheme = STANDARD
    two_d: bool = False
    rht: bool = False
    stochastic: bool = False


class Encodings(NamedTuple):
    """How all of them are; those of wgrad lie along columns of tokens or pixels."""

    input: Encoding
    weight: Encoding
    gradient: Encoding
    input_columns: Encoding
    gradient_columns: Encoding
