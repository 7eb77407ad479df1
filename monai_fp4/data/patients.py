"""Read one patient: images, and the masks that lie upon them."""

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
from monai_fp4.data.readers.geometry import lay_onto, turned
from monai_fp4.data.readers.masks import binary_mask
from monai_fp4.data.readers.volume import Decoded, Place, Volume
from monai_fp4.data.records import Header, Reading
from monai_fp4.data.scans import Scan, read_scan, volume_of
from monai_fp4.errors import DataError

__all__ = ["Raw", "check_channels", "read_patient", "read_raw"]


@dataclass(frozen=True)
class Raw:
    """A patient before the mask is made binary: image float32 ``[C, H, W, D]``, mask ``[H, W, D]`` of any type.

    ``names`` are those that the masks' files give to their labels, each a pair of label and name.
    """

    image: NDArray[np.float32]
    mask: NDArray[Any]
    mask_paths: tuple[str, ...]
    place: Place | None
    names: frozenset[tuple[int, str]]

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
            a list of mappings with the paths ``image`` and ``mask`` and their hashes ``sha256`` and ``mask_sha256``. A
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
    read = [_read_masked(list(pairs), reading) for _, pairs in groupby(images, key=lambda pair: str(pair["mask"]))]
    scans, masks = [scan for scan, _ in read], [mask.values[0] for _, mask in read]
    image = volume_of(scans)
    volume = len(read) == 1 and masks[0].ndim == 3
    return Raw(
        image,
        masks[0] if volume else np.moveaxis(np.stack([mask.reshape(mask.shape[:2]) for mask in masks]), 0, -1),
        tuple(scan.mask_path for scan in scans),
        scans[0].place if volume else None,
        frozenset(label for _, mask in read for label in _names(mask)),
    )


def _read_masked(pairs: Sequence[Mapping[str, Any]], reading: Reading) -> tuple[Scan, Decoded]:
    """Read the images that share one mask, and the mask, which is turned as the images are."""
    mask = _load_mask(pairs[0], reading)
    scan = read_scan(pairs, reading)
    mask = lay_onto(scan.first, mask, scan.path, scan.mask_path, reading.tolerance)
    return scan, replace(mask, values=turned(mask.values, scan.orientation))


def _load_mask(pair: Mapping[str, Any], reading: Reading) -> Decoded:
    """A mask of one channel: grey saved as colours is taken, several labels in several channels are refused."""
    path = str(pair["mask"])
    mask = load(Path(path), pair.get("mask_sha256"), reader_of(path), is_mask=True, reading=reading)
    if not all(np.array_equal(channel, mask.values[0]) for channel in mask.values[1:]):
        raise DataError(
            f"expected a mask of one channel in {path}, found {len(mask.values)}; save it as greyscale, one label a "
            "voxel"
        )
    return replace(mask, values=mask.values[:1], affine=None if reading.header is Header.IGNORE else mask.affine)


def _names(mask: Decoded) -> list[tuple[int, str]]:
    """What the mask's file calls its labels, as far as it is not two labels by one name."""
    twice = Counter(mask.names.values())
    return [(label, name) for label, name in mask.names.items() if twice[name] == 1]
