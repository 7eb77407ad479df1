"""Put one patient together from the files that the readers decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.readers import reader_of
from monai_fp4.data.readers.files import load
from monai_fp4.data.readers.geometry import lay_onto, orientation_of, place_of, turned
from monai_fp4.data.readers.masks import binary_mask
from monai_fp4.data.readers.volume import Decoded, Place, Volume, format_size
from monai_fp4.data.records import Header, Reading
from monai_fp4.errors import DataError

__all__ = ["Image", "Raw", "check_channels", "read_image", "read_patient", "read_raw"]

_LARGEST = 1e36
"""Intensities up to here can be subtracted and averaged in float32."""


@dataclass(frozen=True)
class Raw:
    """A patient before the mask is made binary: image float32 ``[C, H, W, D]``, mask ``[H, W, D]`` of any type.

    ``names`` are those that the masks' files give to their labels, each a pair of label and name.
    """

    image: NDArray[np.float32]
    mask: NDArray[Any]
    mask_paths: tuple[str, ...]
    place: Place | None = None
    names: frozenset[tuple[int, str]] = frozenset()

    def volume(self, reading: Reading) -> Volume:
        """The patient with a binary mask.

        Raises:
            DataError: the mask holds other values than ``reading`` allows.
        """
        mask = binary_mask(self.mask, self.mask_paths, reading)
        whole = np.ascontiguousarray(mask) if len(self.mask_paths) == 1 else mask
        return Volume(self.image, whole[None], self.place)


def read_patient(record: Mapping[str, Any]) -> Volume:
    """Read the files of one patient.

    Images that share a mask are channels of one scan. Where there are several masks, each is the mask of one slice.

    Args:
        record: an item of :func:`monai_fp4.data.load_datalist`: ``patient``, ``channels``, ``reading`` and ``images``,
        a
            list of mappings with the paths ``image`` and ``mask`` and their hashes ``sha256`` and ``mask_sha256``. A
            hash that is missing or empty is not checked. ``select``, if there, names the channels to hand out.

    Raises:
        DataError: a file that is missing, damaged or not the one that the manifest names; a mask of another size or in
            another place than its image, or not binary; NaN or infinity; slices of different sizes; another number of
            channels.
    """
    volume = read_raw(record).volume(Reading.from_json(record.get("reading", {})))
    check_channels(record, len(volume.image))
    channels = list(record.get("channels") or ())
    selected = record.get("select")
    if selected and list(selected) != channels:
        numbers = [channels.index(name) for name in selected]
        volume = replace(volume, image=volume.image[numbers])
        if volume.place is not None:
            modalities = tuple(volume.place.modalities[number] for number in numbers)
            volume = replace(volume, place=replace(volume.place, modalities=modalities))
    return volume


def check_channels(record: Mapping[str, Any], found: int) -> None:
    """See that a patient has as many channels as its record names, if it names any.

    Raises:
        DataError: it has not.
    """
    channels = list(record.get("channels") or ())
    if channels and len(channels) != found:
        raise DataError(
            f"expected {len(channels)} channels ({', '.join(channels)}) in patient {record['patient']!r}, "
            f"found {found} in {record['images'][0]['image']}; bring all patients to the same channels"
        )


def read_raw(record: Mapping[str, Any]) -> Raw:
    """Read the files of one patient, the mask as it is; arguments and errors are those of :func:`read_patient`."""
    images = record["images"]
    if not images:
        raise DataError(
            f"expected images of patient {record['patient']!r}, found none; remove the patient from the manifest"
        )
    reading = Reading.from_json(record.get("reading", {}))
    scans = [_read_scan(list(pairs), reading) for _, pairs in groupby(images, key=lambda pair: str(pair["mask"]))]
    return _stack(scans) if len(scans) > 1 or scans[0].image.ndim == 3 else _volume(scans[0])


@dataclass(frozen=True)
class _Scan:
    """Image ``[C, H, W]`` or ``[C, H, W, D]`` and mask without ``C``, in the files' own types, and where they are."""

    image: NDArray[Any]
    mask: NDArray[Any]
    path: str
    mask_path: str
    place: Place | None = None
    names: frozenset[tuple[int, str]] = frozenset()


def _read_scan(pairs: Sequence[Mapping[str, str]], reading: Reading) -> _Scan:
    """Read the images that share one mask, and the mask, and turn all as the first image has to be."""
    mask_path, first_path = str(pairs[0]["mask"]), str(pairs[0]["image"])
    mask = _load(mask_path, pairs[0].get("mask_sha256"), reading, is_mask=True)
    first, together, modalities = _read_channels(pairs, reading)
    mask = lay_onto(first, mask, first_path, mask_path, reading.tolerance)
    orientation = orientation_of(first, first_path)
    place = place_of(first, orientation, modalities)
    twice = Counter(mask.names.values())
    names = frozenset((label, name) for label, name in mask.names.items() if twice[name] == 1)
    return _Scan(together, turned(mask.values, orientation)[0], first_path, mask_path, place, names)


def _read_channels(
    pairs: Sequence[Mapping[str, str]], reading: Reading
) -> tuple[Decoded, NDArray[Any], tuple[str, ...]]:
    """The first image as it is in its file, all of them together, turned as the first has to be, and modalities."""
    first_path = str(pairs[0]["image"])
    first = _load(first_path, pairs[0].get("sha256"), reading)
    orientation = orientation_of(first, first_path)
    channels, modalities = [turned(first.values, orientation)], [first.modality] * len(first.values)
    for pair in pairs[1:]:
        path = str(pair["image"])
        image = lay_onto(first, _load(path, pair.get("sha256"), reading), first_path, path, reading.tolerance)
        channels.append(turned(image.values, orientation))
        modalities += [image.modality] * len(image.values)
    return first, channels[0] if len(channels) == 1 else np.concatenate(channels), tuple(modalities)


@dataclass(frozen=True)
class Image:
    """A scan without a mask, and how to get from its voxels back to those of its files.

    Attributes:
        values: float32 ``[C, H, W, D]``, as :func:`read_patient` hands them out.
        shape: of the first file, ``(I, J, K)``; of slices, ``(H, W, D)``.
        affine: of the first file, from voxels to millimetres to the right, front and head; ``None``: it does not say.
        orientation: how the file's axes were turned; ``None``: they were not.
        place: how it was acquired; ``None``: the file does not say.
    """

    values: NDArray[np.float32]
    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    place: Place | None

    def to_file(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn ``[H, W, D]`` back into the order of the first file's axes."""
        if self.orientation is None:
            return values
        back = np.empty_like(self.orientation)
        for axis, (target, flip) in enumerate(self.orientation):
            back[int(target)] = axis, flip
        return turned(values[None], back)[0]


def read_image(slices: Sequence[Sequence[str]], reading: Reading) -> Image:
    """Read a scan without a mask.

    Args:
        slices: the files of each slice, or those of one volume; each a file a channel.
        reading: what the user said of the files.

    Raises:
        DataError: as :func:`read_patient`, of the images.
    """
    read = [_read_channels([{"image": path} for path in paths], reading) for paths in slices]
    first = read[0][0]
    scans = [
        _Scan(values, np.broadcast_to(np.uint8(0), values.shape[1:]), paths[0], paths[0])
        for (_, values, _), paths in zip(read, slices, strict=True)
    ]
    if len(scans) > 1 or scans[0].image.ndim == 3:
        stack = _stack(scans).image
        return Image(stack, stack.shape[1:], None, None, None)
    orientation = orientation_of(first, slices[0][0])
    place = place_of(first, orientation, read[0][2])
    return Image(_volume(scans[0]).image, first.values.shape[1:], first.affine, orientation, place)


def _load(path: str, digest: str | None, reading: Reading, *, is_mask: bool = False) -> Decoded:
    decoded = load(Path(path), digest, reader_of(path), is_mask=is_mask, reading=reading)
    if is_mask:
        decoded = replace(decoded, values=_one_channel(decoded.values, path))
    else:
        _check_finite(decoded.values, path)
    return replace(decoded, affine=None) if is_mask and reading.header is Header.IGNORE else decoded


def _one_channel(mask: NDArray[Any], path: str) -> NDArray[Any]:
    """A mask in grey that was saved as colours; several labels in several channels are refused."""
    if len(mask) > 1 and not all(np.array_equal(channel, mask[0]) for channel in mask[1:]):
        raise DataError(
            f"expected a mask of one channel in {path}, found {len(mask)}; save it as greyscale, one label a voxel"
        )
    return mask[:1]


def _volume(scan: _Scan) -> Raw:
    # A volume that was turned is a view with negative strides, which torch does not take.
    return Raw(np.ascontiguousarray(scan.image, dtype=np.float32), scan.mask, (scan.mask_path,), scan.place, scan.names)


def _stack(scans: Sequence[_Scan]) -> Raw:
    """Put slices together, each with a mask of its own."""
    scans = [_slice(scan) for scan in scans]
    first = scans[0]
    for scan in scans:
        if scan.image.ndim != 3:
            raise DataError(
                f"expected one mask for all channels of a volume, found {first.mask_path} and {scans[1].mask_path} for "
                "volumes of one patient; keep one, or say that each is a patient with --patient_pattern '([^/]+)[.]'"
            )
        if scan.image.shape != first.image.shape:
            raise DataError(
                f"expected slices of one size and number of channels, found {format_size(first.image.shape)} in "
                f"{first.path} and {format_size(scan.image.shape)} in {scan.path}; resample them, or if each is a "
                "patient say so with --patient_pattern, such as '([^/]+)[.]', or name each in --groups; in a "
                "prediction, with --pictures single"
            )
        if scan.image.dtype != first.image.dtype:
            raise DataError(
                f"expected slices of one type of numbers, found {first.image.dtype} in {first.path} and "
                f"{scan.image.dtype} in {scan.path}; save them alike, or their intensities mean different things"
            )
    mask = np.moveaxis(np.stack([scan.mask for scan in scans]), 0, -1)
    image = np.stack([scan.image for scan in scans]).astype(np.float32, order="C")  # from here on channels are apart
    names = frozenset[tuple[int, str]]().union(*(scan.names for scan in scans))
    return Raw(np.moveaxis(image, 0, -1), mask, tuple(scan.mask_path for scan in scans), names=names)


def _slice(scan: _Scan) -> _Scan:
    """A volume of one slice as that slice."""
    if scan.image.ndim == 4 and scan.image.shape[-1] == 1:
        return replace(scan, image=scan.image[..., 0], mask=scan.mask[..., 0])
    return scan


def _check_finite(image: NDArray[Any], path: str) -> None:
    if image.dtype.kind not in "fc":
        return
    bad = image.size - int(np.count_nonzero(np.abs(image) <= _LARGEST))  # NaN is not
    if bad:
        raise DataError(
            f"expected finite numbers up to 1e36 in {path}, found {bad} voxels of NaN, infinity "
            f"or more; write numbers there, such as 0 outside of the body"
        )
