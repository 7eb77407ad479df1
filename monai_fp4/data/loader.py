"""The training's data loader: MONAI's, which makes the next batches in a thread while the network works on this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monai.data import ThreadDataLoader
from monai.data.thread_buffer import buffer_iterator

__all__ = ["BackgroundLoader"]


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
