"""Write files whole or not at all, for their owner alone, as all of a run, a study and a report are; read bounded JSON.

A file is written beside its place, flushed to the disk, and then renamed into it; POSIX makes the rename atomic. So a
reader sees the old file or the new one, a process that is killed leaves whole files, and so does a machine that loses
its power: the content reaches the disk before the name does, and the folder's entry is flushed after it.

Results of patients are nobody else's business, so a new file has the mode 0600 and a new folder 0700.
``MONAI_FP4_SHARED_FILES=1`` leaves both to the umask, as do files that are made to be passed on. What is there already
keeps its mode: a folder is left as it is found, and a file that takes another's place has the mode of that one.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> write_atomically(folder / "deep" / "note.txt", "text")
>>> with replacing(folder / "numbers.bin") as file:
...     _ = file.write(b"123")
>>> sorted(path.name for path in folder.rglob("*") if path.is_file())
['note.txt', 'numbers.bin']
>>> [oct(path.stat().st_mode)[-3:] for path in (folder / "deep", folder / "deep" / "note.txt")]
['700', '600']
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from stat import S_IMODE, S_ISREG
from typing import IO, Any, BinaryIO

from monai_fp4.errors import ConfigError

__all__ = [
    "Replacements",
    "make_folder",
    "make_private",
    "make_private_folder",
    "not_writable",
    "open_private",
    "parse_json",
    "read_json",
    "read_json_file",
    "name_beside",
    "ours_alone",
    "remove_leftovers",
    "replacing",
    "write_atomically",
]

SHARED_FILES = "MONAI_FP4_SHARED_FILES"
"""An environment variable: ``"1"`` leaves the mode of files and folders to the umask."""
ours_alone: set[IO[Any]] = set()
"""Open files whose locks end with this process: those that it forks close their copies at once."""
_BESIDE = ".monai_fp4.tmp"
LARGEST_JSON = 2**28
"""Bytes: far above what a run or a study writes, far below what fills a machine's memory."""
_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that cannot flush, or cannot flush folders; any other error may be that of the disk."""
_DEEPEST = 64
_DIGITS = 20
"""A 64-bit integer has no more, with its sign."""


def _let_go() -> None:
    for file in ours_alone:
        with suppress(OSError):
            os.close(file.fileno())  # the parent's goes on, and closing is no unlocking
    ours_alone.clear()


os.register_at_fork(after_in_child=_let_go)


def open_private(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file that nobody else may read if it is new: an ``opener`` for Python's ``open``."""
    return os.open(path, flags, 0o666 if _is_shared() else 0o600)


def make_private(path: Path) -> None:
    """Let nobody else read a new file that a library has opened, unless files are shared."""
    if not _is_shared():
        with suppress(OSError):  # a file system without modes
            path.chmod(0o600)


def _is_shared() -> bool:
    return os.environ.get(SHARED_FILES) == "1"


class Replacements:
    """Files that are written beside their places, and take them one after the other once all are written.

    The two halves are apart since the second one waits for the disk: a training goes on while a thread does it. Whoever
    is killed in between leaves each file old or new, and none new whose predecessors are old.

    >>> import tempfile
    >>> folder, files = Path(tempfile.mkdtemp()), Replacements()
    >>> for name in ("weights", "description"):
    ...     with files.open(folder / name) as file:
    ...         _ = file.write(name.encode())
    >>> files.take_places()
    >>> sorted(path.name for path in folder.iterdir())
    ['description', 'weights']
    """

    def __init__(self) -> None:
        self._files: list[tuple[Path, BinaryIO, Path | None]] = []

    @contextmanager
    def open(self, path: Path, *, shared: bool = False, kept_at: Path | None = None) -> Iterator[BinaryIO]:
        """Open the file that is to take the place of ``path``; if the block fails, no file of these leaves a trace.

        Args:
            path: the file's place; its folder must exist.
            shared: whether the file is made to be passed on, so that the umask alone says who may read it.
            kept_at: where what stands at ``path`` by then is kept; None keeps nothing.

        Yields:
            The file beside it, open for writing bytes.

        Raises:
            ConfigError: when the system does not let it be written (no space, no permission), be it
                behind a RuntimeError of the block. Other errors of the block pass through.
        """
        _tidy(path.parent)
        with self._discarded_on_failure(path):
            file = _opened(name_beside(path), shared)
            self._files.append((path, file, kept_at))
            with suppress(OSError):  # no such file yet, or a file system without modes
                name_beside(path).chmod(S_IMODE(path.stat().st_mode) & 0o777)
            yield file
            file.flush()

    def take_places(self) -> None:
        """Flush each file to the disk and rename it, in the order in which they were opened; then flush the folder.

        Raises:
            ConfigError: when the system does not let it; files that have their place by then keep it.
        """
        folders = {path.parent for path, _, _ in self._files}
        while self._files:
            path, file, kept_at = self._files[0]
            with self._discarded_on_failure(path):
                _flush(file.fileno())
                if kept_at is not None and path.exists():
                    _keep(path, kept_at)
                name_beside(path).replace(path)
            self._files.pop(0)
            _close(file)
        for folder in folders:
            _flush_folder(folder)

    def discard(self) -> None:
        """Remove what has not taken its place."""
        while self._files:
            path, file, _ = self._files.pop()
            with suppress(OSError):  # such as that its folder is gone
                name_beside(path).unlink()
            with suppress(OSError):  # what it still holds does not fit onto a full disk
                _close(file)

    @contextmanager
    def _discarded_on_failure(self, path: Path) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.discard()
            if isinstance(error, (OSError, RuntimeError)) and (reason := _system_error(error)) is not None:
                raise not_writable(path, reason) from error
            raise


@contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` once the block has ended: `Replacements` of one, with its arguments.

    Raises:
        ConfigError: when the system does not let it be written.
    """
    files = Replacements()
    with files.open(path, shared=shared) as file:
        yield file
    files.take_places()


def _opened(beside: Path, shared: bool) -> BinaryIO:
    """Open the file to write, and hold its lock: see `remove_leftovers`."""
    while True:
        file = open(beside, "wb", opener=None if shared else open_private)  # noqa: SIM115
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            ours_alone.add(file)
            return file
        file.close()  # removed between its opening and its locking


def _keep(path: Path, place: Path) -> None:
    """Let a file stand at another place as well, in which one may stand already."""
    try:
        name_beside(place).hardlink_to(path)
        name_beside(place).replace(place)
        name_beside(place).unlink(missing_ok=True)  # a name of the file that stands there already is not renamed
    except OSError:  # a file system without links
        path.replace(place)


def _close(file: BinaryIO) -> None:
    ours_alone.discard(file)
    file.close()


def read_json(path: Path) -> Any:
    """Read a JSON file that may be anybody's, within bounds.

    Raises:
        ConfigError: when it is missing, no regular file, too large, not JSON, nested too deep, or has a key twice.
    """
    try:
        return read_json_file(path)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise ConfigError(
            f"{path} must hold JSON, but reading it failed ({reason:.300}); restore or remove it"
        ) from error


def read_json_file(path: str | os.PathLike[str], *, finite: bool = False) -> Any:
    """Parse a file as :func:`parse_json` does; pipes, devices and files beyond 256 MiB are not opened.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, not UTF-8, or as :func:`parse_json`.
    """
    status = Path(path).stat()
    if not S_ISREG(status.st_mode) or status.st_size > LARGEST_JSON:
        raise ValueError(f"it is no regular file of at most {LARGEST_JSON} bytes")
    return parse_json(Path(path).read_text(encoding="utf-8"), finite=finite)


def parse_json(text: str, *, finite: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: the JSON.
        finite: whether NaN and infinity, which Python writes and reads though JSON has none, are refused as well.

    Raises:
        ValueError: not JSON; a key twice; an integer of more than 64 bits; more than 64 levels; half a character (a
            surrogate without the other one).

    >>> parse_json('{"seed": 1, "seed": 2}')
    Traceback (most recent call last):
        ...
    ValueError: the key 'seed' stands twice
    """
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels") from None
    waiting = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError(f"{value[:40]!a} holds half a character")
        elif isinstance(value, dict):
            waiting += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list):
            waiting += [(each, depth + 1) for each in value]
        elif finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is no number")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:40]!a} stands twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"the integer {digits[:_DIGITS]}... has {len(digits)} digits, and the most are {_DIGITS}")
    value = int(digits)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"the integer {digits} has more than 64 bits")
    return value


def write_atomically(path: Path, content: str | bytes, *, shared: bool = False) -> None:
    """Write ``content`` to ``path``, whose folder is made if there is none; ``shared`` as in :func:`replacing`.

    Raises:
        ConfigError: when the system does not let it be written (no space, no permission).
    """
    make_folder(path.parent)
    with replacing(path, shared=shared) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def name_beside(path: Path) -> Path:
    """Where a file is written before it takes its place; no other process uses the same name."""
    return path.with_name(f".{path.name}.{os.getpid()}{_BESIDE}")


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left beside the files of ``folder``.

    A writer holds a lock on its file, which ends with it; what is being written is left alone. Each process does so
    when it first writes into a folder.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> name_beside(folder / "checkpoint.pt").touch(), (folder / ".mine.123.tmp").touch()
    (None, None)
    >>> with replacing(folder / "model.pt") as file:
    ...     remove_leftovers(folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['.mine.123.tmp', 'model.pt']
    """
    for path in folder.glob(f".*{_BESIDE}"):
        with suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


_tidy = lru_cache(maxsize=1024)(remove_leftovers)  # once a process and folder


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, unless it is there.

    Raises:
        ConfigError: when the system does not let it.
    """
    try:
        make_private_folder(path)
    except OSError as error:
        raise not_writable(path, error) from error


def make_private_folder(path: Path) -> None:
    """As :func:`make_folder`, with the system's own error; ``Path.mkdir`` makes those above open to all.

    Raises:
        OSError: when the system does not let it.
    """
    mode = 0o777 if _is_shared() else 0o700
    try:
        path.mkdir(mode, exist_ok=True)
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_private_folder(path.parent)
        path.mkdir(mode, exist_ok=True)


def _flush(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _flush_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not be read
        return
    except OSError as error:
        raise not_writable(folder, error) from error
    try:
        _flush(handle)
    except OSError as error:
        raise not_writable(folder, error) from error
    finally:
        os.close(handle)


def not_writable(path: Path, error: OSError) -> ConfigError:
    """Word the error of a place that the system does not let be written, and what to do."""
    reason = error.strerror or str(error)
    remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "make it writable"
    return ConfigError(
        f"{path} must be writable, but the system says '{reason}'; {remedy} and start again, or choose another"
        " output_dir"
    )


def _system_error(error: BaseException) -> OSError | None:
    """Find the system's error behind that of a library: torch reports a full disk as a RuntimeError."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, OSError):
        seen = seen.__cause__ or seen.__context__
    return seen
