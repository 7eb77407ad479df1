"""Bytes and their hashes: a file is read once, compared with the manifest's SHA-256, and decoded.

What a decoder raises on a damaged file becomes one sentence here, so that no reader needs to know the others' errors.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from monai_fp4.data.readers.limits import check_file, check_size
from monai_fp4.data.readers.volume import Decoded, Reader, Source
from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError, MonaiFP4Error

__all__ = ["damaged", "digest_of", "load", "sha256_of"]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as lower-case hex.

    Raises:
        DataError: it is no file, or too large.
    """
    check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path, reader: Reader) -> str:
    """The SHA-256 of what a path stands for: of the file, or of the sorted hashes of several files."""
    if reader.files is None:
        return sha256_of(path)
    return hashlib.sha256("\n".join(sorted(map(sha256_of, reader.files(path)))).encode()).hexdigest()


def load(path: Path, digest: str | None, reader: Reader, *, is_mask: bool, reading: Reading) -> Decoded:
    """Read a file once, check that its SHA-256 is that of the manifest, if it names one, and decode it.

    Raises:
        DataError: no such file, one that cannot be decoded, or another one than the manifest names.
    """
    try:
        if reader.files is None:
            check_file(path)
        data = path.read_bytes() if reader.files is None else b""
        # Before anything is decoded: a decoder is a large surface, and the manifest names what it may see.
        if digest and (hashlib.sha256(data).hexdigest() if data else digest_of(path, reader)) != digest:
            raise DataError(
                f"expected the file that the manifest names at {path}, found that its SHA-256 differs; "
                "fetch it again, or build the manifest again if the change is meant"
            )
        decoded = reader.decode(Source(path, data, is_mask, reading))
    except MonaiFP4Error:
        raise
    except Exception as error:  # whatever a damaged file leads a library to
        raise damaged(path, error) from error
    if decoded.values.dtype.kind == "c":
        raise DataError(
            f"expected real numbers in {path}, found complex ones; save magnitude and phase as two channels"
        )
    check_size(decoded.values.shape, decoded.values.dtype.itemsize * 8, path)
    return decoded


def damaged(path: Path, error: BaseException) -> DataError:
    """Word what a decoder raised on a file."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return DataError(f"expected a file that can be opened at {path}, found {error.strerror}; correct that")
    if isinstance(error, MemoryError):
        return DataError(f"expected {path} to fit into memory, found no room for it; close other programs or crop it")
    reason = " ".join(re.sub(r"[^ -~]+", " ", str(error) or type(error).__name__).split())[-200:]
    return DataError(
        f"expected a whole image in {path}, found one that is truncated or damaged ({reason}); fetch it again"
    )
