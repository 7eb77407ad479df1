"""``monai-fp4 doctor``: what this machine is, which backend would run on it, and why not the others.

>>> diagnosis = diagnose()
>>> diagnosis.backends[-1].name, diagnosis.backends[-1].available
('emulated', True)
>>> sum(backend.selected for backend in diagnosis.backends)
1
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monai_fp4.backends import AUTO, BACKENDS, select_backend

__all__ = ["GPU", "BackendStatus", "Diagnosis", "Machine", "diagnose", "render"]

_PACKAGES = (
    "monai-fp4",
    "torch",
    "monai",
    "pytorch-ignite",
    "numpy",
    "transformer-engine",
    "transformer-engine-torch",
    "triton",
)
_GIB = 2**30


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
    """What there is to compute with.

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


@dataclass(frozen=True)
class BackendStatus:
    """One backend on this machine.

    Attributes:
        name: as written in a config.
        summary: what it is.
        available: whether it works here, with BF16 layers on ``Diagnosis.device``.
        selected: whether ``backend="auto"`` would take it.
        reasons: why it does not work here.
    """

    name: str
    summary: str
    available: bool
    selected: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """Machine and backends, for a model on ``device``."""

    machine: Machine
    device: str
    backends: tuple[BackendStatus, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; the run folder's ``environment.json`` can hold it."""
        return asdict(self)


def diagnose(device: str | torch.device | None = None) -> Diagnosis:
    """Look at this machine; nothing is computed and nothing is written.

    Args:
        device: where models would be; by default the GPU if PyTorch sees one, else the CPU.
    """
    chosen = torch.device(device if device is not None else _default_device())
    selected = select_backend(AUTO, chosen).name
    statuses = []
    for backend in BACKENDS.values():
        availability = backend.check(chosen)
        statuses.append(
            BackendStatus(
                backend.name, backend.summary, availability.available, backend.name == selected, availability.reasons
            )
        )
    return Diagnosis(machine=_machine(), device=str(chosen), backends=tuple(statuses))


def render(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print a diagnosis as two tables.

    Args:
        diagnosis: what to print.
        console: where to; by default standard output.
    """
    console = console or Console()
    machine = diagnosis.machine
    facts = Table(title="This machine", show_header=False, title_justify="left")
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("System", f"{machine.system}, Python {machine.python}")
    facts.add_row("CPU", f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads")
    facts.add_row("Memory", f"{machine.memory_gib:.1f} GiB" if machine.memory_gib else "unknown")
    facts.add_row("GPU", "\n".join(_describe(gpu) for gpu in machine.gpus) or "none that PyTorch sees")
    facts.add_row("CUDA", machine.cuda or "none (PyTorch built for CPU)")
    for package, version in machine.versions.items():
        facts.add_row(package, version)
    console.print(facts)
    backends = Table(title=f"Backends, for a model on {diagnosis.device}", title_justify="left")
    for header in ("backend", "runs here", "what, and why not"):
        backends.add_column(header, overflow="fold")
    for status in diagnosis.backends:
        verdict = 'yes: backend "auto" takes it' if status.selected else "yes" if status.available else "no"
        explanation = "\n".join([status.summary, *(f"- {reason}" for reason in status.reasons)])
        backends.add_row(status.name, verdict, Text(explanation))  # as it stands: rich would read "[te]" as its markup
    console.print(backends)


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _machine() -> Machine:
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
    )


def _gpus() -> tuple[GPU, ...]:
    if not torch.cuda.is_available():
        return (GPU("Apple GPU (Metal)"),) if torch.backends.mps.is_available() else ()
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(GPU(p.name, f"{p.major}.{p.minor}", p.total_memory / _GIB) for p in properties)


def _describe(gpu: GPU) -> str:
    capability = f", compute capability {gpu.capability}" if gpu.capability else ""
    memory = f", {gpu.memory_gib:.0f} GiB" if gpu.memory_gib else ""
    return gpu.name + capability + memory


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


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
