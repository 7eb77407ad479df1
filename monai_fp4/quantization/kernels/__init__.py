"""Fast paths of the arithmetic: compiled C++ on CPUs, Triton on GPUs, each bit-equal to plain torch.

Nothing here defines a number. :mod:`monai_fp4.quantization.formats` does, in plain torch; a kernel that cannot be had
on this machine is replaced by it, with one warning.
"""
