"""Run one cell in a worker: start the bundle's own command, watch it, and record its outcome.

This module is sent to the workers as it stands, so it takes nothing but the standard library: a worker that lacks the
package can then say so, and none spends seconds on importing torch, which the bundle's own process does anyway.

Two things keep two processes from writing one run folder. The process that trains holds a lock on the cell, inherited
from the worker, until it ends; and on Linux the kernel ends it when its worker dies, whatever killed that one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

__all__ = ["Outcome", "Task", "run_task"]

ORPHAN_SECONDS = 30.0
"""How long to wait for a process of an earlier sweep to let go of the cell."""

STOP_SECONDS = 60.0
"""How long a training has to end after its step."""
POLL_SECONDS = 1.0
"""How long a request to stop may go unheard."""
_DISK_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), "enforce fail at inline_container")
"""What the system says; the last is how torch says it when a checkpoint does not fit."""

# Runs in a fresh interpreter and becomes the command: setting this between fork and exec is not safe in a worker, which
# has threads. 1 is PR_SET_PDEATHSIG; the parent may have died before it was set.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Task(TypedDict):
    """One attempt at one cell.

    Attributes:
        study: the study folder, an absolute path; the command runs in it.
        cell: the cell's id.
        arguments: what follows ``python`` on the command line.
        threads: threads of torch and its libraries.
        version: version and commit of the package, for the record.
        stop_file: once this file is there, nothing is started any more.
    """

    study: str
    cell: str
    arguments: list[str]
    threads: int
    version: str
    stop_file: str


class Outcome(TypedDict, total=False):
    """Outcome of an attempt.

    Attributes:
        status: ``done``, ``failed``, ``lost`` (ended by a signal, or with its worker) or ``waiting`` (not started, or
            stopped on request).
        error: one sentence; empty where there is none.
        seconds: wall time of the process.
        disk_full: whether the error is that of a full disk.
    """

    status: str
    error: str
    seconds: float
    disk_full: bool


def run_task(task: Task) -> Outcome:
    """Run one cell to its end and keep its ``cell.json`` up to date.

    Never raises for what goes wrong in the cell: that is the outcome.
    """
    host, study = socket.gethostname(), Path(task["study"])
    folder = study / "cells" / task["cell"]
    if importlib.util.find_spec("monai_fp4") is None:
        return _failed(
            f"every worker must have monai-fp4 installed, but the Python of host {host} ({sys.executable}) has not; "
            f"install it there with the version of the others"
        )
    from monai_fp4.atomic import make_private_folder, open_private  # here, where the package is known to be there
    from monai_fp4.errors import ConfigError

    try:
        if Path(task["stop_file"]).exists():
            return {"status": "waiting", "error": "", "seconds": 0.0}
        if not (study / "study.json").exists():
            return _failed(
                f"every worker must see the study, but host {host} has no {study / 'study.json'}; put the study on a"
                " shared file system, or restore the file"
            )
        make_private_folder(folder)
        with open(folder / ".lock", "a+", opener=open_private) as lock:
            if not _lock_cell(lock.fileno()):
                there = _read(folder)
                owner = f"process {there.get('pid', '?')} on host {there.get('host', '?')}"
                return _failed(f"{folder} must be free, but another process still trains in it ({owner}); end that one")
            return _run(task, folder, lock.fileno(), host)
    except (OSError, ConfigError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        number, said = getattr(reason, "errno", None), getattr(reason, "strerror", None) or error
        full = number in (errno.ENOSPC, errno.EDQUOT)
        return {**_failed(f"{folder} must be writable, but the system says '{said}'"), "disk_full": full}


def _run(task: Task, folder: Path, lock: int, host: str) -> Outcome:
    from monai_fp4.atomic import open_private

    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    before = _read(folder)
    record = before | {
        "status": "running",
        "attempts": before.get("attempts", 0) + 1,
        "error": "",
        "host": host,
        "device": f"cuda:{gpus}" if gpus else "cpu",
        "started": _now(),
        "finished": "",
        "version": task["version"],
    }
    started = time.perf_counter()
    command = [sys.executable, *task["arguments"]]
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _TIED_TO_PARENT, str(os.getpid()), *command]
    with open(folder / "run.log", "ab", opener=open_private) as log:
        begin = log.tell()
        process = subprocess.Popen(
            command,
            cwd=task["study"],
            env=_environment(task["threads"]) | {"MONAI_FP4_LOCK": str(lock)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C in the terminal is the sweep's to answer
        )
        outcome: Outcome = {"status": "waiting", "error": ""}
        try:
            _write(folder, {**record, "pid": process.pid})
            waiting = threading.Thread(target=process.wait, daemon=True)  # within the system, which costs nothing
            waiting.start()
            while waiting.is_alive():
                waiting.join(POLL_SECONDS)  # Ray interrupts between two instructions of Python, not within such a call
            outcome = _outcome_of(process.returncode, folder, begin)
        except (KeyboardInterrupt, SystemExit):
            pass  # the sweep stops: the cell is cut off, and waits for the next one
        finally:
            _terminate(process)
            seconds = time.perf_counter() - started
            outcome["seconds"] = round(seconds, 3)
            status = "failed" if outcome["status"] == "lost" else outcome["status"]
            record |= {"status": status, "error": outcome["error"], "finished": _now(), "pid": process.pid}
            _write(folder, {**record, "seconds": round(before.get("seconds", 0.0) + seconds, 3)})
    return outcome


def _outcome_of(code: int, folder: Path, begin: int) -> Outcome:
    """Judge an attempt by its exit status and its log."""
    if code == 0:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if json.loads((folder / "metrics.json").read_text(encoding="utf-8")).get("finished") is True:
                return {"status": "done", "error": ""}
        return _failed("the run must write a finished metrics.json, but ended without one; see run.log")
    if code - 128 in (signal.SIGINT, signal.SIGTERM):  # a training ends by them after its step, and says so
        code = 128 - code
    if code < 0:
        known = {each.value: each.name for each in signal.Signals}
        name = known.get(-code, f"signal {-code}")  # real-time signals have no names
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return {"status": "lost", "error": f"the process was ended by {name}{hint}"}
    with (folder / "run.log").open("rb") as log:
        log.seek(begin)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    sentence = (own or lines or [f"the process ended with status {code} and said nothing"])[-1]
    full = any(words in line for words in _DISK_FULL for line in lines[-40:])
    return {**_failed(sentence), "disk_full": full}


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    changed = {**os.environ, **dict.fromkeys(names, str(threads)), "PYTHONUNBUFFERED": "1"}
    # An own torchrun or cluster job around the sweep is none of the cell's.
    return {name: value for name, value in changed.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def _terminate(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lock_cell(descriptor: int) -> bool:
    until = time.monotonic() + ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.2)


def _failed(error: str) -> Outcome:
    return {"status": "failed", "error": error, "seconds": 0.0, "disk_full": False}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        content = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        counts = {"attempts": int(content.get("attempts", 0)), "seconds": float(content.get("seconds", 0.0))}
        return dict(content) | counts
    return {}


def _write(folder: Path, record: dict[str, Any]) -> None:
    from monai_fp4.atomic import replacing

    with replacing(folder / "cell.json") as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
