"""Slices of two patients that show the same: copies under another name, or one object taken twice.

Hashes of files tell a copy that was not touched, and :mod:`monai_fp4.data.checks` refuses those. This finds what was
saved again, resized, brightened or mirrored. A slice becomes a picture of 64 x 64 from which its own blur (a Gaussian
of one pixel) is subtracted: what remains are edges, and not the outline of a head, which all heads share. Two slices
show the same if these correlate by :data:`SAME` or more, moved by up to a pixel; two patients, if two of their
slices do, or all that one of them has (the rule of :func:`monai_fp4.data.identity.same_images`). A picture that was
cropped or turned by more than a degree or two is not found.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from monai_fp4.data.transforms import resize

__all__ = ["SAME", "Copies", "Prints", "find_copies", "prints_of"]

SAME = 0.85
"""Correlation from which two slices show the same; different persons of the LGG set reach 0.78."""

_SIDE, _COARSE, _MOVED = 64, 32, 1
_CANDIDATE = 0.8
"""Correlation at 32 x 32 from which the finer one is computed."""
_FAINT = 0.1
"""Slices with less of a patient's strongest edges, such as air, tell nobody from another."""
_MOST_SLICES, _MOST_CANDIDATES, _BLOCK = 8000, 200_000, 256
_MIRRORS = {"": (), "left to right": (2,), "top to bottom": (1,), "both ways": (1, 2)}


@dataclass(frozen=True)
class Prints:
    """What one patient is recognised by.

    Attributes:
        pictures: ``[S, 64, 64]``, the slices that show something.
        numbers: of these slices, from 0.
        digests: of the voxels of every slice that is not of one value.
    """

    pictures: NDArray[np.float16] = field(repr=False)
    numbers: NDArray[np.int64]
    digests: frozenset[bytes] = field(repr=False)


@dataclass(frozen=True)
class Copies:
    """Two patients that share slices.

    Attributes:
        one: number of the first patient.
        other: number of the second.
        identical: how many slices hold the same voxels.
        similar: how many slices show the same, those included.
        mirrored: ``""``, or how the second has to be mirrored.
        correlation: of the pair that is most alike.
        pictures: that pair as it was compared; ``None`` where only the voxels were.
    """

    one: int
    other: int
    identical: int
    similar: int
    mirrored: str = ""
    correlation: float = 1.0
    pictures: tuple[NDArray[np.float16], NDArray[np.float16]] | None = field(default=None, repr=False)


def prints_of(image: NDArray[np.float32]) -> Prints:
    """Take the prints of a volume ``[C, H, W, D]``; channels are averaged, each at its own scale."""
    means, spreads = _scales(image)
    pictures, digests = [], set()
    for number in range(image.shape[-1]):
        planes = np.ascontiguousarray(image[..., number])
        if (planes.max((1, 2)) > planes.min((1, 2))).any():
            digests.add(hashlib.blake2b(planes.tobytes(), digest_size=12).digest())
        mean = ((planes - means[:, None, None]) / spreads[:, None, None]).mean(0)
        pictures.append(resize(torch.from_numpy(mean.astype(np.float32))[None], (_SIDE, _SIDE))[0].numpy())
    stack = np.stack(pictures)
    strength = np.linalg.norm(_edges(stack), axis=(1, 2))
    numbers = np.flatnonzero((strength > _FAINT * strength.max()) & (strength > 1e-6))
    return Prints(stack[numbers].astype(np.float16), numbers, frozenset(digests))


def _scales(image: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel, slice by slice: a volume in float64 would fill the memory."""
    sums, squares = np.zeros((2, len(image)))
    for number in range(image.shape[-1]):
        plane = image[..., number].astype(np.float64)
        sums += plane.sum((1, 2))
        squares += (plane**2).sum((1, 2))
    count = image[0].size
    means = sums / count
    spreads = np.sqrt(np.maximum(squares / count - means**2, 0))
    return means, np.where(spreads > 0, spreads, 1.0)


def find_copies(prints: Sequence[Prints]) -> list[Copies]:
    """Pairs of patients that show the same, the most similar slices first.

    Of more than 8000 slices, every second or third of each patient takes part, and so on; identical ones are always
    found.

    Args:
        prints: of each patient.
    """
    identical: dict[tuple[int, int], int] = defaultdict(int)
    owners: dict[bytes, list[int]] = defaultdict(list)
    for number, each in enumerate(prints):
        for digest in each.digests:
            owners[digest].append(number)
    for who in owners.values():
        for pair in combinations(who, 2):
            identical[pair] += 1
    alike: dict[tuple[int, int], list[_Match]] = defaultdict(list)
    for match in _matches(prints):
        alike[match.patients].append(match)
    found = []
    for pair in sorted({*identical, *alike}):
        matches, same = alike[pair], identical[pair]
        least = min(len(prints[number].numbers) for number in pair)
        similar = max(same, min(len({match.slices[side] for match in matches}) for side in (0, 1)))
        if similar < max(1, min(2, least)):  # a single slice in common may be a blank one
            continue
        if not matches:
            found.append(Copies(*pair, same, similar))
            continue
        best = max(matches, key=lambda match: match.correlation)
        first, second = (prints[number].pictures[at] for number, at in zip(pair, best.slices, strict=True))
        found.append(Copies(*pair, same, similar, best.mirrored, best.correlation, (first, second)))
    return sorted(found, key=lambda each: (-each.identical, -each.similar, -each.correlation))


@dataclass(frozen=True)
class _Match:
    patients: tuple[int, int]
    slices: tuple[int, int]
    mirrored: str
    correlation: float


def _matches(prints: Sequence[Prints]) -> Iterator[_Match]:
    step = max(1, -(-sum(len(each.numbers) for each in prints) // _MOST_SLICES))
    chosen = [(patient, at) for patient, each in enumerate(prints) for at in range(0, len(each.numbers), step)]
    if len(chosen) < 2:
        return
    owners = np.array([patient for patient, _ in chosen])
    fine = np.stack([prints[patient].pictures[at] for patient, at in chosen])
    coarse = fine.reshape(len(fine), _COARSE, _SIDE // _COARSE, _COARSE, -1).mean((2, 4), dtype=np.float32)
    for mirrored, axes in _MIRRORS.items():
        for one, other in _candidates(coarse, np.flip(coarse, axes), owners):
            correlation = _correlation(fine[one], np.flip(fine[other], tuple(axis - 1 for axis in axes)))
            if correlation >= SAME:
                patients, slices = zip(chosen[one], chosen[other], strict=True)
                yield _Match(patients, slices, mirrored, correlation)  # type: ignore[arg-type]


def _candidates(
    pictures: NDArray[np.float32], mirrored: NDArray[np.float32], owners: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pairs of slices of two patients that may show the same, ``[N, 2]``."""
    first, second = (_unit(_edges(each)).reshape(len(each), -1) for each in (pictures, mirrored))
    pairs, values = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK] @ second.T
        rows, columns = np.nonzero((block >= _CANDIDATE) & (owners[start : start + _BLOCK, None] < owners))
        pairs.append(np.stack([rows + start, columns], axis=1))
        values.append(block[rows, columns])
    every, value = np.concatenate(pairs), np.concatenate(values)
    return every[np.argsort(-value, kind="stable")[:_MOST_CANDIDATES]]


def _correlation(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    """The highest correlation of the edges of two pictures, one of them moved by up to a pixel each way."""
    first, second = (np.fft.rfft2(_unit(_edges(each[None].astype(np.float32)))[0]) for each in (one, other))
    by_move = np.fft.irfft2(first * second.conj(), s=one.shape)
    near = np.arange(-_MOVED, _MOVED + 1)
    return float(by_move[np.ix_(near, near)].max())


def _edges(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    edges = pictures - ndimage.gaussian_filter(pictures, (0, 1, 1))
    return edges - edges.mean((1, 2), keepdims=True)  # type: ignore[no-any-return]


def _unit(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    return pictures / np.maximum(np.linalg.norm(pictures, axis=(1, 2), keepdims=True), 1e-9)  # type: ignore[no-any-return]
