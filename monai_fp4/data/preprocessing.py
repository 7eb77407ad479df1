"""Prepare a patient's files for the data sets: read, normalise, bring to the network's size, and pack.

Patients are read by several threads, since hashing, decoding and resizing leave Python's lock to the others. Where
the number of slices stays, each slice goes all the way before the next one is touched: it then stays in the processor's
cache, and no second volume of float32 is ever in memory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from monai.data import get_track_meta, set_track_meta
from tqdm import tqdm

from monai_fp4.data.acquisition import facts
from monai_fp4.data.messages import without_paths
from monai_fp4.data.patients import read_patient
from monai_fp4.data.readers.masks import IGNORED
from monai_fp4.data.transforms import NormalizeForegroundd, Scale, resize
from monai_fp4.errors import DataError
from monai_fp4.machine import free_memory

__all__ = ["FULL", "network_image", "read_patients", "without_metadata"]

logger = logging.getLogger(__name__)

FULL = 255
"""How a pixel that is all tumour is kept, in a byte."""
_THREADS = 8
_AT_ONCE = 4
"""What reading a patient takes at most, in bytes of its image in float32: the file, its voxels, the volume, a slice."""
_SLACK = 1.25
"""The first patient may be larger than the others."""


def read_patients(
    data: Sequence[Mapping[str, Any]],
    image_size: tuple[int, ...],
    progress: bool,
    keep_label: bool = False,
    normalization: Any = None,
) -> Iterator[dict[str, Any]]:
    """Patients as float16 ``image`` and uint8 ``label``, both ``[C, H, W, D]``, in the order given.

    In memory slices may lie one after another. The label is at its own size, of 0, 1 and ``IGNORED``, if it is to be
    kept; else at the network's size, of 0 to 255, or float16 with NaN where a patient has voxels that do not count.

    Raises:
        DataError: no patient, or one that cannot be read.
    """
    if not data:
        raise DataError(
            "expected at least one patient, found an empty list; choose another fold or part of the manifest"
        )

    def read(record: Mapping[str, Any]) -> dict[str, Any]:
        return _prepare(record, image_size, keep_label, normalization)

    free = free_memory()
    bar = tqdm(total=len(data), desc="reading patients", disable=None if progress else True)
    first = read(data[0])  # alone, since it tells how much memory the others take
    kept = sum(value.nbytes for value in first.values() if isinstance(value, torch.Tensor))
    check_memory(kept * len(data), free, len(data), image_size)
    pool = ThreadPoolExecutor(threads_for(len(data), first.pop("volume_bytes"), free - kept * len(data)))
    try:
        yield first
        bar.update()
        for item in pool.map(read, data[1:]):
            del item["volume_bytes"]
            yield item
            bar.update()
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    logger.info("read %d patients", len(data))


def threads_for(patients: int, volume_bytes: int, free: int) -> int:
    """How many patients to read at once, so that their images fit into the bytes that are free; below zero: not known.

    >>> threads_for(2, 2**20, 2**40), threads_for(100, 2**30, 3 * 2**30)
    (2, 1)
    """
    room = _THREADS if free < 0 else free // max(1, _AT_ONCE * volume_bytes)
    return int(max(1, min(_THREADS, os.cpu_count() or 1, patients, room)))


def check_memory(needed: int, free: int, patients: int, image_size: Sequence[int]) -> None:
    """See that all patients fit into memory, as far as the first one tells; ``free`` is 0 where that is not known.

    Raises:
        DataError: they need much more than there is.
    """
    if free and needed > _SLACK * free:
        raise DataError(
            f"expected {patients} patients at image_size {list(image_size)} to fit into the {free / 2**30:.1f} GiB of "
            f"memory that are free, found that they need about {needed / 2**30:.1f} GiB; use a smaller image_size, "
            "fewer patients, or a machine with more memory"
        )


def without_metadata(transform: Any, item: dict[Any, Any]) -> dict[Any, Any]:
    """Apply a transform to plain tensors: following the history of every item costs more than the transform itself."""
    track = get_track_meta()
    set_track_meta(False)
    try:
        return transform(item)  # type: ignore[no-any-return]
    finally:
        set_track_meta(track)


def _prepare(
    record: Mapping[str, Any], image_size: tuple[int, ...], keep_label: bool, normalization: Any
) -> dict[str, Any]:
    with without_paths(record["patient"], record["images"]):
        volume = read_patient(record)
    label = torch.from_numpy(volume.mask)
    size = (*image_size, label.shape[3])[:3]

    def network_label(piece: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        # Most slices show no lesion, and zero is zero at any size.
        if not piece.any():
            return torch.zeros(())
        if not ignores:
            return resize(piece.float(), size).mul(FULL).round()
        shares = resize((piece == 1).float(), size).mul(FULL).round()
        return shares.masked_fill(resize((piece == IGNORED).float(), size) >= 0.5, torch.nan)

    ignores = bool(record.get("reading", {}).get("ignore_label"))
    dtype = torch.float16 if ignores else torch.uint8
    image, scales = network_image(torch.from_numpy(volume.image), image_size, normalization)
    return {
        "image": image,
        "label": label if keep_label else _by_pieces(network_label, label, size, dtype),
        "volume_bytes": volume.image.nbytes,
        "patient": record["patient"],
        "number": record.get("number", 0),
        "group": record.get("group", ""),
        "facts": facts(volume.place, scales, slices=volume.image.shape[3]),
    }


def network_image(
    image: torch.Tensor, image_size: tuple[int, ...], normalization: Any = None
) -> tuple[torch.Tensor, list[Scale]]:
    """Normalise a scan over its whole volume and bring it to the size that a network sees, as training does.

    Args:
        image: float32 ``[C, H, W, D]``; it is overwritten.
        image_size: two numbers resize each slice and keep their number; three resize the volume.
        normalization: what the run does to intensities; None is `NormalizeForegroundd`.

    Returns:
        float16 ``[C, h, w, D]`` or ``[C, *image_size]``, and how each channel was normalised.
    """
    normalise = NormalizeForegroundd("image") if normalization is None else normalization
    scales = normalise.scales(image)

    def change(piece: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        return resize(normalise.scale(piece, scales, out=piece), size)

    return _by_pieces(change, image, (*image_size, image.shape[3])[:3], torch.float16), scales


def _by_pieces(
    change: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor],
    volume: torch.Tensor,
    size: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Change a volume ``[C, H, W, D]`` to one of ``size`` slice by slice, or at once if there will be more or fewer."""
    slices = volume.shape[3] == size[2]
    pieces, size = (volume.movedim(3, 0), size[:2]) if slices else (volume[None], size)
    result = torch.empty(len(pieces), len(volume), *size, dtype=dtype)
    for piece, place in zip(pieces, result, strict=True):
        place.copy_(change(piece, size))
    return result.movedim(0, 3) if slices else result[0]
