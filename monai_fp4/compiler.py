"""Build a C++ source of this package with the system's compiler, once per machine, and load it.

The kernels are plain C functions: no header of torch, no binding generator, and a short build. The
shared object is kept in ``$MONAI_FP4_CACHE`` (by default the user's cache folder) under a name that follows from the
source and what it includes, the compiler, its flags and the processor, so a short run pays for it once, and a home
folder that is shared by different machines holds one for each. Where anything fails, the caller gets ``None`` and
computes in plain torch, the user is told once, and :func:`status` keeps the reason for ``monai-fp4 doctor``.

* ``CXX`` names the compiler; without it ``c++``, ``g++`` and ``clang++`` are tried.
* ``MONAI_FP4_NATIVE=0`` turns the kernels off.

A library has to prove itself before it is used: the ``check`` of :func:`load` compares it with plain torch, since a
compiler may be faulty and a bit-equal result is what this package promises.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock

__all__ = ["KernelStatus", "load", "status"]

Check = Callable[[ctypes.CDLL], str | None]
"""Looks at a fresh library and says what is wrong with it, or nothing."""

# No contraction: a fused multiplication and addition rounds once where plain torch rounds twice.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
_EXTRAS = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
_INCLUDE = re.compile(rb'^#include "([^"]+)"', re.MULTILINE)
_TIMEOUT = 600  # seconds; the longest build takes three to nine, but on a machine whose cores all train it took 120
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """Whether one fast path can be used here.

    Attributes:
        name: what it is.
        available: whether it is used.
        reason: where it was built, or why it cannot be used.
    """

    name: str
    available: bool
    reason: str


class _UnavailableError(Exception):
    """Why there is no library; the text is a clause that fits behind a colon."""


_lock = RLock()
_libraries: dict[Path, tuple[ctypes.CDLL | None, str]] = {}
"""What each source became, and where it was built, or why it was not."""
_warned: set[str] = set()


def load(source: Path, check: Check | None = None) -> ctypes.CDLL | None:
    """The library built from a source of this package, or ``None`` where it cannot be had.

    The first call of a process builds it or finds it in the cache; every later one is a dictionary look-up. A failure
    is remembered too, and warned about once.

    Args:
        source: the ``.cpp`` file; its name without the suffix names the library in :func:`status`.
        check: refuses a library that does not compute what it should.

    Returns:
        The loaded library.
    """
    try:
        return _libraries[source][0]
    except KeyError:
        pass
    with _lock:
        if source not in _libraries:
            try:
                if os.environ.get("MONAI_FP4_NATIVE", "1") == "0":
                    raise _UnavailableError("turned off by MONAI_FP4_NATIVE=0")
                library, path = _build(source)
                if check is not None and (fault := check(library)):
                    raise _UnavailableError(f"the library built from {source.name} is refused, {fault}")
                _libraries[source] = library, f"compiled, {path}"
            except _UnavailableError as reason:
                _libraries[source] = None, str(reason)
                _warn(source.stem, str(reason))
        return _libraries[source][0]


def status() -> tuple[KernelStatus, ...]:
    """Report which of the libraries that this process asked for were built, and why the others were not."""
    return tuple(
        KernelStatus(source.stem, library is not None, reason) for source, (library, reason) in _libraries.items()
    )


def _warn(name: str, reason: str) -> None:
    # One bad compiler is one warning, however many libraries would have needed it; who turned them off knows.
    cause = reason.replace(f"{name}.cpp", "")
    if cause in _warned or reason.startswith("turned off"):
        return
    _warned.add(cause)
    warnings.warn(
        f"the compiled CPU kernels cannot be used, plain torch computes the same numbers more slowly: {reason}",
        RuntimeWarning,
        stacklevel=4,
    )


def _build(source: Path) -> tuple[ctypes.CDLL, Path]:
    """Load the library from the cache, or compile it into the cache."""
    text = b"\0".join(_texts(source))
    compiler, version = _compiler()
    key = hashlib.sha256("\0".join([*compiler, version, *_FLAGS, _processor()]).encode() + text).hexdigest()[:32]
    target = _cache_folder() / f"{source.stem}-{key}.so"
    if (library := _open(target)) is None:
        _compile(compiler, source, target)
        if (library := _open(target)) is None:
            raise _UnavailableError(f"what {compiler[0]} makes of {source.name} cannot be loaded ({target.parent})")
    return library, target


def _texts(source: Path) -> list[bytes]:
    """Texts that a library is made of: the source and every file of ours that it includes, each once."""
    texts: dict[Path, bytes] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path not in texts:
            try:
                texts[path] = path.read_bytes()
            except OSError as error:
                raise _UnavailableError(f"{path} cannot be read ({error.strerror})") from None
            waiting += [path.with_name(name.decode()) for name in _INCLUDE.findall(texts[path])]
    return list(texts.values())


def _open(path: Path) -> ctypes.CDLL | None:
    """Load a library whose last bytes are the digest of all others; ``None`` if it is absent, damaged or foreign."""
    try:
        content = path.read_bytes()
        # A truncated library may kill the process while it is being mapped, so look before loading.
        if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _compile(compiler: tuple[str, ...], source: Path, target: Path) -> None:
    """Compile into a file beside the target and rename it, so that another process sees all of it or nothing."""
    built: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=".so", dir=target.parent)
        os.close(handle)
        built = Path(name)
        message = ""
        for extras in _EXTRAS:
            result = _run(*compiler, *_FLAGS, *extras, str(source), "-o", name)
            if result.returncode == 0:
                break
            message = message or (result.stderr.strip().splitlines() or ["no message"])[0]
        else:
            raise _UnavailableError(f"{shlex.join(compiler)} cannot compile {source.name} ({message})")
        content = built.read_bytes()
        built.write_bytes(content + hashlib.sha256(content).digest())
        built.replace(target)
    except OSError as error:
        raise _UnavailableError(f"{target} cannot be written ({error})") from None
    finally:
        if built is not None:
            built.unlink(missing_ok=True)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        # A compiler may speak another language, in another encoding.
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnavailableError(f"{command[0]} did not run ({error})") from None


@cache
def _compiler() -> tuple[tuple[str, ...], str]:
    """The command that compiles C++, and what it says of its version."""
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["c++", "g++", "clang++"]:
        try:
            words = tuple(shlex.split(candidate))
        except ValueError as error:
            raise _UnavailableError(f"CXX is no command, {candidate!r} ({error})") from None
        if words and shutil.which(words[0]):
            break
    else:
        raise _UnavailableError(
            f"the compiler that CXX names, {named!r}, is not found"
            if named
            else "no C++ compiler is installed (c++, g++ or clang++); install one or set CXX"
        )
    return words, _run(*words, "--version").stdout


def _processor() -> str:
    """Identify what ``-march=native`` depends on: the model and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    wanted = ("vendor_id", "model name", "flags", "Features", "CPU part")
    return platform.machine() + "\n".join(line for line in lines if line.startswith(wanted))


def _cache_folder() -> Path:
    """A folder of the user's own to keep libraries in; a temporary one where the cache cannot be written."""
    folders = [Path(tempfile.gettempdir()) / f"monai-fp4-{_user()}"]
    with suppress(RuntimeError):  # of a user without a home
        if named := os.environ.get("MONAI_FP4_CACHE"):
            wanted = Path(named).expanduser()
        else:
            wanted = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "monai-fp4"
        folders.insert(0, wanted / "kernels")
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Code is loaded from here: nobody else may own the folder.
            if os.access(folder, os.W_OK | os.X_OK) and folder.stat().st_uid == _user():
                return folder
    try:
        return Path(tempfile.mkdtemp(prefix="monai-fp4-"))
    except OSError as error:
        raise _UnavailableError(f"no folder can be written to keep the library in ({error.strerror})") from None


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
