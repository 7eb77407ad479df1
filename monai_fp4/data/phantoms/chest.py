"""Model of a synthetic chest and of its scanner, from which `nodules` draws at random.

Lengths are in units of half the picture, ``u`` to the right (the patient's left), ``v`` down (towards the back), ``w``
up through the slices. Values are Hounsfield units: air -1000, lung about -850, fat -100, water 0, muscle 50, bone from
200 on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monai_fp4.data.phantoms.drawing import Axes, Field, Point

__all__ = ["AIR", "BLOOD", "CALCIUM", "CORTEX", "EDGE", "FAT", "MARROW", "MUSCLE", "Chest", "Nodule", "mix"]

AIR = -1000.0
"""Hounsfield units of air."""
FAT = -100.0
"""Hounsfield units of fat."""
BLOOD = 40.0
"""Hounsfield units of blood."""
MUSCLE = 50.0
"""Hounsfield units of muscle."""
MARROW = 180.0
"""Hounsfield units of bone marrow."""
CORTEX = 500.0
"""Hounsfield units of cortical bone."""
CALCIUM = 700.0
"""Hounsfield units of a calcified nodule."""
EDGE = 2.4
"""Width of a soft edge, in units of the picture over its pixels: a little more than a pixel."""


@dataclass(frozen=True, kw_only=True)
class Chest:
    """Shape of a chest and faults of its scanner."""

    size: int  # pixels along each side
    slices: int  # how many
    pixel: float  # distance of two pixels in millimetres
    spacing: float  # distance of two slices in millimetres
    width: float  # half the width of the rib cage
    depth: float  # half its depth, front to back
    fat: float  # thickness of the fat
    shift: tuple[float, float]  # of the centre, right and down
    lung: float  # value of lung tissue in the middle
    emphysema: float  # share of the lung that is too dark, roughly
    haze: float  # what gravity adds at the back, in Hounsfield units
    noise: float  # standard deviation, in Hounsfield units
    smooth: float  # of a soft kernel, how much a pixel takes from its neighbours; 0 is a sharp one
    padded: bool  # the corners outside the scanner's circle are -1024 throughout
    calcified: int  # dots of chalk, bright and harmless
    plaques: int  # thickened patches of the pleura, harmless too

    @property
    def axes(self) -> Axes:
        """Coordinates of the voxels, in units of half the picture."""
        place = (2.0 * np.arange(self.size) + 1.0 - self.size) / self.size
        step = self.spacing / (self.pixel * self.size / 2.0)
        up = step * (np.arange(self.slices, dtype=np.float64) - (self.slices - 1.0) / 2.0)
        return Axes(right=place - self.shift[0], down=place - self.shift[1], up=up)


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """A nodule; where it lies is drawn at random, within the lung."""

    radius: float  # mean radius
    stretch: Point  # factors of the radius along the three axes
    value: float  # Hounsfield units of the whole; -600 is ground glass, 40 is solid
    core: float | None  # Hounsfield units of a middle of half the radius, in a part-solid nodule; None: none
    ragged: float  # how far the outline strays from an ellipsoid
    pleural: bool  # lies against the chest wall


def mix(values: Field, share: Field, other: Field | float) -> Field:
    """Put ``other`` in place of ``values`` by the share of each voxel, as a scanner averages what lies in it."""
    return values + share * (other - values)
