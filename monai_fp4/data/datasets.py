"""The data sets that engines read: slices (or whole volumes) to train on, and patients to evaluate on.

Both read every patient once, when they are made: hashes are checked, intensities normalised over the whole volume,
the image brought to the network's size, and the result is kept in memory, images as float16 (11 bits, where the
scans have 8) and masks as uint8. An epoch then costs no reading at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose, Randomizable
from torch.utils.data import Dataset
from tqdm import tqdm

from monai_fp4.data.readers import read_patient
from monai_fp4.data.transforms import NormalizeForegroundd, check_size, resize_to
from monai_fp4.errors import DataError

__all__ = ["PatientDataset", "SliceDataset"]

logger = logging.getLogger(__name__)

_FULL = 255
"""How a pixel that is all tumour is kept, in a byte."""


class SliceDataset(Dataset):
    """The training set: slices for 2D networks, whole volumes for 3D ones.

    What is drawn at random for an item depends on the seed, the epoch and the index alone: not on the order of the
    items, nor on the number of workers. So an epoch can be repeated, and a run that was cut short goes on as if it
    had not been.

    Args:
        data: patients from :func:`monai_fp4.data.load_datalist`.
        image_size: two numbers give slices, three give volumes.
        transform: MONAI dictionary transforms over ``image`` and ``label``, applied at each access; ``None``: nothing.
        seed: what the transform's random state follows.
        progress: show a bar while reading, in a terminal.

    Items:
        ``image`` float32 ``[C, *image_size]``, ``label`` float32 ``[1, *image_size]``: the share
        of each pixel that is tumour, from 0 to 1 in steps of 1/255, so that a tumour of a few pixels does not vanish
        when the scan is shrunk.

    Raises:
        DataError: no patient, or one that cannot be read.
        ConfigError: ``image_size`` is not two or three positive numbers.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        image_size: Sequence[int],
        transform: Any = None,
        *,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        self.image_size = check_size(image_size)
        self.transform = transform
        self.seed = seed
        # Shared, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._random = np.random.RandomState(seed)
        self._randomizable = list(_randomizable(transform))
        self._images: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        for item in _read(data, self.image_size, progress):
            image, label = item["image"], item["label"]
            # A volume of its own, or slices first.
            self._images.append(image[None] if len(self.image_size) == 3 else image.permute(3, 0, 1, 2).contiguous())
            self._labels.append(label[None] if len(self.image_size) == 3 else label.permute(3, 0, 1, 2).contiguous())
        self._index = [(p, s) for p, images in enumerate(self._images) for s in range(len(images))]

    def __len__(self) -> int:
        """The number of slices, or of volumes."""
        return len(self._index)

    def set_epoch(self, epoch: int) -> None:
        """Draw the random numbers of another epoch, from now on and in all workers."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One item, changed at random by the transform."""
        patient, number = self._index[index]
        item = {"image": self._images[patient][number].float(), "label": self._labels[patient][number].float() / _FULL}
        if self.transform is None:
            return item
        # One state for all, seeded once: Compose.set_random_state seeds each transform, and that takes a millisecond.
        self._random.seed([self.seed % 2**32, int(self._epoch), index % len(self)])
        for random in self._randomizable:
            random.set_random_state(state=self._random)
        return _plain(self.transform, item)


class PatientDataset(Dataset):
    """The evaluation set: one patient an item, the label at the scan's own size.

    Args:
        data: patients from :func:`monai_fp4.data.load_datalist`.
        image_size: two numbers resize each slice and keep their number; three resize the volume.
        progress: show a bar while reading, in a terminal.

    Items:
        ``image`` float32 ``[C, h, w, D]``, or ``[C, *image_size]`` for three numbers; ``label`` uint8 ``[1, H, W,
        D]`` of 0 and 1; ``patient``, the id; ``group``, the institution.

    Raises:
        DataError: no patient, or one that cannot be read.
        ConfigError: ``image_size`` is not two or three positive numbers.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], image_size: Sequence[int], *, progress: bool = True) -> None:
        self.image_size = check_size(image_size)
        self._items = list(_read(data, self.image_size, progress, keep_label=True))

    def __len__(self) -> int:
        """The number of patients."""
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One patient."""
        item = self._items[index]
        return {**item, "image": item["image"].float()}


def _read(
    data: Sequence[Mapping[str, Any]], image_size: tuple[int, ...], progress: bool, keep_label: bool = False
) -> Iterator[dict[str, Any]]:
    """Patients as float16 ``image`` and uint8 ``label``, both ``[C, H, W, D]``.

    The label is at its own size, of 0 and 1, if it is to be kept; else at the network's size, of 0 to 255.
    """
    if not data:
        raise DataError(
            "expected at least one patient, found an empty list; choose another fold or part of the manifest"
        )
    normalise = NormalizeForegroundd("image")
    for record in tqdm(data, desc="reading patients", disable=None if progress else True):
        volume = read_patient(record)
        native = volume.mask.shape[1:]
        size = (*image_size, native[2])[:3]
        keys = ["image"] if keep_label else ["image", "label"]
        item: dict[Any, Any] = normalise({"image": volume.image, "label": torch.from_numpy(volume.mask)})
        if size != native:
            item = _plain(resize_to(size, keys, native), item)
        label = item["label"] if keep_label else (item["label"].float() * _FULL).round()
        yield {
            "image": item["image"].half(),
            "label": label.to(torch.uint8),
            "patient": record["patient"],
            "group": record.get("group", ""),
        }
    logger.info("read %d patients", len(data))


def _plain(transform: Any, item: dict[str, Any]) -> dict[str, Any]:
    """Apply a transform to plain tensors: following the history of every item costs more than the transform itself."""
    track = get_track_meta()
    set_track_meta(False)
    try:
        return transform(item)
    finally:
        set_track_meta(track)


def _randomizable(transform: Any) -> Iterator[Randomizable]:
    """The transforms that draw random numbers, out of a ``Compose`` of any depth; outer ones first."""
    # A plain Compose draws nothing; OneOf and its like do, and hand the state on to what they hold.
    if isinstance(transform, Randomizable) and type(transform) is not Compose:
        yield transform
    if isinstance(transform, Compose):
        for each in transform.transforms:
            yield from _randomizable(each)
