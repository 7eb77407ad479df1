"""Grow the vessels and airways of a lung: tubes that branch from the hilum outwards and get thinner.

What crosses a slice looks like a dot there, of the size of a small nodule; only that it goes on in the next slice
and has a branch tells them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from numpy.random import RandomState

from monai_fp4.data.phantoms.drawing import Point, uniform

__all__ = ["Segment", "grow_tree"]


@dataclass(frozen=True)
class Segment:
    """A piece of tube: both ends, and the radii there."""

    ends: tuple[Point, Point]
    radii: tuple[float, float]


def grow_tree(random: RandomState, root: Point, direction: Point, radius: float, thinnest: float) -> list[Segment]:
    """One tree, the trunk first; a branch thinner than ``thinnest`` is left out."""
    segments: list[Segment] = []
    open_ends = [(root, _unit(direction), radius)]
    while open_ends:
        start, heading, thick = open_ends.pop()
        length = (2.4 + 2.2 * float(random.random_sample())) * (0.02 + thick)
        end = _add(start, heading, length)
        thin = 0.94 * thick
        segments.append(Segment((start, end), (thick, thin)))
        outward = (end[0] - root[0], end[1] - root[1], end[2] - root[2])
        for share in (uniform(random, 0.76, 0.92), uniform(random, 0.5, 0.76)):
            # A thick child goes on nearly straight, a thin one turns away; both go on outwards.
            turn = 1.6 * (1.0 - share) + 0.15
            aside: Point = (uniform(random, -1.0, 1.0), uniform(random, -1.0, 1.0), uniform(random, -1.0, 1.0))
            child = _unit(_add(_add(heading, _unit(aside), turn), _unit(outward), 0.25))
            if thin * share >= thinnest:
                open_ends.append((end, child, thin * share))
    return segments


def _unit(vector: Point) -> Point:
    length = max(math.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]), 1e-9)
    return (vector[0] / length, vector[1] / length, vector[2] / length)


def _add(start: Point, step: Point, factor: float) -> Point:
    return (start[0] + factor * step[0], start[1] + factor * step[1], start[2] + factor * step[2])
