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

from monai_fp4.data.patients import read_patient
from monai_fp4.data.transforms import NormalizeForegroundd, resize
from monai_fp4.errors import DataError

__all__ = ["FULL", "without_metadata", "read_patients"]

logger = logging.getLogger(__name__)

FULL = 255
"""How a pixel that is all tumour is kept, in a byte."""

_THREADS = 8


def read_patients(
    data: Sequence[Mapping[str, Any]], image_size: tuple[int, ...], progress: bool, keep_label: bool = False
) -> Iterator[dict[str, Any]]:
    """Patients as float16 ``image`` and uint8 ``label``, both ``[C, H, W, D]``, in the order given.

    In memory slices may lie one after another. The label is at its own size, of 0 and 1, if it is to be kept; else at
    the network's size, of 0 to 255.

    Raises:
        DataError: no patient, or one that cannot be read.
    """
    if not data:
        raise DataError(
            "expected at least one patient, found an empty list; choose another fold or part of the manifest"
        )

    def read(record: Mapping[str, Any]) -> dict[str, Any]:
        return _prepare(record, image_size, keep_label)

    pool = ThreadPoolExecutor(max(1, min(_THREADS, os.cpu_count() or 1, len(data))))
    try:
        yield from tqdm(
            pool.map(read, data), total=len(data), desc="reading patients", disable=None if progress else True
        )
    finally:
        pool.shutdown(cancel_futures=True)
    logger.info("read %d patients", len(data))


def without_metadata(transform: Any, item: dict[Any, Any]) -> dict[Any, Any]:
    """Apply a transform to plain tensors: following the history of every item costs more than the transform itself."""
    track = get_track_meta()
    set_track_meta(False)
    try:
        return transform(item)  # type: ignore[no-any-return]
    finally:
        set_track_meta(track)


def _prepare(record: Mapping[str, Any], image_size: tuple[int, ...], keep_label: bool) -> dict[str, Any]:
    volume = read_patient(record)
    image, label = torch.from_numpy(volume.image), torch.from_numpy(volume.mask)
    size = (*image_size, image.shape[3])[:3]
    normalise = NormalizeForegroundd("image")
    scales = normalise.scales(image)

    def network_image(piece: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        return resize(normalise.scale(piece, scales, out=piece), size)  # nobody else has the reader's volume

    def network_label(piece: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        # Most slices show no lesion, and zero is zero at any size.
        return resize(piece.float(), size).mul(FULL).round() if piece.any() else torch.zeros(())

    return {
        "image": _by_pieces(network_image, image, size, torch.float16),
        "label": label if keep_label else _by_pieces(network_label, label, size, torch.uint8),
        "patient": record["patient"],
        "group": record.get("group", ""),
    }


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
