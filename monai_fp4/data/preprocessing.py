"""From a patient's files to what the data sets keep: read, normalise, bring to the network's size, and pack.

Patients are read by several threads, since hashing, decoding and resizing leave Python's lock to the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from monai.data import get_track_meta, set_track_meta
from tqdm import tqdm

from monai_fp4.data.readers import read_patient
from monai_fp4.data.transforms import NormalizeForegroundd, resize_to
from monai_fp4.errors import DataError

__all__ = ["FULL", "plain", "read_patients"]

logger = logging.getLogger(__name__)

FULL = 255
"""How a pixel that is all tumour is kept, in a byte."""

_THREADS = 8


def read_patients(
    data: Sequence[Mapping[str, Any]], image_size: tuple[int, ...], progress: bool, keep_label: bool = False
) -> Iterator[dict[str, Any]]:
    """Patients as float16 ``image`` and uint8 ``label``, both ``[C, H, W, D]``, in the order given.

    The label is at its own size, of 0 and 1, if it is to be kept; else at the network's size, of 0 to 255.

    Raises:
        DataError: no patient, or one that cannot be read.
    """
    if not data:
        raise DataError(
            "expected at least one patient, found an empty list; choose another fold or part of the manifest"
        )

    def read(record: Mapping[str, Any]) -> dict[str, Any]:
        return _prepare(record, image_size, keep_label)

    track = get_track_meta()
    set_track_meta(False)  # for all threads at once: the switch is MONAI's and global
    pool = ThreadPoolExecutor(max(1, min(_THREADS, os.cpu_count() or 1, len(data))))
    try:
        yield from tqdm(
            pool.map(read, data), total=len(data), desc="reading patients", disable=None if progress else True
        )
    finally:
        pool.shutdown(cancel_futures=True)
        set_track_meta(track)
    logger.info("read %d patients", len(data))


def plain(transform: Any, item: dict[Any, Any]) -> dict[Any, Any]:
    """Apply a transform to plain tensors: following the history of every item costs more than the transform itself."""
    track = get_track_meta()
    set_track_meta(False)
    try:
        return transform(item)  # type: ignore[no-any-return]
    finally:
        set_track_meta(track)


def _prepare(record: Mapping[str, Any], image_size: tuple[int, ...], keep_label: bool) -> dict[str, Any]:
    volume = read_patient(record)
    native = volume.mask.shape[1:]
    size = (*image_size, native[2])[:3]
    keys = ["image"] if keep_label else ["image", "label"]
    item: dict[Any, Any] = {"image": volume.image, "label": torch.from_numpy(volume.mask)}
    item = NormalizeForegroundd("image")(item)
    if size != native:
        item = resize_to(size, keys, native)(item)
    label = item["label"] if keep_label else (item["label"].float() * FULL).round()
    return {
        "image": item["image"].half(),
        "label": label.to(torch.uint8),
        "patient": record["patient"],
        "group": record.get("group", ""),
    }
