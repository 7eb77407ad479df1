"""What every benchmark here shares: the clock, the facts about the machine, and a results file that is whole or absent.

A figure means little without the machine that it comes from and what else that machine did meanwhile. So each results
file says, beside its figures: the processor, cores and threads, the GPU, versions, the commit, the date, and three
signs of a disturbed run, namely the load average before the first part, at the start and at the end of this part, and
how many cores other processes kept busy while it ran.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from monai_fp4.compiler import status
from monai_fp4.machine import describe_machine
from monai_fp4.quantization.kernels import triton_support

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LOAD_BEFORE = "MONAI_FP4_BENCH_LOAD"  # run.py measures it before its parts, which would count themselves otherwise
CODE_VERSION = "MONAI_FP4_BENCH_VERSION"  # of the code, where it lies in no git checkout
QUIET = 1.0  # a load average above this before the start disturbs


def default_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def clock_of(device: str) -> Callable[[], float]:
    """Seconds that our work took: of processor time on a CPU, of the clock on a GPU, once it has done what was asked.

    With one thread processor time is what the clock would show on a quiet machine; with several it is the sum of
    theirs, which is not what a user waits for, so the clock is read.
    """
    if device.startswith("cuda"):

        def synchronised() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronised
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def in_turns(steps: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that is not counted."""
    clock = clock_of(device)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1, rounds):
        for name, step in steps.items():
            begin = clock()
            step()
            if number >= 0:
                seconds[name].append(clock() - begin)
    return seconds


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The installed version of each package, or ``"not installed"``."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The commit of the checkout, with a plus where tracked files differ from it; elsewhere what the caller says."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return os.environ.get(CODE_VERSION, "")
    return done.stdout.strip() or os.environ.get(CODE_VERSION, "")


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine, for the results file; ``name`` is what computes: the processor, or the GPU."""
    this = describe_machine()
    return {
        "name": torch.cuda.get_device_name() if device.startswith("cuda") else this.cpu,
        "cpu": this.cpu,
        "cores": this.cores,
        "threads": this.threads,
        "gpus": [gpu.name for gpu in this.gpus],
        "system": this.system.split()[0],
        "python": this.python,
        "torch": torch.__version__,
        "versions": this.versions,
        "cuda": this.cuda,
        "triton_kernels": list(triton_support.available(device)),  # so far: a failure is known once it has happened
        "compiled_kernels": sorted(kernel.name for kernel in status() if kernel.available),
        "compiler": this.compiler,
        "commit": commit(),
    }


def refuse_plain_torch() -> None:
    """End with an error if a Triton kernel failed in this process: what was measured since then is plain torch.

    The results file says so too (``triton_kernels`` of the machine), and is to be written before.
    """
    if triton_support.failure() is not None:
        raise SystemExit(f"these are no figures of the kernels, plain torch took over: {triton_support.failure()}")


def busy_seconds() -> float | None:
    """Processor seconds that all processes of the machine have used since it started; None where it cannot be told."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system = map(int, path.read_text(encoding="ascii").split("\n", 1)[0].split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def load_average() -> float | None:
    """The load average of the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


class Results:
    """The results file of one benchmark, opened before the first measurement.

    Args:
        path: the JSON file.
        device: what computes.
        protocol: the options that the figures depend on.
        peers: packages whose versions matter, installed or not.
    """

    def __init__(
        self, path: Path, device: str = "cpu", protocol: Mapping[str, Any] | None = None, peers: Sequence[str] = ()
    ) -> None:
        self.path = path
        self._device, self._protocol, self._peers = device, dict(protocol or {}), peers
        self._begin, self._busy, self._own = time.perf_counter(), busy_seconds(), _own_seconds()
        start = load_average()
        before = os.environ.get(LOAD_BEFORE)
        self._load = {"before": float(before) if before else start, "start": start}
        self._commit = commit()  # of the code that is running, whatever the checkout holds at the end
        self._date = datetime.now(UTC).isoformat(timespec="seconds")
        if not before:
            warn_of(start)

    def write(self, figures: Mapping[str, Any]) -> None:
        """Write what there is so far; a crash at any moment leaves the file before or the file after."""
        elapsed = time.perf_counter() - self._begin
        busy, others = busy_seconds(), None
        if busy is not None and self._busy is not None and elapsed > 1:
            others = max(0.0, round((busy - self._busy - (_own_seconds() - self._own)) / elapsed, 2))
        content = {
            "protocol": self._protocol,
            "machine": machine(self._device) | {"commit": self._commit},
            "run": {
                "date": self._date,
                "seconds": round(elapsed, 1),
                "load_average": {**self._load, "end": load_average()},
                "cores_busy_with_other_processes": others,
            },
            "peers": versions(self._peers),
            **figures,
        }
        write_whole(self.path, json.dumps(content, indent=1) + "\n")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def warn_of(load: float | None) -> None:
    """Say that the machine is at work already, if it is."""
    if load is not None and load > QUIET:
        warnings.warn(
            f"the load average is {load:.1f}, above {QUIET:.0f}, before anything is measured: other processes are at "
            "work, and figures by the clock will be too high (the results file says so)",
            stacklevel=3,
        )


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
