"""Write the plainest TIFF there is: uncompressed, one strip, the same bytes from every version of every library.

The phantom's manifest holds the SHA-256 of its files, so an image library, whose tags and strips may change with its
next release, cannot write them. Layout: 8 bytes of header, the samples, then one directory (TIFF 6.0, Adobe 1992).
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

__all__ = ["encode_tiff"]

_SHORT, _LONG = 3, 4


def encode_tiff(picture: NDArray[np.uint8]) -> bytes:
    """Encode a greyscale ``[H, W]`` or RGB ``[H, W, 3]`` picture of uint8.

    Raises:
        ValueError: another shape or type; only our own code calls this.

    >>> len(encode_tiff(np.zeros((4, 5), np.uint8)))
    142
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise ValueError(f"expected uint8 [H, W] or [H, W, 3], found {picture.dtype} {list(picture.shape)}")
    height, width = picture.shape[:2]
    samples = 1 if picture.ndim == 2 else 3
    pixels = np.ascontiguousarray(picture).tobytes()
    pixels += b"\0" * (len(pixels) % 2)  # the directory begins on an even byte
    directory = 8 + len(pixels)
    entries = [
        (256, _LONG, 1, width),
        (257, _LONG, 1, height),
        (258, _SHORT, samples, 8),  # bits a sample; three of them do not fit into the entry and follow the directory
        (259, _SHORT, 1, 1),  # no compression
        (262, _SHORT, 1, 1 if samples == 1 else 2),  # black is zero, or RGB
        (273, _LONG, 1, 8),  # the strip begins after the header
        (277, _SHORT, 1, samples),
        (278, _LONG, 1, height),  # one strip holds all rows
        (279, _LONG, 1, height * width * samples),
    ]
    after = directory + 2 + 12 * len(entries) + 4
    if samples == 3:
        entries[2] = (258, _SHORT, 3, after)
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    tail = struct.pack("<HHH", 8, 8, 8) if samples == 3 else b""
    return (
        struct.pack("<2sHI", b"II", 42, directory)
        + pixels
        + struct.pack("<H", len(entries))
        + body
        + struct.pack("<I", 0)
        + tail
    )
