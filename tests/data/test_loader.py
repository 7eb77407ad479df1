"""The loader with a thread: the same batches, and no error lost."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from monai_fp4.data import BackgroundLoader
from monai_fp4.errors import DataError


class Numbers(Dataset):
    def __init__(self, broken: int = -1) -> None:
        self.broken = broken
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        self.threads.add(threading.current_thread().name)
        if index == self.broken:
            raise DataError("expected an item, found none")
        return torch.tensor(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_of_a_plain_loader(workers: int) -> None:
    loader = BackgroundLoader(Numbers(), batch_size=3, num_workers=workers, buffer_size=2)
    for _ in range(2):
        for got, wanted in zip(loader, DataLoader(Numbers(), batch_size=3), strict=True):
            assert torch.equal(got, wanted)


def test_batches_are_made_by_another_thread() -> None:
    numbers = Numbers()
    list(BackgroundLoader(numbers, batch_size=3))
    assert threading.current_thread().name not in numbers.threads


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_reaches_whoever_asks_after_the_batches_before_it(workers: int) -> None:
    loader = BackgroundLoader(Numbers(broken=7), batch_size=3, num_workers=workers)
    batches = iter(loader)
    assert [next(batches).tolist(), next(batches).tolist()] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(DataError, match="expected an item"):
        next(batches)


def test_a_loop_that_stops_early_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    for _ in BackgroundLoader(Numbers(), batch_size=1):
        break
    assert set(threading.enumerate()) <= before
