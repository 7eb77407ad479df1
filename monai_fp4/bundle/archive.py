"""Tell a whole file of tensors from a cut, damaged or exchanged one.

What ``torch.save`` writes is a zip archive, whose table of contents holds a CRC-32 of every tensor. torch does not look
at them when it loads: a flipped bit becomes a weight. :func:`check_archive` reads all bytes against them;
:func:`checksum` is a checksum of the table, so it stands for the whole file and costs a read of its last kilobytes.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "model.pt"
>>> with zipfile.ZipFile(path, "w") as archive:
...     archive.writestr("weight", bytes(1000))
>>> check_archive(path) == checksum(path)
True
>>> content = path.read_bytes()
>>> _ = path.write_bytes(content[:500] + b"1" + content[501:])
>>> check_archive(path)
Traceback (most recent call last):
ValueError: its part 'weight' is damaged
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from pathlib import Path

__all__ = ["check_archive", "checksum"]

_LONGEST_PICKLE = 2**22
"""Bytes; a run's have 20 000, and each byte of a hostile one makes torch keep an object."""


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the names, sizes and CRC-32s in the archive's table of contents.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is no whole archive.
    """
    with _opened(Path(path)) as archive:
        return _of_table(archive)


def check_archive(path: str | os.PathLike[str]) -> str:
    """Read the whole archive, and give its `checksum`.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is cut or damaged.
    """
    with _opened(Path(path)) as archive:
        parts, size = archive.infolist(), Path(path).stat().st_size
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
            raise ValueError("it would unpack to more than it holds, which nothing that torch writes does")
        if any(part.file_size > _LONGEST_PICKLE for part in parts if part.filename.endswith(".pkl")):
            raise ValueError(f"its list of tensors is longer than {_LONGEST_PICKLE} bytes")
        try:
            damaged = archive.testzip()
        except Exception as error:  # zipfile says what it finds with half a dozen classes
            raise ValueError(f"it is damaged: {error}") from error
        if damaged is not None:
            raise ValueError(f"its part '{damaged}' is damaged")
        return _of_table(archive)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is no regular file")
        return zipfile.ZipFile(path)
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"it is cut, or no file of tensors: {error}") from error


def _of_table(archive: zipfile.ZipFile) -> str:
    table = sorted((part.filename, part.file_size, part.CRC) for part in archive.infolist())
    return hashlib.sha256(repr(table).encode()).hexdigest()
