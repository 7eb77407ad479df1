"""Data loaders: one makes training batches while the network works, the other gives the patients of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monai.data import ThreadDataLoader
from monai.data.thread_buffer import buffer_iterator
from torch.utils.data import DataLoader

from monai_fp4.data.datasets import PatientDataset

__all__ = ["BackgroundLoader", "PatientLoader"]


class BackgroundLoader(ThreadDataLoader):
    """MONAI's ``ThreadDataLoader``, except that an error while a batch is made reaches whoever asked for the batch.

    MONAI's thread dies of it, and the epoch merely ends early. Arguments are those of ``ThreadDataLoader``. Batches
    are the same as without the thread, in the same order; with worker processes, the thread takes from them.

    Transforms should draw from MONAI's random states, as ``Randomizable`` ones do: torch's global generator belongs to
    the training, which draws from it at the same time.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one epoch."""
        failed: list[BaseException] = []
        batches = super(ThreadDataLoader, self).__iter__()

        def watched() -> Iterator[Any]:
            try:
                yield from batches
            except BaseException as error:
                failed.append(error)

        yield from buffer_iterator(watched(), self.buffer_size, self.buffer_timeout, self.repeats)
        if failed:
            raise failed[0]


class PatientLoader(DataLoader):
    """An evaluation's data loader: lists of the patients who share a forward pass, in the order of the data set.

    Args:
        dataset: the patients.
        slices: in a batch of several patients, see :meth:`PatientDataset.batches`.
        kwargs: those of torch's ``DataLoader`` that make no batches.
    """

    def __init__(self, dataset: PatientDataset, slices: int = 64, **kwargs: Any) -> None:
        super().__init__(dataset, batch_sampler=dataset.batches(slices), collate_fn=list, **kwargs)
