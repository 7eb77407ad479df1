"""Lock a folder for the one process that writes it: a run for its training, a study for its sweep.

The lock is the operating system's (``flock`` on a file named ``.lock``) and goes with the process that holds it,
whatever ends that one; no stale lock is left to be removed by hand. On Linux it reaches over NFS from version 4 on. A
file system that knows no locks is said on standard error, and the work goes on without one.

A process may be handed a lock by the one that started it, as a cell of a sweep is by its worker: the number of the open
file stands in the environment variable ``MONAI_FP4_LOCK``. Processes that are forked later, such as those that load
data, let go of their copy at once, so that none of them outlives the training with the folder still locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from monai_fp4.atomic import make_folder, not_writable, open_private, ours_alone
from monai_fp4.errors import ConfigError

__all__ = ["FolderLock"]

INHERITED = "MONAI_FP4_LOCK"
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class FolderLock:
    """Held while somebody works in a folder; a context manager.

    A process that is refused, or that fails before it has written anything, leaves nothing behind: neither the lock
    file nor the folder that it made.

    Args:
        path: the lock file. Who holds it stands in it.
        worker: what works there, for the message: ``"sweep"`` or ``"run"``.

    Raises:
        ConfigError: on entering, when another process holds it, or the folder cannot be written to.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / ".lock"
    >>> with FolderLock(path, "run"), FolderLock(path, "run"):  # doctest: +ELLIPSIS
    ...     pass
    Traceback (most recent call last):
    monai_fp4.errors.ConfigError: one run at a time may work in /..., but process ... does; let it end, or end it
    """

    def __init__(self, path: Path, worker: str) -> None:
        self.path = path
        self.worker = worker
        self._file: IO[str] | None = None
        self._made_folder = False
        self._inherited = False

    @property
    def is_held(self) -> bool:
        """Whether this process has taken the lock and not let go of it."""
        return self._file is not None

    def check(self) -> None:
        """See that a folder which this process holds is still in its place.

        Raises:
            ConfigError: when it was moved, and somebody may have begun another in its place, or its lock was removed.
        """
        if self.is_held and self.path.parent.is_dir() and not self._is_ours():
            raise ConfigError(
                f"{self.path.parent} must stay in its place while a {self.worker} works in it, but it was exchanged, or"
                f" its {self.path.name} removed; start again where it lies now, or choose another output_dir"
            )

    def _is_ours(self) -> bool:
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def __enter__(self) -> FolderLock:
        """Take the lock."""
        while self._file is None:
            self._file = self._take()
        ours_alone.add(self._file)
        try:
            os.ftruncate(self._file.fileno(), 0)
            os.pwrite(self._file.fileno(), f"process {os.getpid()} on host {socket.gethostname()}".encode(), 0)
        except OSError as error:  # a full disk
            self.__exit__(type(error), error, None)
            raise not_writable(self.path.parent, error) from error
        return self

    def _take(self) -> IO[str] | None:
        """The locked file, or None when it was removed between its opening and its locking."""
        self._made_folder = not self.path.parent.exists()
        make_folder(self.path.parent)
        try:
            file = self._open()
        except OSError as error:
            raise ConfigError(
                f"{self.path.parent} must be writable, but the system says '{error.strerror or error}'; choose another"
                " output_dir"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "an unknown process"
            file.close()
            raise ConfigError(
                f"one {self.worker} at a time may work in {self.path.parent}, but {owner} does; let it end, or end it"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                file.close()
                raise not_writable(self.path, error) from error
            print(
                f"warning: the file system of {self.path.parent} keeps no locks ({error.strerror}), so nothing stops a"
                f" second {self.worker} from writing there; start one at a time",
                file=sys.stderr,
            )
            return file
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()
        return None

    def _open(self) -> IO[str]:
        """The lock file; that of the process which started this one, if it is the same."""
        number = os.environ.get(INHERITED, "")
        with contextlib.suppress(OSError, ValueError):
            if number and os.path.samestat(os.fstat(int(number)), self.path.stat()):
                self._inherited = True
                os.set_inheritable(int(number), False)
                return os.fdopen(int(number), "r+")
        return open(self.path, "a+", opener=open_private)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""
        self.release()
        if error is not None and self._made_folder:
            with contextlib.suppress(OSError):  # such as that something was written there
                self.path.parent.rmdir()

    def release(self) -> None:
        """Let go of the lock, if this process still holds it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                if not self._inherited and self._is_ours():
                    self.path.unlink()  # whoever has just opened it finds it gone, and begins anew
            ours_alone.discard(self._file)
            self._file.close()
            self._file = None
