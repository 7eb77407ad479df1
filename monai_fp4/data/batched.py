"""Apply a chain of MONAI's random transforms to a whole batch at once, on the device that the batch is on.

A MONAI dictionary transform changes one item at a time, and what it costs for a slice of 128 x 128 is bookkeeping: a
millisecond, where the arithmetic takes a tenth of it. :class:`BatchTransform` takes the transforms of a bundle as they
are, lets each of them draw its random numbers for every item, in MONAI's order and from the item's own state, and then
does the arithmetic for all items together. The same seed so gives the same flips, angles and factors as MONAI's own
call; only the interpolation differs, in the last bits, since MONAI samples in float64 and this in float32.

It knows the transforms of the study: ``RandFlipd``, ``RandAffined``, ``RandScaleIntensityd`` and
``RandShiftIntensityd``, in a ``Compose`` of any depth. For any other, :func:`batch_transform` returns ``None`` and the
data set applies the chain item by item, as MONAI does. A transform with methods ``draw`` and ``apply`` of its own, such
as `monai_fp4.data.paper_transforms.PaperAugmentationd`, is asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from monai.transforms import Compose, RandAffined, RandFlipd, RandScaleIntensityd, RandShiftIntensityd
from monai.transforms.utils import create_rotate, create_scale, create_shear, create_translate, map_spatial_axes
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BatchTransform", "batch_transform", "sampling_grid"]

Batch = dict[str, Tensor]


class _Flip:
    """``RandFlipd``: draws whether to flip."""

    def __init__(self, transform: RandFlipd) -> None:
        self.transform, self.axis = transform, transform.flipper.spatial_axis

    def draw(self, _dims: int) -> bool:
        self.transform.randomize(None)
        return bool(self.transform._do_transform)

    def apply(self, batch: Batch, drawn: list[bool]) -> None:
        for key in self.transform.keys:
            values = batch[key]
            rows = _rows(drawn, values.device)
            if len(rows):
                dims = [axis + 1 for axis in map_spatial_axes(values.ndim - 1, self.axis)]
                values.index_copy_(0, rows, values[rows].flip(dims))


class _Affine:
    """``RandAffined``: draws a matrix, or ``None`` to leave the item as it is."""

    def __init__(self, transform: RandAffined) -> None:
        self.transform = transform

    def draw(self, dims: int) -> NDArray[np.float64] | None:
        inner = self.transform.rand_affine
        self.transform.randomize(None)
        inner.randomize()
        if not self.transform._do_transform:
            return None
        # MONAI draws again when it makes the grid, and once more for every key, to no effect but on what follows.
        grid = inner.rand_affine_grid
        grid.randomize()
        parts = (
            (create_rotate, grid.rotate_params),
            (create_shear, grid.shear_params),
            (create_translate, grid.translate_params),
            (create_scale, grid.scale_params),
        )
        matrix = np.eye(dims + 1)
        for create, parameters in parts:
            if parameters:
                matrix = matrix @ np.asarray(create(dims, parameters))
        for _ in self.transform.keys:
            inner.randomize()
        return matrix[:dims]

    def apply(self, batch: Batch, drawn: list[NDArray[np.float64] | None]) -> None:
        matrices = [matrix for matrix in drawn if matrix is not None]
        if not matrices:
            return
        first = batch[self.transform.keys[0]]
        rows = _rows([matrix is not None for matrix in drawn], first.device)
        grid = sampling_grid(
            torch.tensor(np.stack(matrices), dtype=torch.float32, device=first.device), first.shape[2:]
        )
        modes = zip(self.transform.keys, self.transform.mode, self.transform.padding_mode, strict=True)
        for key, mode, padding in modes:
            sampled = functional.grid_sample(batch[key][rows], grid, str(mode), str(padding), align_corners=False)
            batch[key].index_copy_(0, rows, sampled)


class _Intensity:
    """``RandScaleIntensityd`` and ``RandShiftIntensityd``: draw the factor, or the offset."""

    def __init__(self, transform: RandScaleIntensityd | RandShiftIntensityd) -> None:
        self.transform = transform
        self.scales = isinstance(transform, RandScaleIntensityd)
        self.neutral = float(self.scales)

    def draw(self, _dims: int) -> float:
        self.transform.randomize(None)
        if not self.transform._do_transform:
            return self.neutral
        inner = self.transform.scaler if self.scales else self.transform.shifter
        inner.randomize(None)
        return self.neutral + float(inner.factor if self.scales else inner._offset)

    def apply(self, batch: Batch, drawn: list[float]) -> None:
        for key in self.transform.keys:
            values = batch[key]
            column = torch.tensor(drawn, dtype=values.dtype, device=values.device)
            (values.mul_ if self.scales else values.add_)(column.reshape(-1, *[1] * (values.ndim - 1)))


class BatchTransform:
    """A chain of random transforms, applied to batches; made by :func:`batch_transform`."""

    def __init__(self, steps: Sequence[Any]) -> None:
        self.steps = list(steps)

    def __call__(self, batch: Batch, states: Iterable[Callable[[], Any]]) -> Batch:
        """Change a batch in place.

        Args:
            batch: float32 ``image`` ``[B, C, *size]`` and ``label`` ``[B, 1, *size]``.
            states: one function an item, which seeds the transforms for it.

        Returns:
            The batch.
        """
        dims = batch["image"].ndim - 2
        drawn: list[list[Any]] = [[] for _ in self.steps]
        for seed in states:
            seed()
            for values, step in zip(drawn, self.steps, strict=True):
                values.append(step.draw(dims))
        for values, step in zip(drawn, self.steps, strict=True):
            step.apply(batch, values)
        return batch


def batch_transform(transform: Any) -> BatchTransform | None:
    """The batch-wise form of a chain of MONAI's transforms, or ``None`` if one of them is not known here.

    >>> from monai.transforms import RandFlipd
    >>> len(batch_transform(RandFlipd("image")).steps), batch_transform(lambda item: item)
    (1, None)
    """
    steps: list[Any] = []
    for each in _flat(transform):
        step = _step(each)
        if step is None:
            return None
        steps.append(step)
    return BatchTransform(steps)


def _flat(transform: Any) -> Iterable[Any]:
    if type(transform) is Compose and not transform.lazy:
        for each in transform.transforms:
            yield from _flat(each)
    else:
        yield transform


def _step(transform: Any) -> Any:
    """The step that does as the transform, if all its options are of the kind that the step knows."""
    if not set(getattr(transform, "keys", ["?"])) <= {"image", "label"} or getattr(transform, "lazy", False):
        return None
    if hasattr(transform, "draw") and hasattr(transform, "apply"):  # it says itself how a batch is changed
        return transform
    # The very classes: a subclass may do anything.
    if type(transform) is RandFlipd:
        return _Flip(transform)
    if type(transform) is RandAffined:
        inner = transform.rand_affine
        plain = inner.spatial_size is None and all(isinstance(mode, str) for mode in transform.mode)
        return _Affine(transform) if plain and not inner.lazy else None
    if type(transform) is RandScaleIntensityd:
        plain = not transform.scaler.channel_wise and transform.scaler.dtype in (None, np.float32)
        return _Intensity(transform) if plain else None
    if type(transform) is RandShiftIntensityd:
        plain = not transform.shifter.channel_wise and not any(transform.factor_key)
        return _Intensity(transform) if plain else None
    return None


def _rows(chosen: Sequence[bool], device: torch.device) -> Tensor:
    """Numbers of the chosen items, on the device; a mask there would have to be waited for."""
    return torch.tensor([row for row, yes in enumerate(chosen) if yes], dtype=torch.int64, device=device)


def sampling_grid(matrices: Tensor, size: Sequence[int]) -> Tensor:
    """Where each pixel is sampled, for ``grid_sample``: matrices ``[B, d, d + 1]`` act on pixels about the centre."""
    dims = len(size)
    axes = [torch.arange(edge, dtype=torch.float32, device=matrices.device) - (edge - 1) / 2 for edge in size]
    pixels = torch.meshgrid(*axes, indexing="ij")

    def entry(row: int, column: int) -> Tensor:
        return matrices[:, row, column].reshape(-1, *[1] * dims)

    # Sums of products and not a matrix product, whose rounding depends on the library and on the batch.
    sampled = []
    for row in reversed(range(dims)):
        position = entry(row, dims)
        for column, pixel in enumerate(pixels):
            position = position + entry(row, column) * pixel
        sampled.append(position * (2 / max(2, size[row])))
    return torch.stack(sampled, dim=-1)
