"""Peak memory of a run."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

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
    if (held := _high_water()) is not None:
        return held
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, the other systems KiB


def _high_water() -> int | None:
    """What Linux counts for this program alone; ``ru_maxrss`` counts what it was before it was this program, too.

    A process that a larger one starts begins as its copy, and ``getrusage`` keeps that size as the peak.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:  # no Linux
        return None
    return int(found[1]) * 1024 if found else None
