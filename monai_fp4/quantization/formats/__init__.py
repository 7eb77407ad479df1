"""The four-bit formats, step by step in plain torch on any device: the definition that every kernel is held to.

A tensor on its way to four bits meets these modules in this order:

=============  ====================================================================================
module         concept
=============  ====================================================================================
`scheme`       which format: the size of a block, the largest values (needs no torch)
`rotation`     the random Hadamard transform of 16 numbers, and the order of its sums
`block_scales` the scale of a block: E4M3, four over six, or a power of two
`rounding`     E2M1 and E4M3, to nearest even and stochastically
`philox`       the random bits of stochastic rounding, counted and not drawn
`blocks`       all of it together: from numbers to blocks of codes with their scales, and back
`tiles`        pieces of a tensor that stay in a CPU's cache meanwhile
=============  ====================================================================================

:mod:`monai_fp4.quantization.kernels` computes the same bits in one pass over memory, and
:mod:`monai_fp4.quantization.numerics` chooses.
"""
