"""Four bits: recipes, formats, kernels, layers, and what converts a network. No scan, run or study is known here.

A quantization researcher opens this wing and no other. In the order in which one meets it:

===================  =================================================================================
`recipes`            what is quantized, and how: data
`formats`            the numbers, step by step in plain torch: the definition
`kernels`            the same bits, quickly: compiled C++ on CPUs, Triton on GPUs
`numerics`           quantizing a tensor, with the quickest kernel that this machine has
`tensor`             a tensor packed to four bits
`layers`             linear layers, convolutions and attention that multiply in FP4
`backends`           whose layers `convert` swaps in: the emulation's, or Transformer Engine's
`layer_rules`        which layers stay in high precision, and why
`patterns`           names of layers, as options write them
`heads`              which of them are output heads: `head_search` runs an example, `head_guess` guesses
`conversion_plan`    what becomes of every layer, and its FP4 twin
`conversion`         the swap, and back
`class_swap`         how one layer changes its class, in place
`streams`            whose random bits a converted model draws
`conversion_report`  what became of every layer
`coverage`           which layers really compute in FP4 once the network runs
`monitor`            how much four bits lose while a network trains
===================  =================================================================================
"""

import lazy_loader

# Names are listed once, in the stub beside this file, and loaded when first asked for (PEP 562): torch and MONAI take
# seconds, which commands that compute nothing do not need.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
