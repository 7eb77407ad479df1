"""Drawing tools of the synthetic data sets: soft shapes, smooth noise, tubes.

Every operation is one that IEEE 754 rounds in one way only (sums, products, quotients, square roots, comparisons, each
element by itself), and every random number comes from NumPy's legacy ``RandomState``, whose stream is frozen. So a
picture is the same, bit for bit, on every machine, and a manifest can hold the hash of its file: no sine, no
exponential, no reduction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

__all__ = ["Axes", "Field", "Point", "clouds", "inside", "noise", "norm", "paint_tube", "uniform"]

Field = NDArray[np.float64]
"""A number at each pixel or voxel."""
Point = tuple[float, float, float]
"""Three coordinates."""


def uniform(random: RandomState, low: float, high: float) -> float:
    """One random number between two bounds."""
    return low + (high - low) * float(random.random_sample())


def norm(x: Field, y: Field, z: Field) -> Field:
    """Length of the vector of three fields.

    >>> norm(np.array([3.0]), np.array([4.0]), np.array([12.0]))
    array([13.])
    """
    return np.sqrt(x * x + y * y + z * z)


def inside(distance: Field, edge: float | Field, width: float) -> Field:
    """1 inside ``edge``, 0 outside, a straight ramp of ``width`` between.

    >>> inside(np.array([0.0, 1.0, 1.05, 2.0]), 1.0, 0.2)
    array([1.  , 0.5 , 0.25, 0.  ])
    """
    return np.clip(0.5 + (edge - distance) / width, 0.0, 1.0)


def clouds(random: RandomState, shape: tuple[int, int, int], cells: int) -> Field:
    """Smooth noise between -1 and 1: random numbers on a lattice of ``cells`` along each side, blended in between.

    The third axis, that of the slices, has a quarter of the cells.
    """
    grid = [cells + 2, cells + 2, max(2, cells // 4) + 2]
    values = 2.0 * random.random_sample(grid[0] * grid[1] * grid[2]).reshape(grid) - 1.0
    for axis in range(3):
        position = np.arange(shape[axis]) * ((grid[axis] - 1.5) / shape[axis])
        low = np.floor(position).astype(np.int64)
        part = position - low
        weight = part * part * (3.0 - 2.0 * part)
        weight = weight.reshape([-1 if other == axis else 1 for other in range(3)])
        values = np.take(values, low, axis=axis) * (1.0 - weight) + np.take(values, low + 1, axis=axis) * weight
    return values


def noise(random: RandomState, shape: tuple[int, ...]) -> Field:
    """Nearly normal, variance 1: the sum of three uniform numbers between -1 and 1."""
    one, two, three = (2.0 * random.random_sample(shape) - 1.0 for _ in range(3))
    return one + two + three


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Coordinates of the voxels of ``[rows, columns, slices]``, one ascending array an axis, in one unit of length.

    Attributes:
        right: ``u`` of every column.
        down: ``v`` of every row.
        up: ``w`` of every slice.
    """

    right: Field
    down: Field
    up: Field

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, slices."""
        return len(self.down), len(self.right), len(self.up)

    @property
    def fields(self) -> tuple[Field, Field, Field]:
        """``u``, ``v`` and ``w``, shaped to broadcast to the volume."""
        return self.right[None, :, None], self.down[:, None, None], self.up[None, None, :]


def paint_tube(field: Field, axes: Axes, ends: tuple[Point, Point], radii: tuple[float, float], width: float) -> None:
    """Raise ``field`` to 1 within a round tube, in place; only the box around the tube is computed.

    Args:
        field: ``[rows, columns, slices]``.
        axes: where its voxels are.
        ends: both ends, as (u, v, w); the tube is rounded off beyond them.
        radii: at both ends.
        width: of the soft edge.
    """
    reach = max(radii) + width
    box = []
    for values, first, last in zip((axes.right, axes.down, axes.up), *ends, strict=True):
        low, high = np.searchsorted(values, [min(first, last) - reach, max(first, last) + reach])
        if low == high:
            return
        box.append(slice(int(low), int(high)))
    (a, b, c), step = ends[0], [end - start for start, end in zip(*ends, strict=True)]
    u, v, w = axes.right[None, box[0], None], axes.down[box[1], None, None], axes.up[None, None, box[2]]
    length = max(step[0] * step[0] + step[1] * step[1] + step[2] * step[2], 1e-12)
    along = np.clip(((u - a) * step[0] + (v - b) * step[1] + (w - c) * step[2]) / length, 0.0, 1.0)
    distance = norm(u - a - along * step[0], v - b - along * step[1], w - c - along * step[2])
    place = (box[1], box[0], box[2])
    field[place] = np.maximum(field[place], inside(distance, radii[0] + (radii[1] - radii[0]) * along, width))
