"""Availability of the Triton kernels, and the way a failure of theirs takes.

Triton compiles at the first call, so a kernel may fail that seemed to be available. That is warned about once and ends
the use of all Triton kernels in this process; plain torch computes the same numbers.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.kernels.dispatch import KernelError

__all__ = ["GIVEN_UP", "available", "failure", "may_fail"]

GIVEN_UP = "the Triton kernels cannot be used"
"""How the warning of a failure begins."""

_OLDEST = (8, 0)  # Ampere: BF16 tensor cores, and minima that keep a NaN

_failure: str | None = None


def failure() -> str | None:
    """Why the kernels were given up in this process, or None."""
    return _failure


def available(device: torch.device | str) -> tuple[bool, str]:
    """Whether the kernels can run on a device.

    Args:
        device: of the tensors.

    Returns:
        Yes or no; and what they run on, or why not.
    """
    device = torch.device(device)
    if _failure is not None:
        return False, _failure
    if device.type not in ("cuda", "cpu"):
        return False, f"the Triton kernels run on CUDA devices, not on {device.type}"
    if importlib.util.find_spec("triton") is None:
        return False, "Triton is not installed"
    if device.type == "cpu":
        from monai_fp4.quantization.kernels.triton_language import INTERPRETED

        if INTERPRETED:
            return True, "in Triton's interpreter, which is for tests"
        return False, "the Triton kernels run on CUDA devices, not on a CPU"
    if not torch.cuda.is_available():
        return False, "there is no CUDA device"
    if torch.version.hip is not None:
        return False, "the Triton kernels are for NVIDIA's GPUs, this torch is built for AMD's"
    return _capable(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _capable(index: int) -> tuple[bool, str]:
    capability = torch.cuda.get_device_capability(index)
    name = f"{torch.cuda.get_device_name(index)}, compute capability {capability[0]}.{capability[1]}"
    if capability < _OLDEST:
        return False, f"the Triton kernels need compute capability 8.0 or above, found {name}"
    return True, f"Triton on {name}"


@contextmanager
def may_fail() -> Iterator[None]:
    """Turn a failure of Triton into a `KernelError`, after a warning: for a block, or as a decorator.

    Memory that runs out and arguments that are refused are no failures of Triton and are raised as they are.
    """
    global _failure
    try:
        yield
    except (torch.OutOfMemoryError, ConfigError, KernelError):
        raise
    except Exception as error:  # Triton, its compiler and the driver have no common class of errors
        first = (str(error).strip().splitlines() or [""])[0]
        _failure = f"a Triton kernel failed, {type(error).__name__}: {first}"
        warnings.warn(
            f"{GIVEN_UP}, plain torch computes the same numbers more slowly: {_failure}", RuntimeWarning, stacklevel=4
        )
        raise KernelError(_failure) from error
