"""Describe this machine, for ``monai-fp4 doctor``, for a run's ``environment.json`` and for benchmarks."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from monai_fp4 import compiler

__all__ = ["GPU", "Machine", "describe_environment", "describe_machine", "free_memory"]

_PACKAGES = (
    "monai-fp4",
    "torch",
    "monai",
    "pytorch-ignite",
    "numpy",
    "nibabel",
    "SimpleITK",
    "transformer-engine",
    "transformer-engine-torch",
    "triton",
)
_GIB = 2**30

NOT_INSTALLED = "not installed"
"""The version of a package that is missing."""


@dataclass(frozen=True)
class GPU:
    """A GPU that PyTorch sees.

    Attributes:
        name: as the driver calls it.
        capability: CUDA compute capability, such as ``"10.0"``; empty for other GPUs than NVIDIA's.
        memory_gib: total memory in GiB; 0 where the driver does not tell.
    """

    name: str
    capability: str = ""
    memory_gib: float = 0.0


@dataclass(frozen=True)
class Machine:
    """Processors, memory and GPUs of a machine.

    Attributes:
        system: operating system and architecture.
        python: version of Python.
        cpu: model of the processor.
        cores: logical cores that this process may use.
        threads: threads that PyTorch computes with.
        memory_gib: total main memory in GiB, or the limit of the container if that is less; 0 if unknown.
        gpus: every GPU that PyTorch sees.
        cuda: the CUDA version that PyTorch was built for; empty in a CPU build.
        versions: packages that matter here, with ``"not installed"`` where they are missing.
        compiler: the C++ compiler that kernels are built with, or why there is none.
        cache: the folder that built kernels are kept in.
    """

    system: str
    python: str
    cpu: str
    cores: int
    threads: int
    memory_gib: float
    gpus: tuple[GPU, ...]
    cuda: str
    versions: dict[str, str]
    compiler: str = ""
    cache: str = ""


def describe_machine() -> Machine:
    """Look at this machine; nothing is computed, and nothing made but the folder that built kernels are kept in."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=_memory() / _GIB,
        gpus=_gpus(),
        cuda=torch.version.cuda or "",
        versions={package: _version(package) for package in _PACKAGES},
        compiler=_answer_or_unknown(lambda: _first_line(*compiler._compiler())),
        cache=_answer_or_unknown(lambda: str(compiler._cache_folder())),
    )


def describe_environment(device: torch.device, backend: str) -> dict[str, Any]:
    """Say what a run ran on, as ``environment.json`` holds it: enough to know whether two runs may be compared.

    Args:
        device: where the run computes.
        backend: name of the backend of its FP4 layers.
    """
    machine = describe_machine()
    return {
        "versions": machine.versions | {"python": machine.python},
        "platform": platform.platform(),
        "processor": machine.cpu,
        "cores": machine.cores,
        "threads": machine.threads,
        "memory_gib": round(machine.memory_gib, 1),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": machine.cuda,
        "backend": backend,
    }


def _answer_or_unknown(question: Callable[[], str]) -> str:
    """The answer, or why there is none."""
    try:
        return question()
    except compiler._UnavailableError as reason:
        return str(reason)


def _first_line(command: tuple[str, ...], version: str) -> str:
    line, called = version.strip().partition("\n")[0], " ".join(command)
    return line if line.startswith(called) else f"{called}: {line}"


def _gpus() -> tuple[GPU, ...]:
    if not torch.cuda.is_available():
        return (GPU("Apple GPU (Metal)"),) if torch.backends.mps.is_available() else ()
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(GPU(p.name, f"{p.major}.{p.minor}", p.total_memory / _GIB) for p in properties)


def _cpu() -> str:
    """The model's name; `platform.processor` is empty or just the architecture on Linux."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")) and ":" in line:
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory() -> int:
    """Bytes of main memory, or of the container's limit where that is lower; 0 where the system does not tell."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def free_memory() -> int:
    """Bytes of main memory that can be had: of the system, or of the container where that is less; 0 if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 0
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return max(1, min(free, limit - used + (int(cached[1]) if cached else 0)))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED
