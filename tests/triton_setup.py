"""Where the Triton kernels are tested: on a GPU if there is one, else in Triton's interpreter on the CPU.

Import this before anything that imports Triton, which decides at its import whether it interprets.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest
import torch

INSTALLED = importlib.util.find_spec("triton") is not None
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if INSTALLED and DEVICE.type == "cpu" and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"

from monai_fp4.quantization.kernels.triton_language import INTERPRETED, triton  # noqa: E402


def _missing() -> str | None:
    """Why kernels cannot run here."""
    if not INSTALLED:
        return "Triton is not installed"
    if DEVICE.type == "cuda":
        return None
    if not INTERPRETED:
        return "Triton was imported before these tests could make it interpret"

    @triton.jit
    def count(steps):
        for _ in range(steps):
            pass

    try:
        count[(1,)](2)
    except Exception as error:  # interpreters of older versions fail on newer versions of NumPy
        return f"the interpreter of Triton {triton.__version__} does not work here: {error}"
    return None


_reason = _missing()
needs_kernels = pytest.mark.skipif(_reason is not None, reason=str(_reason))
"""Skips a test that runs kernels."""

needs_compiler = pytest.mark.skipif(not INSTALLED, reason="Triton is not installed")
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
"""The interpreter divides by zero and overflows as a GPU does, but NumPy remarks on it."""
