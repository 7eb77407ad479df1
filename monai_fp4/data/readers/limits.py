"""How much a file may ask for, known before anything is decoded: a small file can unpack to more than the machine has.

What a header promises is held against one limit, and no more is unpacked than was promised. The limit is the user's
and stands in the environment, not in a manifest, which somebody else may have written: ``MONAI_FP4_LARGEST_IMAGE`` in
GiB. ``MONAI_FP4_FOLLOW_LINKS=1`` says that links may lead out of the data folder.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from monai_fp4.errors import ConfigError, DataError

__all__ = ["check_file", "check_inside", "check_size", "gunzip", "largest_image"]

LARGEST_IMAGE, FOLLOW_LINKS = "MONAI_FP4_LARGEST_IMAGE", "MONAI_FP4_FOLLOW_LINKS"
_GIB = 4.0
_CHUNK = 1 << 16
_MEMBERS, _PER_MEMBER = 1024, 512


def largest_image() -> int:
    """Bytes that one file may take in memory, its numbers at no less than 32 bits.

    Raises:
        ConfigError: the environment holds another thing than a positive number.
    """
    text = os.environ.get(LARGEST_IMAGE, str(_GIB))
    try:
        size = float(text)
    except ValueError:
        size = -1
    if not 0 < size < 2**30:
        raise ConfigError(f"expected a number of GiB above 0 in {LARGEST_IMAGE}, found {text!r}; correct it")
    return int(size * 2**30)


def check_file(path: Path) -> None:
    """See that a path is a file and no larger than an image may be; pipes and devices never end.

    Raises:
        DataError: it is not.
    """
    if not path.is_file():
        found = "a folder, a pipe or a device" if path.exists() else "none"
        raise DataError(
            f"expected a file at {path}, found {found}; complete the data folder or build the manifest again"
        )
    _check_bytes(path.stat().st_size, path)


def check_size(shape: Sequence[int], bits: int, path: Path) -> int:
    """Bytes that numbers take as a header gives them.

    Args:
        shape: of the numbers, every axis and channel.
        bits: of each.
        path: the file, for the message of an error.

    Raises:
        DataError: an axis without a voxel, numbers of more than 64 bits, or more than :func:`largest_image`.
    """
    shape = [int(edge) for edge in shape]
    if not shape or min(shape) < 1:
        raise DataError(
            f"expected at least one voxel along each axis in {path}, found {' x '.join(map(str, shape)) or 'no axis'}; "
            "correct the file"
        )
    if bits > 64:
        raise DataError(f"expected numbers of up to 64 bits in {path}, found {bits}; save it as 32 bit floats")
    _check_bytes(math.prod(shape) * max(bits, 32) // 8, path)
    return math.prod(shape) * bits // 8


def _check_bytes(size: int, path: Path) -> None:
    if size > largest_image():
        raise DataError(
            f"expected an image of up to {largest_image() / 2**30:.3g} GiB in {path}, found {size / 2**30:.3g} GiB; "
            f"crop it, or raise the limit with {LARGEST_IMAGE} if you trust the file"
        )


def check_inside(path: Path, root: Path) -> None:
    """See that a path stays below a folder, its links followed.

    Raises:
        DataError: it leads elsewhere, or a link is lost or leads to itself.
    """
    if os.environ.get(FOLLOW_LINKS) == "1":
        return
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        inside = False
    if not inside:
        raise DataError(
            f"expected files inside of {root}, found that {path} leads out of it; move the data there, or set "
            f"{FOLLOW_LINKS}=1 if the links are yours"
        )


def gunzip(data: bytes, most: int, path: Path) -> bytes:
    """The first ``most`` bytes of a gzip stream, or all of it where that is less, as ``gunzip`` unpacks it.

    What follows the last member is passed over, as some archives append to it.

    Raises:
        DataError: so many members for so little that they are there to keep a reader busy.
        EOFError: it is cut short.
        zlib.error: it is damaged.
    """
    unpacked, at, members = io.BytesIO(), 0, 0
    while unpacked.tell() < most and data[at : at + 2] == b"\x1f\x8b":
        members += 1
        if members > _MEMBERS + unpacked.tell() // _PER_MEMBER:
            raise DataError(
                f"expected one compressed stream in {path}, found more than {members - 1} for {unpacked.tell()} bytes; "
                "compress it again"
            )
        member, waiting = zlib.decompressobj(wbits=31), b""
        while not member.eof and unpacked.tell() < most:
            if not waiting:
                waiting = data[at : at + _CHUNK]
                at += len(waiting)
            piece = member.decompress(waiting, min(16 * _CHUNK, most - unpacked.tell()))
            if not (waiting or piece or member.eof):
                raise EOFError("the compressed stream is cut short")
            unpacked.write(piece)
            waiting = member.unconsumed_tail
        at -= len(member.unused_data)
    return unpacked.getvalue()
