"""Put the images of one scan together, as its files' readers decode them: channels first, then slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.readers import reader_of
from monai_fp4.data.readers.files import load
from monai_fp4.data.readers.geometry import lay_onto, orientation_of, place_of, turned, turned_back
from monai_fp4.data.readers.volume import Decoded, Place, format_size
from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError

__all__ = ["Image", "Scan", "read_image", "read_scan", "volume_of"]

_LARGEST = 1e36
"""Intensities up to here can be subtracted and averaged in float32."""


@dataclass(frozen=True)
class Scan:
    """Images that share a mask, as channels ``[C, H, W]`` or ``[C, H, W, D]`` in their files' own type.

    Attributes:
        values: the channels, turned as the first file has to be to be looked at.
        first: the first file, as it is.
        path: of the first file.
        mask_path: of the mask; of the first file where there is none.
        orientation: how the first file's axes were turned; ``None``: they were not.
        modalities: what each channel was acquired with.
    """

    values: NDArray[Any]
    first: Decoded
    path: str
    mask_path: str
    orientation: NDArray[np.float64] | None
    modalities: tuple[str, ...]

    @property
    def place(self) -> Place | None:
        """How it was acquired; ``None``: the first file does not say."""
        return place_of(self.first, self.orientation, self.modalities)


def read_scan(pairs: Sequence[Mapping[str, Any]], reading: Reading) -> Scan:
    """Read the images that share one mask; errors are those of :func:`monai_fp4.data.patients.read_patient`."""
    path = str(pairs[0]["image"])
    first = _load(pairs[0], reading)
    orientation = orientation_of(first, path)
    images = [first]
    images += [lay_onto(first, _load(pair, reading), path, str(pair["image"]), reading.tolerance) for pair in pairs[1:]]
    channels = [turned(image.values, orientation) for image in images]
    return Scan(
        channels[0] if len(channels) == 1 else np.concatenate(channels),
        first,
        path,
        str(pairs[0].get("mask", path)),
        orientation,
        tuple(image.modality for image in images for _ in image.values),
    )


def _load(pair: Mapping[str, Any], reading: Reading) -> Decoded:
    path = str(pair["image"])
    decoded = load(Path(path), pair.get("sha256"), reader_of(path), is_mask=False, reading=reading)
    values = decoded.values
    bad = values.size - int(np.count_nonzero(np.abs(values) <= _LARGEST)) if values.dtype.kind == "f" else 0
    if bad:  # NaN among them
        raise DataError(
            f"expected finite numbers up to 1e36 in {path}, found {bad} voxels of NaN, infinity or more; write numbers "
            "there, such as 0 outside of the body"
        )
    return decoded


def volume_of(scans: Sequence[Scan]) -> NDArray[np.float32]:
    """One volume float32 ``[C, H, W, D]``, out of slices or of the one scan that is a volume already.

    Raises:
        DataError: several volumes, or slices that are not alike.
    """
    if len(scans) == 1 and scans[0].values.ndim == 4:
        # A volume that was turned is a view with negative strides, which torch does not take.
        return np.ascontiguousarray(scans[0].values, dtype=np.float32)
    slices = [scan.values[..., 0] if scan.values.shape[3:] == (1,) else scan.values for scan in scans]
    path, first = scans[0].path, slices[0]
    for scan, values in zip(scans, slices, strict=True):
        if values.ndim != 3:
            raise DataError(
                f"expected one mask for all channels of a volume, found {scans[0].mask_path} and {scans[1].mask_path} "
                "for volumes of one patient; keep one, or say that each is a patient with --patient_pattern "
                "'([^/]+)[.]'"
            )
        if values.shape != first.shape:
            raise DataError(
                f"expected slices of one size and number of channels, found {format_size(first.shape)} in {path} and "
                f"{format_size(values.shape)} in {scan.path}; resample them, or if each is a patient say so with "
                "--patient_pattern, such as '([^/]+)[.]', or name each in --groups; in a prediction, with --pictures "
                "single"
            )
        if values.dtype != first.dtype:
            raise DataError(
                f"expected slices of one type of numbers, found {first.dtype} in {path} and {values.dtype} in "
                f"{scan.path}; save them alike, or their intensities mean different things"
            )
    image = np.stack(slices).astype(np.float32, order="C")  # from here on channels are apart
    return np.moveaxis(image, 0, -1)


@dataclass(frozen=True)
class Image:
    """A scan without a mask, and how to get from its voxels back to those of its files.

    Attributes:
        values: float32 ``[C, H, W, D]``, as :func:`monai_fp4.data.patients.read_patient` hands them out.
        shape: of the first file, ``(I, J, K)``; of slices, ``(H, W, D)``.
        affine: of the first file, from voxels to millimetres to the right, front and head; ``None``: it does not say.
        orientation: how the file's axes were turned; ``None``: they were not.
        place: how it was acquired; ``None``: the file does not say.
    """

    values: NDArray[np.float32]
    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None = None
    orientation: NDArray[np.float64] | None = None
    place: Place | None = None

    def to_file(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn ``[H, W, D]`` back into the order of the first file's axes."""
        return turned_back(values[None], self.orientation)[0]


def read_image(slices: Sequence[Sequence[str]], reading: Reading) -> Image:
    """Read a scan without a mask.

    Args:
        slices: the files of each slice, or those of one volume; each a file a channel.
        reading: what the user said of the files.

    Raises:
        DataError: as :func:`monai_fp4.data.patients.read_patient`, of the images.
    """
    scans = [read_scan([{"image": path} for path in paths], reading) for paths in slices]
    volume, first = volume_of(scans), scans[0]
    if len(scans) > 1 or first.values.ndim == 3:
        return Image(volume, volume.shape[1:])
    return Image(volume, first.first.values.shape[1:], first.first.affine, first.orientation, first.place)
