"""Draw what is in the lungs of a synthetic chest: air, vessels, airways, harmless dots and patches, and nodules.

Units and tissues are those of :mod:`monai_fp4.data.phantoms.chest`. Of all that is brighter than air only nodules are
marked in the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from monai_fp4.data.phantoms.chest import AIR, BLOOD, CALCIUM, EDGE, MUSCLE, Chest, Nodule, mix
from monai_fp4.data.phantoms.drawing import Axes, Field, Point, clouds, inside, norm, paint_tube, uniform
from monai_fp4.data.phantoms.lung_trees import grow_tree

__all__ = ["draw_lungs"]


def draw_lungs(
    hu: Field, lung: Field, cage: Field, chest: Chest, nodules: Sequence[Nodule], axes: Axes, random: RandomState
) -> tuple[Field, NDArray[np.bool_]]:
    """Fill the lungs of a body ``[H, W, D]``; ``cage`` is the distance in the cage, 1 on the inner side of the ribs.

    Returns:
        The values, and True where there is a nodule.
    """
    v = axes.fields[1]
    air = chest.lung + chest.haze * v * np.abs(v) / (chest.depth * chest.depth) + 22.0 * clouds(random, axes.shape, 26)
    air = air - 70.0 * np.clip((clouds(random, axes.shape, 11) + chest.emphysema - 0.6) / 0.3, 0.0, 1.0)
    hu = _trees(mix(hu, lung, air), chest, lung, axes, random)
    hu = _harmless(hu, chest, lung, cage, axes, random)
    mask = np.zeros(axes.shape, dtype=bool)
    for nodule in nodules:
        hu = _add_nodule(hu, mask, nodule, lung, cage, axes, random)
    return hu, mask


def _trees(hu: Field, chest: Chest, lung: Field, axes: Axes, random: RandomState) -> Field:
    """Vessels and airways, from the hilum of each lung."""
    width = EDGE / chest.size
    vessels, walls, lumens = np.zeros(axes.shape), np.zeros(axes.shape), np.zeros(axes.shape)
    for side in (-1.0, 1.0):
        for _ in range(7):
            root = (side * uniform(random, 0.20, 0.30), uniform(random, -0.04, 0.16), uniform(random, -0.18, 0.16))
            way = (side * uniform(random, 0.3, 1.0), uniform(random, -1.0, 1.0), uniform(random, -0.8, 0.8))
            for piece in grow_tree(random, root, way, uniform(random, 0.013, 0.021), 0.0050):
                paint_tube(vessels, axes, piece.ends, piece.radii, width)
        for _ in range(2):
            root = (side * uniform(random, 0.20, 0.26), uniform(random, 0.04, 0.14), uniform(random, -0.14, 0.06))
            way = (side * uniform(random, 0.4, 1.0), uniform(random, -0.9, 0.9), uniform(random, -0.9, 0.3))
            for piece in grow_tree(random, root, way, uniform(random, 0.03, 0.04), 0.014):
                inner = (0.72 * piece.radii[0], 0.72 * piece.radii[1])
                paint_tube(walls, axes, piece.ends, piece.radii, width)
                paint_tube(lumens, axes, piece.ends, inner, width)
    hu = mix(hu, walls * lung, -250.0)
    hu = mix(hu, lumens * lung, AIR + 30.0)
    return mix(hu, vessels * lung * (1.0 - lumens), BLOOD)


def _harmless(hu: Field, chest: Chest, lung: Field, cage: Field, axes: Axes, random: RandomState) -> Field:
    """What a reader must not take for a nodule: dots of chalk, and thickened pleura."""
    u, v, w = axes.fields
    soft = EDGE / chest.size
    for _ in range(chest.calcified):
        at = _place(lung, cage, False, axes, random)
        radius = uniform(random, 0.016, 0.028)
        dot = norm((u - at[0]) / radius, (v - at[1]) / radius, (w - at[2]) / radius)
        hu = mix(hu, inside(dot, 1.0, soft / radius) * lung, CALCIUM)
    for _ in range(chest.plaques):
        at = _place(lung, cage, True, axes, random)
        reach = uniform(random, 0.09, 0.2)
        patch = norm((u - at[0]) / reach, (v - at[1]) / reach, (w - at[2]) / reach)
        thick = inside(patch, 1.0, 0.6) * np.clip((cage - uniform(random, 0.91, 0.95)) / 0.03, 0.0, 1.0)
        hu = mix(hu, thick * lung, MUSCLE)
    # The fissure: a thin, slightly bent sheet from the front of each lung to its back.
    for side in (-1.0, 1.0):
        sheet = v + uniform(random, -0.15, 0.1) - uniform(random, 0.8, 1.6) * w + 0.25 * (u - side * 0.45)
        sheet = np.abs(sheet + 0.03 * clouds(random, axes.shape, 4)) / 0.006
        hu = mix(hu, 0.22 * inside(sheet, 1.0, 2.0) * inside(side * -u, 0.0, 0.01) * lung, MUSCLE)
    return hu


def _add_nodule(
    hu: Field, mask: NDArray[np.bool_], nodule: Nodule, lung: Field, cage: Field, axes: Axes, random: RandomState
) -> Field:
    """Draw a nodule, and mark it in ``mask``, in place."""
    u, v, w = axes.fields
    at = _place(lung, cage, nodule.pleural, axes, random)
    a, b, c = (nodule.radius * stretch for stretch in nodule.stretch)
    distance = norm((u - at[0]) / a, (v - at[1]) / b, (w - at[2]) / c)
    wobble = 0.6 * clouds(random, axes.shape, 20) + 0.4 * clouds(random, axes.shape, 44)
    distance = distance * (1.0 + nodule.ragged * wobble)
    edge = EDGE / (axes.shape[0] * nodule.radius)
    hu = mix(hu, inside(distance, 1.0, edge) * lung, nodule.value + 25.0 * wobble)
    if nodule.core is not None:
        hu = mix(hu, inside(distance, 0.5, edge) * lung, nodule.core)
    mask |= (distance < 1.0) & (lung > 0.5)
    return hu


def _place(lung: Field, cage: Field, pleural: bool, axes: Axes, random: RandomState) -> Point:
    """The middle of a voxel drawn from the lungs: one beside the ribs, or one away from them."""
    low, high = (0.93, 1.0) if pleural else (0.0, 0.9)
    rows, columns, slices = np.nonzero((lung > 0.6) & (cage > low) & (cage < high))
    # Not in the first or the last slice, where most of it would be cut off.
    kept = np.nonzero((slices > 0) & (slices < len(axes.up) - 1))[0]
    chosen = kept[int(len(kept) * float(random.random_sample()))]
    return float(axes.right[columns[chosen]]), float(axes.down[rows[chosen]]), float(axes.up[slices[chosen]])
