"""Draw one head of the phantom: scalp, skull and brain, folds, ventricles, lesions, and then the scanner's faults.

Lengths are in units of half the picture, ``u`` to the right, ``v`` down (towards the back of the head), ``w`` up
through the slices. A shape is a function that is below 1 inside, turned into a soft membership between 0 and 1, so that
edges are not jagged. Intensities run from 0 (air) to 1 (fat) until the scanner's gain. Drawn with
:mod:`monai_fp4.data.phantoms.drawing`, so every machine gets the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from monai_fp4.data.phantoms.drawing import Field, clouds, inside, noise, norm

__all__ = ["Head", "Lesion", "draw_head"]

# Pre-contrast T1, FLAIR, post-contrast T1.
_SCALP = (0.80, 0.78, 0.86)
_SKULL = (0.10, 0.06, 0.10)
_FLUID = (0.14, 0.09, 0.16)
_GREY = (0.40, 0.50, 0.44)
_WHITE = (0.54, 0.40, 0.57)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Shape of a head and faults of its scanner."""

    size: int  # pixels along each side
    slices: int  # number of slices
    width: float  # half the width
    length: float  # half the length, front to back
    shift: tuple[float, float]  # of the centre, right and down
    tilt: float  # half-angle tangent of the rotation in the plane
    ventricles: float  # scale of the ventricles
    gains: tuple[float, ...]  # grey level of intensity 1, a channel each
    curves: tuple[float, ...]  # bend of the grey scale, a channel each; 1 is straight
    bias: float  # amplitude of the smooth shading
    noise: float  # standard deviation in grey levels, roughly
    caps: float  # brightness in FLAIR around the ventricles, which is no tumour
    spots: int  # number of bright dots in FLAIR, which are no tumour either
    post_contrast: bool  # False: the third channel repeats FLAIR


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A tumour."""

    centre: tuple[float, float, float]  # where, as (u, v, w)
    radius: float  # mean radius
    stretch: tuple[float, float, float]  # factors of the radius along the three axes
    contrast: float  # change of FLAIR against the tissue; negative: dark
    softness: float  # width of the fading edge, as a share of the radius
    ragged: float  # how far the outline strays from an ellipsoid
    rim: float  # brightness of a ring after contrast; 0: none
    core: float  # how much of the middle is fluid; 0: none


def draw_head(
    head: Head, lesions: Sequence[Lesion], random: RandomState
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the three channels and the mask: uint8 ``[3, H, W, D]``, and uint8 ``[H, W, D]`` of 0 and 1."""
    shape = (head.size, head.size, head.slices)
    u, v, w = _coordinates(head)
    outline = 1.0 + 0.05 * clouds(random, shape, 3)
    radius = norm(u / (head.width * (1.0 + 0.09 * v)), v / head.length, w / 1.05) * outline
    folds = 0.7 * clouds(random, shape, 13) + 0.45 * clouds(random, shape, 21)
    brain = inside(radius + 0.02 * folds, 0.87, 0.03)
    fluid, caps = _fluid(head, u, v, w, radius, folds, random)
    grey = _grey(u, v, w, radius, folds)
    texture = 0.03 * clouds(random, shape, 24)

    fat = 0.94 + 0.03 * clouds(random, shape, 5)
    scalp = (
        inside(radius, 1.0, 0.02) * np.clip((radius - fat) / 0.02, 0.0, 1.0) * (0.8 + 0.35 * clouds(random, shape, 9))
    )
    skull = inside(radius, 1.0, 0.02)
    channels = [grey * _GREY[channel] + (1.0 - grey) * _WHITE[channel] + texture for channel in range(3)]
    for _ in range(head.spots):
        place = [(2.0 * float(random.random_sample()) - 1.0) * reach for reach in (0.4, 0.55, 0.5)]
        dot = 0.02 + 0.035 * float(random.random_sample())
        spot = inside(norm((u - place[0]) / dot, (v - place[1]) / dot, (w - place[2]) / (2.5 * dot)), 1.0, 0.6)
        channels[1] = channels[1] + 0.28 * spot
    channels[1] = channels[1] + head.caps * caps

    mask = np.zeros(shape, dtype=bool)
    for lesion in lesions:
        distance = _lesion_distance(lesion, u, v, w, random)
        _add_lesion(channels, lesion, distance, clouds(random, shape, 8))
        mask |= (distance < 1.0) & (radius < 0.86)
    for channel in range(3):
        inner = fluid * _FLUID[channel] + (1.0 - fluid) * channels[channel]
        channels[channel] = brain * inner + (1.0 - brain) * (skull * _SKULL[channel] + scalp * _SCALP[channel])
    channels[2] = channels[2] + 0.3 * brain * _vessels(u, v, radius, folds) if head.post_contrast else channels[1]
    image = np.stack([_scan(channels[channel], head, channel, random) for channel in range(3)])
    if not head.post_contrast:
        image[2] = image[1]
    return image, mask.astype(np.uint8)


def _coordinates(head: Head) -> tuple[Field, Field, Field]:
    axis = (2.0 * np.arange(head.size) + 1.0 - head.size) / head.size
    right, down = axis[None, :, None] - head.shift[0], axis[:, None, None] - head.shift[1]
    # A rotation without sine and cosine: both are rational in the tangent of half the angle.
    cosine = (1.0 - head.tilt * head.tilt) / (1.0 + head.tilt * head.tilt)
    sine = 2.0 * head.tilt / (1.0 + head.tilt * head.tilt)
    up: Field = -0.55 + 1.3 * np.arange(head.slices, dtype=np.float64) / (head.slices - 1.0)
    return cosine * right - sine * down, sine * right + cosine * down, up[None, None, :]


def _fluid(
    head: Head, u: Field, v: Field, w: Field, radius: Field, folds: Field, random: RandomState
) -> tuple[Field, Field]:
    """Membership of cerebrospinal fluid, and of the brightish caps around the ventricles."""
    side = np.abs(u) / head.ventricles
    height = (w - 0.08) / (0.38 * head.ventricles)
    front = norm((side - 0.075 - 0.12 * (-0.12 - v)) / 0.055, (v + 0.17) / 0.17, height)
    back = norm((side - 0.11 - 0.35 * (v - 0.15)) / 0.06, (v - 0.20) / 0.20, height)
    ventricle = np.minimum(front, back) * (1.0 + 0.12 * clouds(random, folds.shape, 6))
    caps = inside(ventricle, 1.55, 0.5) * (1.0 - inside(ventricle, 1.0, 0.2))
    # Folds: fluid where the noise crosses zero, the more the nearer to the surface.
    sulci = np.clip((radius - 0.48) / 0.30, 0.0, 1.0) * np.clip(1.0 - np.abs(folds) / 0.13, 0.0, 1.0)
    fissure = inside(np.abs(u), 0.012, 0.02) * np.clip(
        (np.abs(v + 0.02) - 0.30) / 0.1 + np.maximum(w - 0.3, 0.0) * 8.0, 0.0, 1.0
    )
    gap = np.clip((radius - 0.845) / 0.02, 0.0, 1.0)
    return np.maximum(
        np.maximum(inside(ventricle, 1.0, 0.25), 0.85 * sulci), np.maximum(0.9 * fissure, 0.8 * gap)
    ), caps


def _grey(u: Field, v: Field, w: Field, radius: Field, folds: Field) -> Field:
    """Share of grey matter: a ribbon along the folds and the surface, and two nuclei in the middle."""
    ribbon = np.clip((radius - 0.45) / 0.2, 0.0, 1.0) * np.clip(1.4 - np.abs(folds) / 0.28, 0.0, 1.0)
    surface = np.clip((radius - 0.76) / 0.05, 0.0, 1.0)
    nuclei = inside(norm((np.abs(u) - 0.17) / 0.10, (v - 0.02) / 0.16, (w + 0.08) / 0.25), 1.0, 0.3)
    return np.maximum(np.maximum(ribbon, surface), 0.8 * nuclei)


def _lesion_distance(lesion: Lesion, u: Field, v: Field, w: Field, random: RandomState) -> Field:
    """Below 1 inside the tumour."""
    du, dv, dw = (
        (axis - centre) / (lesion.radius * stretch)
        for axis, centre, stretch in zip((u, v, w), lesion.centre, lesion.stretch, strict=True)
    )
    distance = norm(du, dv, dw)
    return distance * (
        1.0 + lesion.ragged * (clouds(random, distance.shape, 7) + 0.5 * clouds(random, distance.shape, 18))
    )


def _add_lesion(channels: list[Field], lesion: Lesion, distance: Field, blotches: Field) -> None:
    """Change the tissue within a tumour, in place; the edge fades before the mask ends."""
    body = inside(distance, 1.0 - 0.25 * lesion.softness, lesion.softness)
    core = inside(distance, 0.6, 0.25) * lesion.core
    ring = np.clip(1.0 - np.abs(distance - 0.72) / 0.16, 0.0, 1.0)
    strength = abs(lesion.contrast)
    # Tumour tissue is its own: grey and white matter can no longer be told apart in it.
    own = (_WHITE[0] - 0.10 - 0.30 * strength, _WHITE[1] + lesion.contrast, _WHITE[2] - 0.08 - 0.25 * strength)
    for channel in range(3):
        inner = own[channel] + 0.06 * blotches
        inner = inner + core * (_FLUID[channel] + 0.06 - inner)
        channels[channel] = channels[channel] + 0.9 * body * (inner - channels[channel])
    channels[2] = channels[2] + lesion.rim * ring * body


def _vessels(u: Field, v: Field, radius: Field, folds: Field) -> Field:
    """Vessels shine after contrast: the sinus at the back and here and there a fold."""
    sinus = inside(norm(u / 0.05, (v - 0.75) / 0.06, 0.0 * radius), 1.0, 0.5)
    veins = np.clip((radius - 0.72) / 0.1, 0.0, 1.0) * np.clip((folds - 0.45) / 0.1, 0.0, 1.0)
    return np.maximum(sinus, veins)


def _scan(channel: Field, head: Head, number: int, random: RandomState) -> NDArray[np.uint8]:
    """Shading, the scanner's grey scale, and noise that is never below zero, as in a magnitude image."""
    bend = head.curves[number]
    shaded = np.clip(channel * (1.0 + head.bias * clouds(random, channel.shape, 1)), 0.0, 1.2)
    signal = head.gains[number] * shaded / (shaded + bend * (1.0 - shaded) + 0.02)
    real, imaginary = (noise(random, channel.shape) * head.noise for _ in range(2))
    grey = np.sqrt((signal + real) * (signal + real) + imaginary * imaginary)
    return np.clip(np.floor(grey + 0.5), 0.0, 255.0).astype(np.uint8)
