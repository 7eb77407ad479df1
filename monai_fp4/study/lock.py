"""Lock a study folder for one sweep: two would start the same cells.

The lock is the operating system's and goes with the process that holds it, whatever ends that one. A sweep that is
refused before it has written anything leaves nothing behind, neither the lock file nor the folder that it made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO

from monai_fp4.errors import ConfigError

__all__ = ["StudyLock"]


class StudyLock:
    """Held while a sweep works; a context manager.

    Args:
        path: the lock file. Who holds it stands in it.

    Raises:
        ConfigError: on entering, when another sweep holds it, or the folder cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        self._made_folder = False

    def __enter__(self) -> StudyLock:
        """Take the lock."""
        try:
            self._made_folder = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+")
        except OSError as error:
            raise ConfigError(
                f"{self.path.parent} must be writable, but the system says '{error.strerror or error}'; choose another"
                " output_dir"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "an unknown process"
            self._file.close()
            raise ConfigError(
                f"one sweep at a time may work in {self.path.parent}, but {owner} does; let it end, or end it"
            ) from None
        if os.fstat(self._file.fileno()).st_nlink == 0:  # a refused sweep removed it just after it was opened here
            self._file.close()
            return self.__enter__()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on host {socket.gethostname()}")
        self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""
        if self._file is None:
            return
        if error is not None and self._made_folder and list(self.path.parent.iterdir()) == [self.path]:
            with contextlib.suppress(OSError):
                self.path.unlink()
                self.path.parent.rmdir()
        self._file.close()
