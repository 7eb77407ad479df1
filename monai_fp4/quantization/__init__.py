"""Four bits: recipes, formats, kernels, layers, and what converts a network. No scan, run or study is known here.

A quantization researcher opens this wing and no other. In the order in which one meets it:

===================  =============================================================================
`recipes`            what is quantized, and how: data
`formats`            the numbers, step by step in plain torch: the definition
`kernels`            the same bits, quickly: compiled C++ on CPUs, Triton on GPUs
`numerics`           quantizing a tensor, with the quickest kernel that this machine has
`tensor`             a tensor packed to four bits
`layers`             linear layers, convolutions and attention that multiply in FP4
`backends`           whose layers `convert` swaps in: the emulation's, or Transformer Engine's
`layer_rules`        which layers stay in high precision, and why
`conversion`         the swap, and back
`conversion_report`  what became of every layer
`monitor`            how much four bits lose while a network trains
===================  =============================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from monai_fp4.quantization.conversion import convert, set_active, unconvert
    from monai_fp4.quantization.conversion_report import ConversionReport
    from monai_fp4.quantization.recipes import RECIPES, Recipe
    from monai_fp4.quantization.tensor import NVFP4Tensor, fake_quantize, quantize

__all__ = [
    "RECIPES",
    "ConversionReport",
    "NVFP4Tensor",
    "Recipe",
    "convert",
    "fake_quantize",
    "quantize",
    "set_active",
    "unconvert",
]

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "conversion": ["convert", "set_active", "unconvert"],
        "conversion_report": ["ConversionReport"],
        "recipes": ["RECIPES", "Recipe"],
        "tensor": ["NVFP4Tensor", "fake_quantize", "quantize"],
    },
)
