"""Peak memory of a run."""

from __future__ import annotations

import resource
import sys

import torch

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held so far, in bytes.

    On CUDA that is torch's allocations on the device, elsewhere the process's resident memory, Python and libraries
    included.

    >>> peak_memory(torch.device("cpu")) > 2**20
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, the other systems KiB
