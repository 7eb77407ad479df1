"""NIfTI-1 and NIfTI-2 volumes and slices, decoded by nibabel, in the order of the file's axes.

Header and voxels are in one file (``.nii``) or in two (``.hdr`` and ``.img``). The second pair of endings is also that
of Analyze 7.5, whose header does not say which side is left; such files are refused.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.readers.geometry import corners_apart
from monai_fp4.data.readers.limits import check_file, check_inside, check_size, gunzip, largest_image
from monai_fp4.data.readers.volume import Decoded, Reader, Source
from monai_fp4.data.records import Header
from monai_fp4.errors import DataError

__all__ = ["NIFTI", "NIFTI_PAIRS"]

_SINGLE = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}
_PAIR = {348: nibabel.Nifti1Pair, 540: nibabel.Nifti2Pair}
"""What reads a file, or two, by the size of the header that they begin with."""
_LONGEST_HEADER = 540
_SLACK = 1 << 20
"""Bytes that may follow the voxels."""
_TO_MILLIMETRES = {1: 1000.0, 3: 0.001}
"""Codes of ``xyzt_units`` that are metres and micrometres; all others are taken for millimetres, as ITK does."""


def _decode(source: Source) -> Decoded:
    packed = source.data[:2] == b"\x1f\x8b"
    data = gunzip(source.data, _LONGEST_HEADER, source.path) if packed else source.data
    header = _header(data)
    if header is None:
        raise DataError(
            f"expected a NIfTI file at {source.path}, found one whose header is none ({len(source.data)} bytes); "
            "fetch it again, or give it the ending of its format"
        )
    if _is_of_pair(header):
        raise DataError(
            f"expected header and voxels in one file, found the header of a pair (.hdr and .img) in "
            f"{source.path}; rename it to .hdr"
        )
    end = _end_of_voxels(header, source)
    if packed:
        data = gunzip(source.data, end + _SLACK + 1, source.path)
        if len(data) > end + _SLACK:
            raise DataError(
                f"expected {end} bytes in {source.path} as its header says, found that it unpacks to more; fetch it "
                "again, or correct its header"
            )
    return _decoded(_SINGLE[header.sizeof_hdr], {"image": data}, header, end, source)


def _decode_pair(source: Source) -> Decoded:
    data, voxels = (file.read_bytes() for file in _files_of_pair(source.path))
    if len(data) < min(_PAIR):
        raise EOFError(f"a header of {len(data)} bytes")
    header = _header(data)
    if header is None or not _is_of_pair(header):
        raise DataError(
            f"expected a NIfTI header in {source.path}, found one of Analyze 7.5 or another format, which does not say "
            "which side is left; convert it to .nii.gz with the program that wrote it, as in SPM or FSL's fslchfiletype"
        )
    if not 0 <= header["vox_offset"] < len(voxels):
        raise DataError(
            f"expected voxels that begin inside the file {source.path.with_suffix('.img')}, found vox_offset "
            f"{float(header['vox_offset']):g} in {source.path}; correct the header"
        )
    files = {"header": data, "image": voxels}
    return _decoded(_PAIR[header.sizeof_hdr], files, header, _end_of_voxels(header, source), source)


def _header(data: bytes) -> Any:
    """The header that a file begins with, whatever it holds; ``None`` where there is none."""
    size = min(struct.unpack("<i", data[:4]) + struct.unpack(">i", data[:4]), key=abs) if len(data) >= 4 else 0
    if size not in _SINGLE or len(data) < size:
        return None
    return _SINGLE[size].header_class(data[:size], check=False)


def _is_of_pair(header: Any) -> bool:
    return bool(header["magic"].item().startswith(header.pair_magic))


def _decoded(kind: Any, files: Mapping[str, bytes], header: Any, end: int, source: Source) -> Decoded:
    """Numbers and place out of the bytes of one file or two, whose voxels end at ``end``."""
    if len(files["image"]) < end:
        raise EOFError(f"{len(files['image'])} bytes, where the header says {end}")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isinf(slope) or (np.isfinite(slope) and slope and not np.isfinite(intercept)):
        raise DataError(
            f"expected finite scl_slope and scl_inter in {source.path}, found {slope} and {intercept}; correct them"
        )
    first, size = next(iter(files)), header.sizeof_hdr
    if files[first][size : size + 1] > b"\0":  # nibabel sees no extension: a million of them say nothing of voxels
        files = {**files, first: files[first][:size] + bytes(4) + files[first][size + 4 :]}
    image = kind.from_file_map(kind.make_file_map({name: io.BytesIO(data) for name, data in files.items()}))
    number = image.get_data_dtype()
    if number.names:  # colours, as of a photograph: three or four bytes a voxel
        raw = np.asanyarray(image.dataobj)
        values = np.stack([raw[name] for name in number.names[:3]], axis=-1)
    elif source.is_mask or number.kind == "c":
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
    affine[:3] *= _TO_MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    return Decoded(channels, affine, placed)


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
    if wanted is Header.AUTO and sform is not None and qform is not None and np.isfinite([sform, qform]).all():
        _, apart = corners_apart(sform, qform, image.shape)
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


def _files_of_pair(path: Path) -> Sequence[Path]:
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


NIFTI = Reader(
    summary="NIfTI-1 and NIfTI-2, two or three axes, a channel a file or the channels along the fourth axis",
    suffixes=(".nii", ".nii.gz"),
    decode=_decode,
)
"""The reader of NIfTI files."""
NIFTI_PAIRS = Reader(
    summary="NIfTI whose voxels are in an `.img` beside it; Analyze 7.5 is refused", suffixes=(".hdr",),
    decode=_decode_pair, files=_files_of_pair,
)  # fmt: skip
"""The reader of NIfTI in two files, header and voxels."""
