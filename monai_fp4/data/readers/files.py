"""Bytes and their hashes: a file is read once, decoded, and compared with the manifest's SHA-256.

What a decoder raises on a damaged file becomes one sentence here, so that no reader needs to know the others' errors.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nibabel.filebasedimages import ImageFileError

from monai_fp4.errors import DataError

__all__ = ["load", "sha256_of"]

T = TypeVar("T")

# Everything that Pillow, nibabel and the decompressors raise on damaged files.
_DECODE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    struct.error,
    zlib.error,
    ImageFileError,
)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: Path, digest: str | None, decode: Callable[[Path, bytes], T]) -> T:
    """Read a file once, decode it, and check that it is the one that the manifest names.

    Args:
        path: the file.
        digest: its SHA-256; ``None`` or empty: not checked.
        decode: from path and bytes to what is wanted.

    Raises:
        DataError: no such file, one that cannot be decoded, or another one than the manifest names.
    """
    if not path.is_file():
        raise DataError(f"expected a file at {path}, found none; complete the data folder or build the manifest again")
    data = path.read_bytes()
    try:
        decoded = decode(path, data)
    except DataError:
        raise
    except _DECODE_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"expected a whole image in {path}, found one that is truncated or damaged ({reason}); fetch it again"
        ) from error
    # Only now: that a file is cut short says more than that its hash differs.
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise DataError(
            f"expected the file that the manifest names at {path}, found that its SHA-256 differs; "
            "fetch it again, or build the manifest again if the change is meant"
        )
    return decoded
