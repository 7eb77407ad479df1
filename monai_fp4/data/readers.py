"""Read one patient from disk: check every byte, then hand out one volume and its mask.

Whatever the format, a patient becomes a :class:`Volume`: image float32 ``[C, H, W, D]`` and mask uint8 ``[1, H, W,
D]`` of 0 and 1, with slices along the last axis; in memory slices lie one after another, so that each can be worked
on while it is in the processor's cache. NIfTI volumes are turned as they are looked at: rows from front to
back, columns from the patient's right to the left, slices from feet to head. Files are hashed as they are read, so a
run never trains on other data than its manifest names.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from PIL import Image

from monai_fp4.data.records import DataFormat
from monai_fp4.errors import DataError

__all__ = ["Volume", "read_patient", "sha256_of"]

# Rows run to the back, columns to the left, slices to the head: axial slices as radiologists look at them.
_AS_LOOKED_AT = orientations.axcodes2ornt("PLS")

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


@dataclass(frozen=True)
class Volume:
    """One patient: image float32 ``[C, H, W, D]``, mask uint8 ``[1, H, W, D]`` of 0 and 1."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_patient(record: Mapping[str, Any]) -> Volume:
    """Read the files of one patient.

    Args:
        record: an item of :func:`monai_fp4.data.load_datalist`: ``patient``, ``format``, ``channels`` and
            ``images``, a list of mappings with the paths ``image`` and ``mask`` and their hashes ``sha256`` and
            ``mask_sha256``. A hash that is missing or empty is not checked.

    Raises:
        DataError: a file that is missing, damaged or not the one that the manifest names; a mask of another size
            than its image, or not binary; NaN or infinity; slices of different sizes; another number of channels.
    """
    images = record["images"]
    if not images:
        raise DataError(
            f"expected images of patient {record['patient']!r}, found none; remove the patient from the manifest"
        )
    volume = _read_nifti(images) if record["format"] == DataFormat.NIFTI else _read_slices(images)
    channels = record.get("channels")
    if channels and len(channels) != volume.image.shape[0]:
        raise DataError(
            f"expected {len(channels)} channels ({', '.join(channels)}) in patient {record['patient']!r}, "
            f"found {volume.image.shape[0]} in {images[0]['image']}; bring all patients to the same channels"
        )
    return volume


def _read_slices(images: Sequence[Mapping[str, str]]) -> Volume:
    slices: list[NDArray[Any]] = []
    masks: list[NDArray[Any]] = []
    for pair in images:
        image = _channels_first(
            _decode_picture(Path(pair["image"]), pair.get("sha256"), intensities=True), pair["image"]
        )
        mask = _decode_picture(Path(pair["mask"]), pair.get("mask_sha256"))
        if mask.ndim != 2:
            raise DataError(
                f"expected a mask of one channel in {pair['mask']}, found {mask.shape[-1]}; save it as greyscale"
            )
        _check_size(image.shape[1:], mask.shape, pair)
        if slices and image.shape != slices[0].shape:
            raise DataError(
                f"expected slices of one size and number of channels, found {_size(slices[0].shape)} in "
                f"{images[0]['image']} and "
                f"{_size(image.shape)} in {pair['image']}; resample them, or list them as two patients"
            )
        slices.append(image)
        masks.append(mask)
    mask = _binary(np.moveaxis(np.stack(masks), 0, -1), [pair["mask"] for pair in images])
    image = np.stack(slices).astype(np.float32, order="C")  # the channels of a picture are apart from here on
    return Volume(np.moveaxis(image, 0, -1), mask[None])


def _read_nifti(images: Sequence[Mapping[str, str]]) -> Volume:
    mask, mask_affine = _decode_nifti(Path(images[0]["mask"]), images[0].get("mask_sha256"))
    if mask.ndim == 4 and mask.shape[3] == 1:
        mask = mask[..., 0]
    if mask.ndim != 3:
        raise DataError(
            f"expected a mask of 3 axes in {images[0]['mask']}, found {mask.ndim}; save one binary mask a patient"
        )
    channels = []
    for pair in images:
        image, affine = _decode_nifti(Path(pair["image"]), pair.get("sha256"))
        if image.ndim not in (3, 4):
            raise DataError(
                f"expected 3 axes, or 4 with the channels last, in {pair['image']}, found {image.ndim}; correct the "
                f"file"
            )
        if not np.isfinite(image).all():
            count = image.size - int(np.isfinite(image).sum())
            raise DataError(
                f"expected finite numbers in {pair['image']}, found {count} voxels of NaN or infinity; mend the file"
            )
        _check_size(image.shape[:3], mask.shape, pair)
        # A thousandth of a millimetre: headers hold float32, and tools round it differently.
        if not np.allclose(affine, mask_affine, atol=1e-3):
            raise DataError(
                f"expected image and mask in the same place, found that the affine of {pair['image']} differs from "
                f"that of "
                f"{pair['mask']}; resample the mask to the image"
            )
        channels.append(np.moveaxis(image, 3, 0) if image.ndim == 4 else image[None])
    return Volume(np.concatenate(channels), _binary(mask, [images[0]["mask"]])[None])


def _load(path: Path, digest: str | None, decode: Any) -> Any:
    if not path.is_file():
        raise DataError(f"expected a file at {path}, found none; complete the data folder or build the manifest again")
    data = path.read_bytes()
    try:
        decoded = decode(data)
    except DataError:
        raise
    except _DECODE_ERRORS as error:
        raise DataError(
            f"expected a whole image in {path}, found one that is truncated or damaged ({_first_line(error)}); "
            f"fetch it again"
        ) from error
    # Only now: that a file is cut short says more than that its hash differs.
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise DataError(
            f"expected the file that the manifest names at {path}, found that its SHA-256 differs; "
            "fetch it again, or build the manifest again if the change is meant"
        )
    return decoded


def _decode_picture(path: Path, digest: str | None, *, intensities: bool = False) -> NDArray[Any]:
    def decode(data: bytes) -> NDArray[Any]:
        # What Pillow warns of is either harmless metadata or followed by an exception.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:
            picture.load()
            # A palette's numbers name colours and are no intensities; in a mask they are the labels themselves.
            rgb = intensities and picture.mode == "P"
            return np.asarray(picture.convert("RGB") if rgb else picture)

    return _load(path, digest, decode)


def _decode_nifti(path: Path, digest: str | None) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    def decode(data: bytes) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        image = nibabel.Nifti1Image.from_bytes(raw)
        if image.ndim > 2:  # the caller refuses any other
            image = image.as_reoriented(orientations.ornt_transform(_axes(image.affine, path), _AS_LOOKED_AT))
        return image.get_fdata(dtype=np.float32, caching="unchanged"), image.affine

    return _load(path, digest, decode)


def _axes(affine: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """Where each axis of a file points, as nibabel writes it; a header that does not say so is refused."""
    known = bool(np.isfinite(affine).all())
    axes = orientations.io_orientation(affine) if known else affine
    if not known or np.isnan(axes).any():
        shown = ", ".join(str([float(f"{value:g}") for value in row]) for row in affine[:3])
        raise DataError(
            f"expected a header that says where each of the three axes points in {path}, found the affine {shown}; "
            "correct its sform or qform"
        )
    return axes


def _channels_first(picture: NDArray[Any], path: str) -> NDArray[Any]:
    if picture.ndim == 2:
        return picture[None]
    if picture.ndim == 3 and picture.shape[-1] == 3:
        return np.moveaxis(picture, -1, 0)
    raise DataError(
        f"expected a greyscale or an RGB image in {path}, found shape {picture.shape}; save it without alpha"
    )


def _check_size(image: tuple[int, ...], mask: tuple[int, ...], pair: Mapping[str, str]) -> None:
    if tuple(image) != tuple(mask):
        raise DataError(
            f"expected the mask to be as large as its image, found {_size(image)} in {pair['image']} and "
            f"{_size(mask)} in "
            f"{pair['mask']}; resample the mask"
        )


def _binary(mask: NDArray[Any], paths: Sequence[str]) -> NDArray[np.uint8]:
    """Turn ``{0, one value}`` into uint8 0 and 1; the value may differ between patients, not within one."""
    top = mask.max()
    if np.isfinite(top) and ((mask == 0) | (mask == top)).all():  # sorting all voxels takes ten times as long
        return (mask != 0).view(np.uint8)
    values = np.unique(mask)
    if len(values[values != 0]) <= 1 and np.isfinite(values).all():
        return (mask != 0).astype(np.uint8)
    for index, path in enumerate(paths):
        inside = np.unique(mask if len(paths) == 1 else mask[..., index])
        if len(inside[inside != 0]) > 1 or not np.isfinite(inside).all():
            shown = ", ".join(f"{value:g}" for value in inside[:6]) + (", ..." if len(inside) > 6 else "")
            raise DataError(
                f"expected a binary mask (0 and one other value) in {path}, found {shown}; choose one label and "
                f"save it alone"
            )
    shown = ", ".join(f"{value:g}" for value in values)
    raise DataError(f"expected one foreground value in all masks beside {paths[0]}, found {shown}; save them alike")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
