"""``monai-fp4 doctor``: what this machine is, which backend and fast paths would run on it, and why not the others.

>>> diagnosis = diagnose()
>>> diagnosis.backends[-1].name, diagnosis.backends[-1].available
('emulated', True)
>>> sum(backend.selected for backend in diagnosis.backends)
1
>>> [path.name for path in diagnosis.fast_paths]
['quantize', 'gemm', 'histogram', 'triton']
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monai_fp4 import compiler
from monai_fp4.compiler import KernelStatus
from monai_fp4.machine import GPU, NOT_INSTALLED, Machine, describe_machine
from monai_fp4.quantization.backends import AUTO, BACKENDS, select_backend

__all__ = ["GPU", "BackendStatus", "Diagnosis", "KernelStatus", "Machine", "diagnose", "render"]

_PURPOSES = {
    "quantize": "C++: FP4 values on the CPU",
    "gemm": "C++: FP4 products on the CPU",
    "histogram": "C++: scores of an evaluation",
    "triton": "Triton: FP4 values on the GPU",
}


@dataclass(frozen=True)
class BackendStatus:
    """One backend on this machine.

    Attributes:
        name: as written in a config.
        summary: what it is.
        available: whether it works here, with BF16 layers on ``Diagnosis.device``.
        selected: whether ``backend="auto"`` would take it.
        reasons: why it does not work here.
        evidence: what a test on the device said that speaks for it, where one was asked.
    """

    name: str
    summary: str
    available: bool
    selected: bool
    reasons: tuple[str, ...]
    evidence: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Machine, backends and fast paths, for a model on ``device``.

    Attributes:
        machine: what there is to compute with.
        device: where the model is.
        backends: each backend, and whether it works here.
        fast_paths: each kernel of the emulation; plain torch computes the same numbers where one is not available.
        runs: sentences that say what would compute a layer here.
    """

    machine: Machine
    device: str
    backends: tuple[BackendStatus, ...]
    fast_paths: tuple[KernelStatus, ...]
    runs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; the run folder's ``environment.json`` can hold it."""
        return asdict(self)


def diagnose(device: str | torch.device | None = None) -> Diagnosis:
    """Look at this machine.

    The C++ kernels are compiled into the cache, if they are not there yet, and compared with plain torch: whether they
    work here cannot be known otherwise.

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
                name=backend.name,
                summary=backend.summary,
                available=availability.available,
                selected=backend.name == selected,
                reasons=availability.reasons,
                evidence=availability.evidence,
            )
        )
    paths = _fast_paths(chosen)
    evidence = (f"{status.name}: {status.evidence}." for status in statuses if status.selected and status.evidence)
    runs = (*_what_runs(selected, chosen, paths), *evidence)
    return Diagnosis(describe_machine(), str(chosen), tuple(statuses), paths, runs)


def render(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print a diagnosis as tables; why something does not run stands once below them, however often it applies.

    Args:
        diagnosis: what to print.
        console: where to; by default standard output.
    """
    console = console or Console()
    reasons: dict[str, int] = {}

    def why_not(*given: str) -> str:
        return " ".join(["no", *(f"({reasons.setdefault(reason, len(reasons) + 1)})" for reason in given)])

    backends = [
        (status.name, _verdict(status) or why_not(*status.reasons), status.summary) for status in diagnosis.backends
    ]
    paths = [
        (path.name, "yes" if path.available else why_not(path.reason), _summary(path)) for path in diagnosis.fast_paths
    ]
    _print(console, "This machine", _facts(diagnosis.machine, reasons))
    _print(console, f"Backends, for a model on {diagnosis.device}", backends)
    _print(console, "Fast paths; without one, plain torch computes the same numbers more slowly", paths)
    if reasons:
        _print(console, "Why not", [(f"({number})", reason) for reason, number in reasons.items()])
    _print(console, "What runs here", [(sentence,) for sentence in diagnosis.runs])


def _print(console: Console, title: str, rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    for row in rows:
        table.add_row(*map(Text, row))  # as they stand: rich would read "[te]" as its markup
    for column in table.columns[:-1]:
        column.no_wrap = True
    console.print(Text(title, style="bold"), table, "")


def _facts(machine: Machine, reasons: Mapping[str, int]) -> list[tuple[str, str]]:
    there = [f"{package} {version}" for package, version in machine.versions.items() if version != NOT_INSTALLED]
    missing = [package for package, version in machine.versions.items() if version == NOT_INSTALLED]
    compiler = machine.compiler
    return [
        ("System", f"{machine.system}, Python {machine.python}"),
        ("CPU", f"{machine.cpu}, {_count(machine.cores, 'core')}, {_count(machine.threads, 'thread')} in PyTorch"),
        ("Memory", f"{machine.memory_gib:.1f} GiB" if machine.memory_gib else "unknown"),
        ("GPU", "\n".join(_describe(gpu) for gpu in machine.gpus) or "none that PyTorch sees"),
        ("CUDA", machine.cuda or "none (PyTorch built for CPU)"),
        ("C++ compiler", f"none ({reasons[compiler]})" if compiler in reasons else compiler),
        ("Built kernels", machine.cache),
        ("Packages", ", ".join(there)),
        *([("Not installed", ", ".join(missing))] if missing else []),
    ]


def _verdict(status: BackendStatus) -> str:
    return 'yes: "auto"' if status.selected else "yes" if status.available else ""


def _summary(path: KernelStatus) -> str:
    """What a fast path does, and on which device where it says so; the folder of built kernels is known."""
    purpose = _PURPOSES.get(path.name, path.name)
    return f"{purpose} ({path.reason})" if path.available and path.name == "triton" else purpose


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _fast_paths(device: torch.device) -> tuple[KernelStatus, ...]:
    from monai_fp4.metrics import native
    from monai_fp4.quantization.kernels import cpu_gemm, cpu_quantize, triton_support

    with warnings.catch_warnings():  # the table says it
        warnings.simplefilter("ignore")
        cpu_quantize.available()
        cpu_gemm.available()
        native.library()
    compiled = {status.name: status for status in compiler.status()}
    triton = KernelStatus("triton", *triton_support.available(device))
    return (*(compiled[name] for name in _PURPOSES if name in compiled), triton)


def _what_runs(backend: str, device: torch.device, paths: tuple[KernelStatus, ...]) -> tuple[str, ...]:
    """Tell the user what a layer is computed by."""
    works = {path.name: path.available for path in paths}
    if device.type == "cuda":
        tensor_cores = torch.cuda.get_device_capability(device) >= (8, 0)
        values = "Triton kernels" if works["triton"] else "plain torch (slower)"
        products = "BF16 tensor cores" if tensor_cores else "units without BF16 tensor cores (slow)"
    elif device.type == "cpu":
        values, products = (
            "a compiled kernel" if works[name] else "plain torch (slower)" for name in ("quantize", "gemm")
        )
    else:
        values = products = "plain torch (slower)"
    emulation = (
        f"FP4 values are made by {values}, and multiplied, as BF16 numbers that hold them exactly, by {products}."
    )
    if backend == "emulated":
        return (f"FP4 is emulated on {device.type}: {emulation}",)
    return (
        "Linear layers, 1x1 and patch convolutions run on FP4 tensor cores, by Transformer Engine.",
        f"All other convolutions, and attention, are emulated: {emulation}",
    )


def _describe(gpu: GPU) -> str:
    capability = f", compute capability {gpu.capability}" if gpu.capability else ""
    memory = f", {gpu.memory_gib:.0f} GiB" if gpu.memory_gib else ""
    return gpu.name + capability + memory
