"""Executors, on which cells run: the one interface between a sweep and Ray.

A sweep needs little of a cluster: how much fits at once, start this, what has ended. `RayExecutor` gives it that; tests
put a few lines of their own in its place.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import urlsplit

from monai_fp4.errors import ConfigError
from monai_fp4.study import worker
from monai_fp4.study.worker import Outcome, Task

__all__ = ["Executor", "Resources", "RayExecutor", "this_machine", "cell_resources", "cells_at_once"]

CONNECT_SECONDS = 10.0
EMBEDDED_TRIES = 2
"""Ray gives its own processes 30 s to start, which is not enough on a machine that is very busy."""

GPUS = MappingProxyType({"500k": 0.25, "4m": 0.5, "15m": 1.0})
"""Share of a GPU that a cell takes, by scale. Not measured: chosen so that small networks share one."""
CPUS = MappingProxyType({"500k": 1, "4m": 2, "15m": 4})
"""Cores that a cell takes where there is no GPU, by scale; never more than the largest machine has."""


@dataclass(frozen=True)
class Resources:
    """Cores and GPUs: of a machine, or those that one cell takes of it."""

    cpus: float = 1
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        """Threads of torch: whole cores, at least one."""
        return max(1, int(self.cpus))


class Executor(Protocol):
    """Interface that a sweep asks of whatever runs its cells."""

    description: str
    """One line on where the cells run."""

    def largest_machine(self) -> Resources:
        """The cores and GPUs of the largest machine, and so the most that a cell can ask for."""

    def slots(self, needs: Resources) -> int:
        """Count the cells with these needs that fit at once, at least one."""

    def submit(self, task: Task, needs: Resources) -> Any:
        """Start a task as soon as there is room; returns a handle."""

    def wait(self, handles: Collection[Any], seconds: float) -> list[tuple[Any, Outcome]]:
        """The tasks that have ended, waiting at most so long for the first; never raises for a task."""

    def cancel(self, handle: Any) -> None:
        """Ask a task to stop."""

    def close(self) -> None:
        """Let go of everything, and end whatever still runs."""


def cell_resources(scale: str, most: Resources, cpus: float | None = None, gpus: float | None = None) -> Resources:
    """Choose the resources of a cell by its scale.

    Args:
        scale: its scale.
        most: the largest machine.
        cpus: cores a cell, as asked for; None chooses.
        gpus: GPUs a cell, as asked for; None chooses: a share of one where there is one.

    Raises:
        ConfigError: when no machine has as much.
    """
    gpus = (GPUS.get(scale, 1.0) if most.gpus else 0.0) if gpus is None else gpus
    cpus = (min(CPUS.get(scale, 1), most.cpus) if not gpus else 1) if cpus is None else cpus
    for name, asked, there in (("gpus_per_cell", gpus, most.gpus), ("cpus_per_cell", cpus, most.cpus)):
        if asked > there:
            raise ConfigError(
                f"{name} must fit on a machine, but {asked:g} were asked for and the largest has {there:g}"
            )
    return Resources(cpus, gpus)


def cells_at_once(machines: Iterable[Resources], needs: Resources) -> int:
    """Count the cells that fit on these machines at once, at least one.

    A share of a GPU is a share of one: 0.4 fits twice on each of two, not five times on both.

    >>> cells_at_once([Resources(8, 2)], Resources(1, 0.4)), cells_at_once([Resources(2), Resources(4)], Resources(2))
    (4, 3)
    >>> cells_at_once([Resources(1)], Resources(2))
    1
    """
    total = 0
    for machine in machines:
        fits = [int(machine.cpus / needs.cpus + 1e-9)] if needs.cpus else []
        if needs.gpus >= 1:
            fits.append(int(machine.gpus / needs.gpus + 1e-9))
        elif needs.gpus:
            fits.append(int(machine.gpus) * int(1 / needs.gpus + 1e-9))
        total += min(fits, default=1)
    return max(1, total)


def this_machine() -> Resources:
    """Count the cores and GPUs of this machine, as an embedded Ray will find them."""
    import torch

    return Resources(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        torch.cuda.device_count(),
    )


class RayExecutor:
    """Cells as Ray tasks: on the Ray inside this process, or on the cluster that ``RAY_ADDRESS`` names.

    Raises:
        ConfigError: when Ray is not installed, or the cluster does not answer.
    """

    def __init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError(
                "a sweep must have Ray, but this Python has not; install it with: pip install 'monai-fp4[sweep]'"
            ) from None
        self.ray = ray
        address = os.environ.get("RAY_ADDRESS", "")
        with _ones_own_sigterm():
            self._connect(address)
        # By value: a worker may lack the package, and is to say so rather than fail at unpickling.
        ray.cloudpickle.register_pickle_by_value(worker)
        # A sweep retries by itself, because it knows from the checkpoints whether a try got any further.
        self._remote = ray.remote(max_retries=0)(worker.run_task)
        found = self.largest_machine()
        where = f"the Ray cluster at {address}" if address else "this machine"
        self.description = f"{where}, {found.cpus:g} cores" + (f", {found.gpus:g} GPUs" if found.gpus else "")

    def _connect(self, address: str) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # cells run as a user would run them, not after all else
        if address and address not in ("auto", "local"):
            self._check_reachable(address)
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if not address:
            # The object store is hardly used: tasks and outcomes are a few hundred bytes.
            quiet |= {"address": "local", "include_dashboard": False, "object_store_memory": 80 * 1024 * 1024}
        for left in reversed(range(1 if address else EMBEDDED_TRIES)):
            try:
                self.ray.init(**quiet)
                return
            except Exception as error:  # Ray raises what its transport does: RuntimeError, ConnectionError, ValueError
                if left:
                    self.ray.shutdown()  # of what it had started
                    continue
                said = str(error).strip().splitlines()
                where = f" at RAY_ADDRESS={address}" if address else ""
                hint = "; if the cluster asks for a token, set RAY_AUTH_MODE=token" if address else ""
                raise ConfigError(
                    f"Ray must start{where}, but it said: {said[0] if said else type(error).__name__}{hint}"
                ) from error

    @staticmethod
    def _check_reachable(address: str) -> None:
        """Ray itself tries for a minute and then ends the process."""
        parts = urlsplit(address if "://" in address else f"//{address}")
        try:
            host, port = parts.hostname, parts.port or (10001 if parts.scheme == "ray" else 6379)
            with socket.create_connection((host or "", port), CONNECT_SECONDS):
                pass
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"RAY_ADDRESS must name a Ray cluster that can be reached, but {address} does not answer ({error});"
                " start it, correct the address, or unset RAY_ADDRESS to use this machine"
            ) from error

    def largest_machine(self) -> Resources:
        """The largest node's resources."""
        machines = self._machines()
        return Resources(max(machine.cpus for machine in machines), max(machine.gpus for machine in machines))

    def _machines(self) -> list[Resources]:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [Resources(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]

    def slots(self, needs: Resources) -> int:
        """Counted machine by machine, as a cell cannot be spread."""
        return cells_at_once(self._machines(), needs)

    def submit(self, task: Task, needs: Resources) -> Any:
        """Start a task as soon as there is room."""
        return self._remote.options(num_cpus=needs.cpus, num_gpus=needs.gpus, name=task["cell"]).remote(task)

    def wait(self, handles: Collection[Any], seconds: float) -> list[tuple[Any, Outcome]]:
        """The tasks that have ended."""
        waiting = list(handles)
        ready, rest = self.ray.wait(waiting, num_returns=1, timeout=seconds)
        if ready and rest:
            ready += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [(handle, self._outcome(handle)) for handle in ready]

    def _outcome(self, handle: Any) -> Outcome:
        outcome: Outcome = {"status": "waiting", "error": "", "seconds": 0.0}
        try:
            outcome = self.ray.get(handle)
        except self.ray.exceptions.TaskCancelledError:
            pass
        except self.ray.exceptions.RayError as error:  # the worker, its machine or the memory was lost
            reason = (str(error).strip().splitlines() or [""])[0]
            outcome |= {"status": "lost", "error": f"the worker was lost ({type(error).__name__}: {reason})"}
        return outcome

    def cancel(self, handle: Any) -> None:
        """Interrupt a task, which then ends its process and says so."""
        self.ray.cancel(handle, force=False)

    def close(self) -> None:
        """Leave Ray; an embedded one ends with all its workers, a cluster ends this sweep's tasks."""
        self.ray.shutdown()


@contextmanager
def _ones_own_sigterm() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts, and would end this process with status 1 and without a word."""
    before = signal.getsignal(signal.SIGTERM)
    ended = False
    try:
        yield
    except SystemExit:
        ended = True
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    if ended:
        os.kill(os.getpid(), signal.SIGTERM)
