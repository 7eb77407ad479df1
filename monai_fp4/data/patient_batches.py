"""Which patients are evaluated in one forward pass.

A picture alone keeps no processor busy, and on a GPU costs as much as a batch of them. A scan of many slices is a batch
already, and stays one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["FEW_SLICES", "in_batches"]

T = TypeVar("T")

FEW_SLICES = 8
"""From so many slices on a patient is not made quicker by others in its batch (measured on a CPU)."""


def in_batches(
    patients: Iterable[T], slices: Callable[[T], int], most: int = 64, few: int = FEW_SLICES
) -> Iterator[list[T]]:
    """Patients in their order, those of few slices together.

    Args:
        patients: anything; taken one after another, so that a batch is given before the next patient is read.
        slices: how many images the network sees of a patient.
        most: slices in a batch of several patients.
        few: a patient of so many slices or more is a batch of its own.

    >>> list(in_batches([1, 1, 1, 12, 2, 2, 1], slices=lambda n: n, most=4))
    [[1, 1, 1], [12], [2, 2], [1]]
    """
    batch: list[T] = []
    filled = 0
    for patient in patients:
        count = slices(patient)
        if batch and (count >= few or filled + count > most):
            yield batch
            batch, filled = [], 0
        batch.append(patient)
        filled += count if count < few else most
    if batch:
        yield batch
