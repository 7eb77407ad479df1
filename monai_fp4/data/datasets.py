"""The data sets that engines read: slices (or whole volumes) to train on, and patients to evaluate on.

Both read every patient once, when they are made: hashes are checked, intensities normalised over the whole volume,
the image brought to the network's size, and the result is kept in memory, images as float16 (11 bits, where the
scans have 8) and masks as uint8. An epoch then costs no reading at all. For a GPU the training set is kept in the GPU's
memory where it fits, so that not even a copy is left; its batches are augmented there either way.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Randomizable
from torch.utils.data import Dataset

from monai_fp4.data.acquisition import summarize
from monai_fp4.data.batched import batch_transform
from monai_fp4.data.image_size import check_size
from monai_fp4.data.patient_batches import in_batches
from monai_fp4.data.preprocessing import FULL, read_patients, without_metadata

__all__ = ["CACHE_SHARE", "PatientDataset", "SliceDataset"]

logger = logging.getLogger(__name__)

CACHE_SHARE = 0.3
"""Of a GPU's free memory, the most that the training set may take; network and activations need the rest."""


class SliceDataset(Dataset):
    """The training set: slices for 2D networks, whole volumes for 3D ones.

    What is drawn at random for an item depends on the seed, the epoch and the index alone: not on the order of the
    items, nor on the number of workers. So an epoch can be repeated, and a run that was cut short goes on as if it
    had not been.

    A torch ``DataLoader`` asks for a whole batch at a time, and the transforms of :mod:`monai_fp4.data.batched` are
    applied to it at once, on its device. Any other MONAI transform is applied item by item, on the CPU; a warning says
    so.

    Args:
        data: patients from :func:`monai_fp4.data.load_datalist`.
        image_size: two numbers give slices, three give volumes.
        transform: MONAI dictionary transforms over ``image`` and ``label``, applied at each access; ``None``: nothing.
        seed: what the transform's random state follows.
        progress: show a bar while reading, in a terminal.
        device: where the items are to be. On a CUDA device the cache is there as well if it takes no more than
            `CACHE_SHARE` of the memory that is free; the loader must then have no worker processes.
        normalization: what is done to a volume's intensities, with the methods ``scales`` and ``scale`` of
            `NormalizeForegroundd`, which it is by default.

    Items:
        ``image`` float32 ``[C, *image_size]``, ``label`` float32 ``[1, *image_size]``: the share
        of each pixel that is tumour, from 0 to 1 in steps of 1/255, so that a tumour of a few pixels does not vanish
        when the scan is shrunk. It is NaN where the manifest's ``ignore_label`` says that a pixel does not count.

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
        device: torch.device | str = "cpu",
        normalization: Any = None,
    ) -> None:
        self.image_size = check_size(image_size)
        self.transform = transform
        self.seed = seed
        self.device = torch.device(device)
        # Shared, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._random = np.random.RandomState(seed)
        self._randomizable = list(_randomizable(transform))
        self._batched = None if transform is None else batch_transform(transform)
        if transform is not None and self._batched is None:
            warnings.warn(
                "the transform holds others than RandFlipd, RandAffined, RandScaleIntensityd and RandShiftIntensityd, "
                "so it is applied item by item on the CPU; set num_workers if metrics.json shows much input_wait",
                stacklevel=2,
            )
        self._images: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._facts: list[dict[str, Any]] = []
        for item in read_patients(data, self.image_size, progress, normalization=normalization):
            image, label = item["image"], item["label"]
            self._facts.append(item["facts"])
            # A volume of its own, or slices first.
            volumes = len(self.image_size) == 3
            self._images.append((image[None] if volumes else image.permute(3, 0, 1, 2)).contiguous())
            self._labels.append((label[None] if volumes else label.permute(3, 0, 1, 2)).contiguous())
        if any(labels.is_floating_point() for labels in self._labels):  # NaN where a voxel does not count
            self._labels = [labels.half() for labels in self._labels]
        self._index = [(p, s) for p, images in enumerate(self._images) for s in range(len(images))]
        self._cache_on_device()

    def __len__(self) -> int:
        """The number of slices, or of volumes."""
        return len(self._index)

    def summary(self) -> dict[str, Any]:
        """The range of the scans, for the run to keep; see :mod:`monai_fp4.data.acquisition`."""
        return summarize(self._facts)

    def set_epoch(self, epoch: int) -> None:
        """Draw the random numbers of another epoch, from now on and in all workers."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One item, changed at random by the transform."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """The items of a batch; torch's loader looks for this method."""
        places = [self._index[index] for index in indices]
        device = self.device if self._batched is not None or self.transform is None else torch.device("cpu")
        batch = {
            "image": torch.stack([self._images[p][s] for p, s in places]).to(device).float(),
            "label": torch.stack([self._labels[p][s] for p, s in places]).to(device).float() / FULL,
        }
        if self._batched is not None:
            self._batched(batch, [partial(self._seed, index) for index in indices])
        items = [{key: values[row] for key, values in batch.items()} for row in range(len(indices))]
        if self.transform is None or self._batched is not None:
            return items
        return [self._transformed(index, item) for index, item in zip(indices, items, strict=True)]

    def _transformed(self, index: int, item: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self._seed(index)
        return without_metadata(self.transform, item)

    def _seed(self, index: int) -> None:
        # One state for all, seeded once: Compose.set_random_state seeds each transform, and that takes a millisecond.
        self._random.seed([self.seed % 2**32, int(self._epoch), index % len(self)])
        for random in self._randomizable:
            random.set_random_state(state=self._random)

    def _cache_on_device(self) -> None:
        """Move the cache to the device that items are wanted on, if it fits."""
        if self.device.type != "cuda" or (self.transform is not None and self._batched is None):
            return
        size = sum(tensor.nbytes for tensor in (*self._images, *self._labels))
        free = torch.cuda.mem_get_info(self.device)[0]
        if size > CACHE_SHARE * free:
            warnings.warn(
                f"the training set of {size / 2**30:.1f} GiB stays in the host's memory, since it would take more than "
                f"{CACHE_SHARE:.0%} of the {free / 2**30:.1f} GiB free on {self.device}; batches are copied as they "
                "are used",
                stacklevel=3,
            )
            return
        for tensors in (self._images, self._labels):
            for number, tensor in enumerate(tensors):  # one at a time, so that each is soon let go of here
                tensors[number] = tensor.to(self.device)
        logger.info("the training set of %.2f GiB is cached on %s", size / 2**30, self.device)


class PatientDataset(Dataset):
    """The evaluation set: one patient an item, the label at the scan's own size.

    Args:
        data: patients from :func:`monai_fp4.data.load_datalist`.
        image_size: two numbers resize each slice and keep their number; three resize the volume.
        progress: show a bar while reading, in a terminal.
        normalization: as in `SliceDataset`.

    Items:
        ``image`` float32 ``[C, h, w, D]``, or ``[C, *image_size]`` for three numbers; ``label`` uint8 ``[1, H, W,
        D]`` of 0 and 1; ``patient``, the id, and its ``number``, 0 where the data say none; ``group``, the institution.

    Raises:
        DataError: no patient, or one that cannot be read.
        ConfigError: ``image_size`` is not two or three positive numbers.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        image_size: Sequence[int],
        *,
        progress: bool = True,
        normalization: Any = None,
    ) -> None:
        self.image_size = check_size(image_size)
        # One after another in memory as in the scan, for those who flatten them at every evaluation.
        self._items = [
            {key: value.contiguous() if isinstance(value, torch.Tensor) else value for key, value in item.items()}
            for item in read_patients(data, self.image_size, progress, keep_label=True, normalization=normalization)
        ]

    def __len__(self) -> int:
        """The number of patients."""
        return len(self._items)

    def batches(self, most: int = 64) -> list[list[int]]:
        """Indices of patients who share a forward pass, for :class:`PatientLoader`.

        Args:
            most: slices in a batch of several patients, see :func:`monai_fp4.data.in_batches`. Where the network sees
                volumes, each is a batch of its own.
        """
        volumes = len(self.image_size) == 3
        depth = [most if volumes else item["image"].shape[-1] for item in self._items]
        return list(in_batches(range(len(self)), depth.__getitem__, most))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One patient."""
        item = self._items[index]
        return {**item, "image": item["image"].float()}


def _randomizable(transform: Any) -> Iterator[Randomizable]:
    """The transforms that draw random numbers, out of a ``Compose`` of any depth; outer ones first."""
    # A plain Compose draws nothing; OneOf and its like do, and hand the state on to what they hold.
    if isinstance(transform, Randomizable) and type(transform) is not Compose:
        yield transform
    if isinstance(transform, Compose):
        for each in transform.transforms:
            yield from _randomizable(each)
