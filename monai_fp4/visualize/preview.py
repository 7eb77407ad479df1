"""The preview of a prediction: slices of a scan, with the model's contour below.

Drawn with Pillow, since there is one for each study: laying out the same picture with matplotlib takes longer than
segmenting the study.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["fitted", "mask_thumbnail", "prediction_preview"]

_SIDE, _GAP, _LINE = 360, 8, 20
_CONTOUR, _REFERENCE = (255, 77, 109), (0, 230, 118)
_QUALITY = 85


def prediction_preview(
    slices: Sequence[tuple[int, NDArray[np.float32], NDArray[np.bool_]]],
    *,
    depth: int,
    title: str = "",
    sides: tuple[str, str] | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> bytes:
    """Draw slices without a reference: the scan alone above, with the model's contour below.

    Args:
        slices: number from 0, grey values `[H, W]` in 0..1 and mask `[H, W]` of each, at least one, all of one size.
        depth: how many slices the scan has.
        title: above them.
        sides: what the left and the right border of a picture are of the patient, such as ``("R", "L")``.
        spacing: distance of rows and of columns, in any unit; pixels that are no squares are drawn as they are.

    Returns:
        A PNG; the same slices give the same bytes.
    """
    size = fitted(slices[0][1].shape, spacing, _SIDE)[::-1]
    # Where pixels share one of the picture, it shows them all: of one marked pixel in a large slice nothing is lost.
    shrinks = any(new < old for new, old in zip(size, slices[0][1].shape[::-1], strict=True))
    way = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    width = max(len(slices) * (_SIDE + _GAP) + _GAP, 2 * _SIDE)
    picture = Image.new("RGB", (width, 3 * _LINE + 2 * size[1] + 3 * _GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    draw.text((_GAP, _GAP // 2), title, "black", font)
    for place, (number, image, mask) in enumerate(slices):
        left, top = _GAP + place * (_SIDE + _GAP), _LINE + _GAP
        grey = Image.fromarray(np.rint(image * 255).astype(np.uint8)).resize(size, way)
        draw.text((left, top), f"slice {number + 1} of {depth}", "black", font)
        picture.paste(grey, (left, top + _LINE))
        _mark_sides(draw, sides, (left, top + _LINE), size, font)
        top += _LINE + size[1] + _GAP
        count = int(np.count_nonzero(mask))
        draw.text((left, top), f"{count:,} pixels marked" if count else "nothing marked", "black", font)
        picture.paste(grey, (left, top + _LINE))
        large = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, way)) > 0
        contour = Image.fromarray((_rim(large) * np.uint8(255)).astype(np.uint8))
        picture.paste(_CONTOUR, (left, top + _LINE), contour)
        _mark_sides(draw, sides, (left, top + _LINE), size, font)
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def fitted(shape: tuple[int, ...], spacing: tuple[float, float], side: int) -> tuple[int, int]:
    """Rows and columns of a picture whose longer side has so many, of a slice with pixels of this size.

    >>> fitted((100, 50), (1.0, 1.0), 200), fitted((100, 50), (1.0, 4.0), 200)
    ((200, 100), (100, 200))
    """
    height, width = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _mark_sides(
    draw: ImageDraw.ImageDraw, sides: tuple[str, str] | None, corner: tuple[int, int], size: tuple[int, int], font: Any
) -> None:
    """Write at the middle of both borders which side of the patient is there."""
    for name, anchor, across in zip(sides or (), ("lm", "rm"), (3, size[0] - 3), strict=False):
        place = corner[0] + across, corner[1] + size[1] // 2
        draw.text(place, name, "white", font, anchor=anchor, stroke_width=1, stroke_fill="black")


def mask_thumbnail(image: NDArray[np.float32], mask: NDArray[np.bool_]) -> bytes:
    """Draw one slice with the outline of its mask.

    Args:
        image: grey values `[H, W]` in 0..1.
        mask: `[H, W]`.

    Returns:
        A WebP picture; the same slice gives the same bytes.
    """
    picture = Image.fromarray(np.rint(image * 255).astype(np.uint8)).convert("RGB")
    picture.paste(_REFERENCE, (0, 0), Image.fromarray((_rim(mask, 1) * np.uint8(255)).astype(np.uint8)))
    content = io.BytesIO()
    picture.save(content, format="WEBP", quality=_QUALITY, use_sharp_yuv=True)
    return content.getvalue()


def _rim(mask: NDArray[np.bool_], deep: int = 2) -> NDArray[np.bool_]:
    """The pixels of a mask, so many deep, from which background or the edge of the picture is near."""
    inner = np.pad(mask, deep)
    for axis in (0, 1):
        inner = np.logical_and.reduce([np.roll(inner, shift, axis) for shift in range(-deep, deep + 1)])
    return mask & ~inner[deep:-deep, deep:-deep]
