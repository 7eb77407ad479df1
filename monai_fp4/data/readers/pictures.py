"""TIFF and PNG pictures, decoded by Pillow: one picture is one slice."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_fp4.data.readers.volume import Decoded, Reader
from monai_fp4.errors import DataError

__all__ = ["PICTURES"]


def _decode(data: bytes, *, palette_is_colour: bool) -> NDArray[Any]:
    # What Pillow warns of is either harmless metadata or followed by an exception.
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:
        picture.load()
        # A palette's numbers name colours and are no intensities; in a mask they are the labels themselves.
        rgb = palette_is_colour and picture.mode == "P"
        return np.asarray(picture.convert("RGB") if rgb else picture)


def _image(path: Path, data: bytes) -> Decoded:
    picture = _decode(data, palette_is_colour=True)
    if picture.ndim == 2:
        return Decoded(picture[None])
    if picture.ndim == 3 and picture.shape[-1] == 3:
        return Decoded(np.moveaxis(picture, -1, 0))
    raise DataError(
        f"expected a greyscale or an RGB image in {path}, found shape {picture.shape}; save it without alpha"
    )


def _mask(path: Path, data: bytes) -> Decoded:
    mask = _decode(data, palette_is_colour=False)
    if mask.ndim != 2:
        raise DataError(f"expected a mask of one channel in {path}, found {mask.shape[-1]}; save it as greyscale")
    return Decoded(mask)


PICTURES = Reader(
    summary="TIFF and PNG pictures, 8 or 16 bit greyscale or 8 bit RGB, one a slice",
    suffixes=(".tif", ".tiff", ".png"),
    image=_image,
    mask=_mask,
)
