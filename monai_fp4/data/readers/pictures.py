"""TIFF, PNG, JPEG and BMP pictures, decoded by Pillow: one picture is one slice, a TIFF of many pages is a stack.

Pillow shows pictures, so it keeps 8 bits of each colour; what has more is decoded by ITK.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from monai_fp4.data.readers.itk import read_image
from monai_fp4.data.readers.limits import check_size
from monai_fp4.data.readers.volume import Decoded, Reader, Source
from monai_fp4.errors import DataError

__all__ = ["PICTURES"]

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_ORIENTATION = 274
_FORMATS = ("TIFF", "PNG", "JPEG", "BMP", "GIF")  # Pillow's others call programs and libraries that nobody needs here
_GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def _decode(source: Source) -> Decoded:
    # What Pillow warns of is either harmless metadata or followed by an exception.
    with warnings.catch_warnings(action="ignore"), _opened(source) as picture:
        # Counting the pages of a TIFF reads its directories again, and most have one.
        tags = getattr(picture, "tag_v2", None)
        pages = getattr(picture, "n_frames", 1) if tags is None or tags.next else 1
        if pages == 1:
            return Decoded(_page(picture, source))
        if picture.format != "TIFF":
            raise DataError(f"expected one picture in {source.path}, found an animation of {pages}; save one of them")
        held, stack = 0, []
        for page in ImageSequence.Iterator(picture):
            held += _check_page(page, source, held)
            stack.append(_page(page, source))
    if len({page.shape for page in stack}) > 1:
        raise DataError(
            f"expected pages of one size in {source.path}, found "
            f"{', '.join(str(page.shape[1:]) for page in stack[:4])}; save the one that is the scan alone"
        )
    return Decoded(np.stack(stack, axis=-1))


def _opened(source: Source) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(source.data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise OSError("neither TIFF, PNG, JPEG nor BMP") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"expected a picture of up to {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels in {source.path}, found more; cut "
            "it into tiles"
        ) from None
    _check_page(picture, source)
    picture.load()
    return picture


def _check_page(picture: Image.Image, source: Source, held: int = 0) -> int:
    """Numbers in a page, seen to fit beside those that are ``held``."""
    numbers = math.prod(picture.size) * len(picture.getbands())
    check_size([*picture.size, len(picture.getbands())], 32, source.path)
    check_size([held + numbers], 32, source.path)
    return numbers


def _page(picture: Image.Image, source: Source) -> NDArray[Any]:
    """One page ``[C, H, W]``."""
    bits = _bits(picture, source.data)
    if bits > 8 and picture.mode not in _GREY:
        return _deep_colours(source, bits)
    inverted = _inverted(picture)
    if picture.mode == "P":
        if source.is_mask:
            _check_palette(picture, source.path)
        else:  # a palette's numbers name colours and are no intensities; in a mask they are the labels themselves
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB")
    upright = getattr(picture, "tag_v2", {_ORIENTATION: 0}).get(_ORIENTATION, 1) == 1
    values = np.asarray(picture if upright else ImageOps.exif_transpose(picture))
    if inverted:
        values = np.iinfo(values.dtype).max - values if values.dtype.kind == "u" else -values
    if values.ndim == 2:
        return values[None]
    if values.shape[-1] in (2, 4):
        if (values[..., -1] != 255).any():
            raise DataError(f"expected an opaque picture in {source.path}, found transparency; save it without alpha")
        values = values[..., :-1]
    return np.moveaxis(values, -1, 0)


def _bits(picture: Image.Image, data: bytes) -> int:
    """Bits of each colour of a file, of which Pillow's picture may have kept eight."""
    if picture.format == "PNG":
        return data[24]  # the first chunk, IHDR: two lengths, a name, width and height, then the depth
    tags = getattr(picture, "tag_v2", {})
    found = tags.get(_BITS_PER_SAMPLE, 8)
    return max(found) if isinstance(found, tuple) else int(found)


def _inverted(picture: Image.Image) -> bool:
    """Whether white is zero and Pillow has not seen to it, as it does for 8 bits."""
    tags = getattr(picture, "tag_v2", {})
    return picture.mode not in ("1", "L") and picture.mode in _GREY and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _deep_colours(source: Source, bits: int) -> NDArray[Any]:
    picture = SimpleITK.GetArrayFromImage(read_image(source.path))
    if picture.dtype.itemsize * 8 < bits or picture.ndim != 3 or picture.shape[-1] != 3:
        raise DataError(
            f"expected colours of 8 or 16 bits without alpha in {source.path}, found {bits} bits in shape "
            f"{picture.shape}; save it as 16 bit RGB or as one greyscale file a channel"
        )
    with Image.open(io.BytesIO(source.data)) as header:
        turn = header.getexif().get(_ORIENTATION, 1)
    if turn != 1:
        raise DataError(f"expected an upright picture in {source.path}, found an EXIF orientation; save it turned")
    return np.moveaxis(picture, -1, 0)


def _check_palette(picture: Image.Image, path: Path) -> None:
    """See that label 0 is not shown as something: then the file's numbers and its colours mean opposite things."""
    colours = np.array(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    used = [label for label, count in enumerate(picture.histogram()) if count and label < len(colours)]
    if used and colours[0].any() and any(not colours[label].any() for label in used if label):
        raise DataError(
            f"expected label 0 of the mask {path} to be black in its palette, found that another label is; save "
            f"the mask as greyscale"
        )


PICTURES = Reader(
    summary="TIFF, PNG, JPEG and BMP pictures: grey, RGB or a palette, one a slice; a TIFF of many pages is a volume",
    suffixes=(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp"),
    decode=_decode,
)
