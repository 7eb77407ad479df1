"""Read one patient from disk: check every byte, then hand out one volume and its mask.

Whatever the format, a patient becomes a :class:`Volume`: image float32 ``[C, H, W, D]`` and mask uint8 ``[1, H, W,
D]`` of 0 and 1, with slices along the last axis; in memory slices lie one after another, so that each can be worked
on while it is in the processor's cache. Files are hashed as they are read, so a run never trains on other data than
its manifest names.

A format is a module with a :class:`Reader` and one line in :data:`READERS`. Which one reads a file, its name says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.readers.files import load, sha256_of
from monai_fp4.data.readers.nifti import NIFTI
from monai_fp4.data.readers.pictures import PICTURES
from monai_fp4.data.readers.volume import Decoded, Reader, Volume, binary_mask, format_size
from monai_fp4.errors import DataError

__all__ = ["READERS", "Reader", "Volume", "read_patient", "reader_of", "sha256_of"]

READERS: Mapping[str, Reader] = MappingProxyType({"pictures": PICTURES, "nifti": NIFTI})


def reader_of(path: str | Path) -> Reader:
    """The reader of a file, by the end of its name.

    Raises:
        DataError: nothing here reads such files.
    """
    name = Path(path).name.lower()
    for reader in READERS.values():
        if name.endswith(reader.suffixes):
            return reader
    known = ", ".join(suffix for reader in READERS.values() for suffix in reader.suffixes)
    raise DataError(f"expected a file that ends in one of {known}, found {path}; convert it to one of them")


def read_patient(record: Mapping[str, Any]) -> Volume:
    """Read the files of one patient.

    Images that share a mask are channels of one scan. Where there are several masks, each is the mask of one slice.

    Args:
        record: an item of :func:`monai_fp4.data.load_datalist`: ``patient``, ``channels`` and ``images``, a list of
            mappings with the paths ``image`` and ``mask`` and their hashes ``sha256`` and ``mask_sha256``. A hash
            that is missing or empty is not checked.

    Raises:
        DataError: a file that is missing, damaged or not the one that the manifest names; a mask of another size
            than its image, or not binary; NaN or infinity; slices of different sizes; another number of channels.
    """
    images = record["images"]
    if not images:
        raise DataError(
            f"expected images of patient {record['patient']!r}, found none; remove the patient from the manifest"
        )
    scans = [_read_scan(list(pairs)) for _, pairs in groupby(images, key=lambda pair: str(pair["mask"]))]
    volume = _stack(scans) if len(scans) > 1 or scans[0].image.ndim == 3 else _volume(scans[0])
    channels = record.get("channels")
    if channels and len(channels) != volume.image.shape[0]:
        raise DataError(
            f"expected {len(channels)} channels ({', '.join(channels)}) in patient {record['patient']!r}, "
            f"found {volume.image.shape[0]} in {images[0]['image']}; bring all patients to the same channels"
        )
    return volume


@dataclass(frozen=True)
class _Scan:
    """Image ``[C, H, W]`` or ``[C, H, W, D]`` and mask without ``C``, in the files' own types, and where they are."""

    image: NDArray[Any]
    mask: NDArray[Any]
    path: str
    mask_path: str


def _read_scan(pairs: Sequence[Mapping[str, str]]) -> _Scan:
    """Read the images that share one mask, and the mask."""
    mask_path = str(pairs[0]["mask"])
    mask = load(Path(mask_path), pairs[0].get("mask_sha256"), reader_of(mask_path).mask)
    channels = []
    for pair in pairs:
        path = str(pair["image"])
        image = load(Path(path), pair.get("sha256"), reader_of(path).image)
        _check_finite(image.values, path)
        _check_fit(image, mask, path, mask_path)
        channels.append(image.values)
    return _Scan(channels[0] if len(channels) == 1 else np.concatenate(channels), mask.values, path, mask_path)


def _volume(scan: _Scan) -> Volume:
    # A volume that was turned is a view with negative strides, which torch does not take.
    image = np.ascontiguousarray(scan.image, dtype=np.float32)
    return Volume(image, np.ascontiguousarray(binary_mask(scan.mask, [scan.mask_path]))[None])


def _stack(scans: Sequence[_Scan]) -> Volume:
    """Put slices together, each with a mask of its own."""
    first = scans[0]
    for scan in scans:
        if scan.image.ndim != 3:
            raise DataError(
                f"expected one mask for all channels of a volume, found {first.mask_path} and {scans[1].mask_path} for "
                f"volumes of one patient; keep one, or list them as two patients"
            )
        if scan.image.shape != first.image.shape:
            raise DataError(
                f"expected slices of one size and number of channels, found {format_size(first.image.shape)} in "
                f"{first.path} and {format_size(scan.image.shape)} in {scan.path}; resample them, or list them as "
                f"two patients"
            )
    mask = binary_mask(np.moveaxis(np.stack([scan.mask for scan in scans]), 0, -1), [scan.mask_path for scan in scans])
    image = np.stack([scan.image for scan in scans]).astype(np.float32, order="C")  # from here on channels are apart
    return Volume(np.moveaxis(image, 0, -1), mask[None])


def _check_finite(image: NDArray[Any], path: str) -> None:
    if image.dtype.kind in "fc" and not np.isfinite(image).all():
        count = image.size - int(np.isfinite(image).sum())
        raise DataError(f"expected finite numbers in {path}, found {count} voxels of NaN or infinity; mend the file")


def _check_fit(image: Decoded, mask: Decoded, path: str, mask_path: str) -> None:
    if image.values.shape[1:] != mask.values.shape:
        raise DataError(
            f"expected the mask to be as large as its image, found {format_size(image.values.shape[1:])} in {path} and "
            f"{format_size(mask.values.shape)} in {mask_path}; resample the mask"
        )
    # A thousandth of a millimetre: headers hold float32, and tools round it differently.
    if image.affine is not None and mask.affine is not None and not np.allclose(image.affine, mask.affine, atol=1e-3):
        raise DataError(
            f"expected image and mask in the same place, found that the affine of {path} differs from that of "
            f"{mask_path}; resample the mask to the image"
        )
