"""Draw all of a synthetic chest that is no lung: skin to ribs, and what lies between the lungs.

Units and tissues are those of :mod:`monai_fp4.data.phantoms.chest`. A shape is a function that is below 1 inside.
"""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from monai_fp4.data.phantoms.chest import AIR, BLOOD, CORTEX, EDGE, FAT, MARROW, MUSCLE, Chest, mix
from monai_fp4.data.phantoms.drawing import Axes, Field, clouds, inside, norm, paint_tube, uniform

__all__ = ["draw_body"]


def draw_body(chest: Chest, axes: Axes, random: RandomState) -> tuple[Field, Field, Field]:
    """Hounsfield units of a chest whose lungs are not drawn yet, the share of lung, and the distance in the cage.

    All are ``[H, W, D]``; the distance is 1 on the inner side of the ribs.
    """
    u, v, w = axes.fields
    soft = EDGE / chest.size
    cage = norm(u / chest.width, v / chest.depth, 0.0 * w) * (1.0 + 0.03 * clouds(random, axes.shape, 3))
    middle, heart = _middle(chest, u, v, w, clouds(random, axes.shape, 5))
    lung = inside(cage, 1.0, 1.6 * soft) * (1.0 - inside(middle, 1.0, 6.0 * soft))
    hu = _wall(chest, u, v, w, cage, random)
    hu = mix(hu, inside(cage, 1.02, 1.6 * soft), FAT + 12.0 * clouds(random, axes.shape, 14))
    return _organs(hu, chest, heart, axes, random), lung, cage


def _middle(chest: Chest, u: Field, v: Field, w: Field, wobble: Field) -> tuple[Field, Field]:
    """Distances, below 1 within: all that lies between the lungs, and the heart, which grows downwards."""
    grown = np.clip(0.78 - 1.3 * w, 0.45, 1.15)
    heart = norm((u - 0.13 * grown) / (0.37 * grown), (v + 0.10) / (0.30 * grown), 0.0 * w) * (1.0 + 0.05 * wobble)
    narrow = 0.17 - 0.12 * np.clip((-0.12 - v) / 0.22, 0.0, 1.0)
    trunk = norm(u / narrow, (v + 0.08) / 0.62, 0.0 * w) * (1.0 + 0.12 * wobble)
    hilum = norm(u / 0.27, (v - 0.07) / 0.12, (w + 0.02) / 0.17) * (1.0 + 0.2 * wobble)
    spine = norm(u / 0.19, (v - chest.depth + 0.06) / 0.21, 0.0 * w)
    aorta = norm((u - 0.12) / 0.115, (v - chest.depth + 0.27) / 0.115, 0.0 * w)
    return np.minimum(np.minimum(np.minimum(heart, trunk), np.minimum(spine, aorta)), hilum), heart


def _organs(hu: Field, chest: Chest, heart: Field, axes: Axes, random: RandomState) -> Field:
    """Heart, great vessels, spine, windpipe and its fork, in the fat between the lungs."""
    u, v, w = axes.fields
    soft = EDGE / chest.size
    hu = mix(hu, inside(heart, 0.93, 6.0 * soft), BLOOD + 8.0 * clouds(random, axes.shape, 6))
    back = chest.depth
    for centre, radius in (
        ((0.12, back - 0.27), 0.085),  # descending aorta
        ((-0.07, -0.20), 0.10),  # ascending aorta
        ((-0.13, -0.06), 0.06),  # superior vena cava
        ((0.02, back - 0.24), 0.03),  # oesophagus
    ):
        round_ = norm((u - centre[0]) / radius, (v - centre[1]) / radius, 0.0 * w)
        hu = mix(hu, inside(round_, 1.0, 10.0 * soft), BLOOD)
    artery = norm((u - 0.05) / 0.19, (v + 0.08) / 0.065, (w - 0.06) / 0.07)
    hu = mix(hu, inside(artery, 1.0, 8.0 * soft), BLOOD)
    hu = mix(hu, inside(norm(u / 0.16, (v - back) / 0.17, 0.0 * w), 1.0, 10.0 * soft), MUSCLE)
    hu = _bone(hu, norm(u / 0.115, (v - back + 0.08) / 0.095, 0.0 * w), soft)
    hu = _bone(hu, norm(u / 0.14, (v - back - 0.06) / 0.06, 0.0 * w), soft)
    hu = _bone(hu, norm(u / 0.028, (v - back - 0.15) / 0.07, 0.0 * w), soft)
    hu = mix(hu, inside(norm(u / 0.05, (v - back - 0.045) / 0.04, 0.0 * w), 1.0, 20.0 * soft), 25.0)
    wall, lumen = np.zeros(axes.shape), np.zeros(axes.shape)
    fork = uniform(random, 0.0, 0.10)
    tubes = [(((0.0, 0.07, fork), (0.0, 0.03, 2.0)), 0.060)]
    tubes += [(((0.0, 0.07, fork), (side * 0.25, 0.12, fork - 0.12)), 0.043) for side in (-1.0, 1.0)]
    for ends, radius in tubes:
        paint_tube(wall, axes, ends, (radius + 0.014, 0.8 * radius + 0.014), soft)
        paint_tube(lumen, axes, ends, (radius, 0.8 * radius), soft)
    return mix(mix(hu, wall, 0.0), lumen, AIR)


def _wall(chest: Chest, u: Field, v: Field, w: Field, cage: Field, random: RandomState) -> Field:
    """Air, couch, fat, muscle, ribs, shoulder blades and breastbone."""
    soft = EDGE / chest.size
    shape = cage.shape
    wobble = clouds(random, shape, 4)
    outer = norm(u / (chest.width + 0.10 + chest.fat), v / (chest.depth + 0.09 + chest.fat), 0.0 * w)
    outer = outer * (1.0 + 0.015 * wobble)
    hu = np.zeros(shape) + AIR
    couch = np.abs(v - 0.10 * u * u - chest.depth - chest.fat - 0.17)
    hu = mix(hu, inside(couch, 0.012, soft) * inside(np.abs(u), 0.62, 0.05), -350.0)
    hu = mix(hu, inside(outer, 1.0, 1.5 * soft), FAT + 10.0 * clouds(random, shape, 12))
    muscle = norm(u / (chest.width + 0.085), v / (chest.depth + 0.075), 0.0 * w) * (1.0 + 0.03 * wobble)
    planes = np.clip((clouds(random, shape, 17) - 0.35) / 0.2, 0.0, 1.0)
    hu = mix(hu, inside(muscle, 1.0, 1.5 * soft), MUSCLE - 120.0 * planes)
    # In place of an angle, without a sine: 0 in front, 2 at the back. Ribs slope, so they move from slice to slice.
    around = 1.0 + v / (np.abs(u) + np.abs(v) + 1e-9)
    turn = 2.6 * around - 2.2 * w + np.where(u < 0.0, uniform(random, 0.0, 1.0), uniform(random, 0.0, 1.0))
    beat = np.abs(turn - np.floor(turn) - 0.5) * 2.0
    rib = np.maximum(np.abs(cage - 1.08) / 0.045, 1.0 + (beat - 0.55) * 5.0)
    hu = _bone(hu, rib, soft)
    blade = norm(
        (np.abs(u) - 0.72 * chest.width + 0.5 * (v - chest.depth)) / 0.17,
        (v - 0.86 * chest.depth + 0.55 * (np.abs(u) - 0.72 * chest.width)) / 0.028,
        (w - 0.3) / 0.42,
    )
    hu = _bone(hu, blade, soft)
    return _bone(hu, norm(u / 0.11, (v + chest.depth + 0.055) / 0.03, 0.0 * w), soft)


def _bone(hu: Field, distance: Field, soft: float) -> Field:
    """Bone below 1: marrow, and a bright shell around it."""
    hu = mix(hu, inside(distance, 1.0, 10.0 * soft), CORTEX)
    return mix(hu, inside(distance, 0.55, 10.0 * soft), MARROW)
