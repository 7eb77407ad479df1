"""A figure of a report with what stands around it, and its files: PNG and SVG, the same bytes for the same figure."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from monai_fp4.atomic import write_atomically
from monai_fp4.report.figures.style import STYLE

__all__ = ["Picture", "picture_bytes", "save_picture"]

_KINDS: dict[str, tuple[Any, dict[str, None]]] = {
    "png": (FigureCanvasAgg, {"Software": None}),
    "svg": (FigureCanvasSVG, {"Date": None}),
}


@dataclass
class Picture:
    """A figure of a report.

    Attributes:
        name: of its files.
        title: heading.
        caption: what is drawn, and from how many cells, seeds and folds.
        alt: what a reader who cannot see it should know.
        figure: the drawing.
        data: name of the CSV and Parquet files it was drawn from.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure
    data: str = ""

    @property
    def width(self) -> int:
        """Width on a page, in CSS pixels."""
        return round(self.figure.get_figwidth() * 96)

    @property
    def height(self) -> int:
        """Height on a page, in CSS pixels."""
        return round(self.figure.get_figheight() * 96)


def save_picture(picture: Picture, folder: Path) -> None:
    """Write a picture as PNG and SVG; the same figure gives the same bytes."""
    for kind in _KINDS:
        write_atomically(folder / f"{picture.name}.{kind}", picture_bytes(picture, kind))


def picture_bytes(picture: Picture, kind: str) -> bytes:
    """A picture as ``"png"`` or ``"svg"``; the same figure gives the same bytes."""
    canvas, metadata = _KINDS[kind]
    with mpl.rc_context(STYLE):
        buffer = BytesIO()
        canvas(picture.figure)
        picture.figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
        # Laid out once: the second format shall look like the first, and layout takes most of the time.
        picture.figure.set_layout_engine("none")
        return buffer.getvalue()
