"""Write the plainest NIfTI there is: uncompressed, one header, the same bytes from every version of every library.

As with :mod:`monai_fp4.data.phantoms.tiff`, a manifest holds the SHA-256 of these files. Layout: the header of 348
bytes, four bytes that say "no extensions", the voxels, first axis fastest (NIfTI-1.1, Cox et al. 2004).
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

__all__ = ["encode_nifti"]

# Type and bits a voxel, by NumPy's name.
_TYPES = {"uint8": (2, 8), "int16": (4, 16)}
_HEADER, _MILLIMETRES, _SCANNER = 348, 2, 1


def encode_nifti(volume: NDArray[np.int16] | NDArray[np.uint8], spacing: tuple[float, float, float]) -> bytes:
    """Encode a volume of int16 or uint8, ``[rows, columns, slices]`` as it is looked at.

    Rows run from front to back, columns from the patient's right to the left, slices from feet to head.

    Args:
        volume: the voxels.
        spacing: millimetres from row to row, column to column and slice to slice.

    Raises:
        ValueError: another shape or type; only our own code calls this.

    >>> len(encode_nifti(np.zeros((4, 5, 2), np.int16), (1.0, 1.0, 5.0)))
    432
    """
    if str(volume.dtype) not in _TYPES or volume.ndim != 3:
        raise ValueError(f"expected int16 or uint8 [H, W, D], found {volume.dtype} {list(volume.shape)}")
    code, bits = _TYPES[str(volume.dtype)]
    rows, columns, slices = volume.shape
    row, column, slice_ = spacing
    # The file's axes run left, back and up; NIfTI's coordinates run right, forward and up, from the middle of the scan.
    corner = (column * (columns - 1) / 2, row * (rows - 1) / 2, -slice_ * (slices - 1) / 2)
    header = struct.pack(
        "<i36x8h14xhhh8f",
        *(_HEADER, 3, columns, rows, slices, 1, 1, 1, 1),
        *(code, bits, 0),
        *(1.0, column, row, slice_, 0.0, 0.0, 0.0, 0.0),
    )
    # The voxels' offset, slope and intercept of the values, the unit, then two texts and other fields that stay empty.
    header += struct.pack("<fffhBB16x8x80x24x", _HEADER + 4.0, 1.0, 0.0, 0, 0, _MILLIMETRES)
    # Where the scan is, twice: as half a turn about the long axis, and as a matrix.
    header += struct.pack("<hh6f", _SCANNER, _SCANNER, 0.0, 0.0, 1.0, *corner)
    header += struct.pack("<12f", -column, 0, 0, corner[0], 0, -row, 0, corner[1], 0, 0, slice_, corner[2])
    header += struct.pack("<16x4s4x", b"n+1\0")
    little = volume.transpose(1, 0, 2).astype(volume.dtype.newbyteorder("<"), copy=False)
    return header + little.tobytes(order="F")
