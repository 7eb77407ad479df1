"""Whether the compiled kernels have to work on this machine, asked of the machine and not of the kernels.

A kernel that miscalculates is refused by its own check and replaced by plain torch. A test that skipped itself because
a kernel "is not available" would then be silent about the worst fault there is.
"""

from __future__ import annotations

import os

import pytest

from monai_fp4 import compiler


def _without_compiler() -> str | None:
    if os.environ.get("MONAI_FP4_NATIVE") == "0":
        return "needs the compiled kernels, which MONAI_FP4_NATIVE=0 turns off"
    try:
        compiler._compiler()
    except compiler._UnavailableError as reason:
        return f"needs a C++ compiler: {reason}"
    return None


def _without_instructions() -> str | None:
    flags = compiler._processor().split()
    return None if "avx512_bf16" in flags else "needs a processor with AVX512_BF16 instructions"


WITHOUT_COMPILER = _without_compiler()
WITHOUT_BF16 = WITHOUT_COMPILER or _without_instructions()

needs_compiler = pytest.mark.skipif(WITHOUT_COMPILER is not None, reason=str(WITHOUT_COMPILER))
"""Skips a test of kernels where nothing can compile them."""

needs_bf16 = pytest.mark.skipif(WITHOUT_BF16 is not None, reason=str(WITHOUT_BF16))
"""Skips a test of products where the processor lacks their instructions."""
