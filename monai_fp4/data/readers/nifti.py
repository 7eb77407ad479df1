"""NIfTI-1 and NIfTI-2 volumes and slices, decoded by nibabel, in the order of the file's axes.

Header and voxels are in one file (``.nii``) or in two (``.hdr`` and ``.img``). The second pair of endings is also that
of Analyze 7.5, whose header does not say which side is left; such files are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.readers.limits import check_file, check_inside, check_size, gunzip, largest_image
from monai_fp4.data.readers.volume import Decoded, Reader, Source
from monai_fp4.data.records import Header
from monai_fp4.errors import DataError

__all__ = ["NIFTI", "NIFTI_PAIRS"]

_SIZE_OF_HEADER = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
_LONGEST_HEADER = 540
_SLACK = 1 << 20
"""Bytes that may follow the voxels."""
_MAGIC = {348: (344, b"ni1\0", b"n+1\0"), 540: (4, b"ni2\0\r\n\032\n", b"n+2\0\r\n\032\n")}
"""By the size of a header where its magic number is, that of a pair of files, and that of a single one."""
_TO_MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Codes of ``xyzt_units`` that are metres and micrometres; all others are taken for millimetres, as ITK does."""


def _decode(source: Source) -> Decoded:
    image = _open(source)
    kind = image.get_data_dtype()
    if kind.kind == "c":
        raise DataError(
            f"expected real numbers in {source.path}, found complex ones; save magnitude and phase as two channels"
        )
    if kind.names:  # colours, as of a photograph: three or four bytes a voxel
        raw = np.asanyarray(image.dataobj)
        values = np.stack([raw[name] for name in kind.names[:3]], axis=-1)
    elif source.is_mask:
        values = np.asanyarray(image.dataobj)
    else:
        values = image.get_fdata(dtype=np.float32, caching="unchanged")
    if values.ndim > 4 and all(edge == 1 for edge in values.shape[4:]):
        values = values.reshape(values.shape[:4])
    if values.ndim == 5 and values.shape[3] == 1:  # NIfTI's own place for several values a voxel
        values = values[..., 0, :]
    if values.ndim not in (2, 3, 4):
        raise DataError(
            f"expected 3 axes, or 4 with the channels last, in {source.path}, found {values.ndim}; correct the file"
        )
    if values.ndim == 2:
        values = values[..., None]
    channels = np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None]
    affine, placed = _place(image, source)
    affine = _three_axes(affine, image)
    affine[:3] *= _TO_MILLIMETRES.get(int(image.header["xyzt_units"]) & 7, 1.0)
    return Decoded(channels, affine, placed)


def _open(source: Source) -> Any:
    packed = source.data[:2] == b"\x1f\x8b"
    data = gunzip(source.data, _LONGEST_HEADER, source.path) if packed else source.data
    size = min(struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]), key=abs) if len(data) >= 4 else 0
    if size not in _SIZE_OF_HEADER:
        raise DataError(
            f"expected a NIfTI file at {source.path}, found one whose header is none ({len(source.data)} bytes); "
            "fetch it again, or give it the ending of its format"
        )
    end = _end_of_voxels(_SIZE_OF_HEADER[size].header_class(data[:size], check=False), source)
    if packed:
        data = gunzip(source.data, end + _SLACK + 1, source.path)
        if len(data) > end + _SLACK:
            raise DataError(
                f"expected {end} bytes in {source.path} as its header says, found that it unpacks to more; fetch it "
                "again, or correct its header"
            )
    if len(data) < end:
        raise EOFError(f"{len(data)} bytes, where the header says {end}")
    if data[344:347] == b"ni1" or data[4:8] == b"ni2\0":
        raise DataError(
            f"expected header and voxels in one file, found the header of a pair (.hdr and .img) in "
            f"{source.path}; rename it to .hdr"
        )
    image = _SIZE_OF_HEADER[size].from_bytes(data)
    order = image.header.endianness
    slope, intercept = struct.unpack_from(*((f"{order}2f", data, 112) if size == 348 else (f"{order}2d", data, 176)))
    if np.isinf(slope) or (np.isfinite(slope) and slope and not np.isfinite(intercept)):
        raise DataError(
            f"expected finite scl_slope and scl_inter in {source.path}, found {slope} and {intercept}; correct them"
        )
    return image


def _end_of_voxels(header: Any, source: Source) -> int:
    """Where the voxels end, by the header alone.

    Raises:
        DataError: there is an axis without a voxel, or more of them than a file may have.
    """
    axes, offset = int(header["dim"][0]), float(header["vox_offset"])
    if not 1 <= axes <= 7 or not 0 <= offset <= largest_image():
        raise DataError(
            f"expected 1 to 7 axes and voxels that begin inside the file in {source.path}, found {axes} axes and "
            f"vox_offset {offset:g}; correct the file"
        )
    kind = header.get_data_dtype()
    if kind.itemsize == 0:  # nibabel's word for 128 bits where the processor has none
        check_size([1], 128, source.path)
    parts = kind.itemsize if kind.kind in "cV" else 1  # of complex numbers and colours each byte counts
    return int(offset) + check_size([*header["dim"][1 : axes + 1], parts], kind.itemsize * 8 // parts, source.path)


def _place(image: Any, source: Source) -> tuple[NDArray[np.float64], bool]:
    """Where the volume is, by the part of its header that is to be believed, and whether anybody said so.

    Raises:
        DataError: sform and qform put the volume in different places, and it was not said whom to believe.
    """
    wanted = source.reading.header
    sform, qform = image.get_sform(coded=True)[0], _qform(image)
    if wanted is Header.AUTO and sform is not None and qform is not None:
        apart = _apart(sform, qform, image.shape)
        if apart > max(0.5, source.reading.tolerance):
            raise DataError(
                f"expected sform and qform to agree in {source.path}, found corners {apart:.3g} voxels apart; say "
                "which is right with --header sform or --header qform"
            )
    first, second = (qform, sform) if wanted is Header.QFORM else (sform, qform)
    found = first if first is not None else second
    return (image.affine, False) if found is None else (found, True)


def _qform(image: Any) -> NDArray[np.float64] | None:
    try:
        found: NDArray[np.float64] | None = image.get_qform(coded=True)[0]
    except Exception:  # nibabel: a quaternion that is none
        return None
    return found


def _three_axes(affine: NDArray[np.float64], image: Any) -> NDArray[np.float64]:
    """Slices of two axes may leave out where the third one points."""
    affine = affine.copy()
    if len(image.shape) > 2 or not np.isfinite(affine).all() or affine[:3, 2].any():
        return affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = np.linalg.norm(normal)
    affine[:3, 2] = normal / length if length else normal
    return affine


def _apart(first: NDArray[np.float64], second: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """How many voxels the farthest corner moves from one place to another."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return 0.0  # the caller says what is wrong with it
    edges = [*(np.array(shape[:3]) - 1), 0, 0][:3]
    corners = np.stack(np.meshgrid(*[[0, edge] for edge in edges], [1.0], indexing="ij"), -1).reshape(-1, 4)
    moved = np.linalg.pinv(first) @ second @ corners.T
    return float(np.abs(moved - corners.T).max())


def _pair(path: Path) -> Sequence[Path]:
    """A header and the file of its voxels.

    Raises:
        DataError: the second one is not there, or elsewhere.
    """
    check_file(path)
    voxels = next((path.with_suffix(end) for end in (".img", ".IMG") if path.with_suffix(end).exists()), None)
    if voxels is None:
        raise DataError(f"expected the voxels of {path} in an .img of that name, found none; complete the data folder")
    check_file(voxels)
    check_inside(voxels, path.parent)
    return [path, voxels]


def _decode_pair(source: Source) -> Decoded:
    """Put the two files of a pair together, as the one that they are short for."""
    header, voxels = (file.read_bytes() for file in _pair(source.path))
    size = min(struct.unpack("<i", header[:4]) + struct.unpack(">i", header[:4]), key=abs)
    at, pair, single = _MAGIC.get(size, _MAGIC[348])
    if header[at : at + len(pair)] != pair:
        raise DataError(
            f"expected a NIfTI header in {source.path}, found one of Analyze 7.5 or another format, which does not say "
            "which side is left; convert it to .nii.gz with the program that wrote it, as in SPM or FSL's fslchfiletype"
        )
    order = "<" if struct.unpack("<i", header[:4])[0] == size else ">"
    kind, where = ("f", 108) if size == 348 else ("q", 168)
    offset = struct.unpack_from(f"{order}{kind}", header, where)[0]
    if not 0 <= offset < len(voxels):
        raise DataError(
            f"expected voxels that begin inside the file {source.path.with_suffix('.img')}, found vox_offset "
            f"{offset:g} in {source.path}; correct the header"
        )
    start = -(-len(header) // 16) * 16
    whole = bytearray(header.ljust(start, b"\0"))
    whole[at : at + len(single)] = single
    struct.pack_into(f"{order}{kind}", whole, where, start)
    return _decode(replace(source, data=b"".join((whole, memoryview(voxels)[int(offset) :]))))


NIFTI = Reader(
    summary="NIfTI-1 and NIfTI-2, two or three axes, a channel a file or the channels along the fourth axis",
    suffixes=(".nii", ".nii.gz"),
    decode=_decode,
)
NIFTI_PAIRS = Reader(
    summary="NIfTI whose voxels are in an `.img` beside it; Analyze 7.5 is refused", suffixes=(".hdr",),
    decode=_decode_pair, files=_pair,
)  # fmt: skip
