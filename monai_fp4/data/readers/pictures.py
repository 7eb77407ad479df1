"""TIFF, PNG, JPEG, BMP and GIF pictures, decoded by Pillow: one picture is one slice, a TIFF of many pages is a stack.

Pillow shows pictures, so it keeps 8 bits of each colour; what has more is decoded by ITK. It takes numbers for what
they look like, too: signed bytes for unsigned ones, and values beside red, green and blue for nothing. The tags of a
TIFF tell, and what Pillow would lose is corrected here or refused.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, ImageSequence, TiffImagePlugin, UnidentifiedImageError

from monai_fp4.data.readers.itk import read_image
from monai_fp4.data.readers.limits import check_size
from monai_fp4.data.readers.volume import Decoded, Reader, Source
from monai_fp4.errors import DataError

__all__ = ["PICTURES"]

_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
_ORIENTATION = ExifTags.Base.Orientation
_TIFF = (b"II", b"MM")
_FORMATS = ("TIFF", "PNG", "JPEG", "BMP", "GIF")  # Pillow's others call programs and libraries that nobody needs here
_GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_MOST_PAGES, _MOST_SCANS, _CHUNKS, _PER_CHUNK = 1 << 13, 40, 1024, 512
_NUMBERS_OF_A_STRIP = 1024
"""A strip or tile of a TIFF costs Pillow as much time as so many numbers."""
_PARTS = re.compile(r"(?m)^(channels|frames)=0*([1-9]\d{0,8})\s*$|\bSize([CT])=.0*([1-9]\d{0,8})")
"""What ImageJ and OME write of a stack whose pages are not slices alone: channels and times."""


def _decode(source: Source) -> Decoded:
    # What Pillow warns of is either harmless metadata or followed by an exception.
    with warnings.catch_warnings(action="ignore"), _opened(source) as picture:
        tags = _tags(picture)
        pages = _pages(picture, source)
        _check_dimensions(str(tags.get(TiffImagePlugin.IMAGEDESCRIPTION, "")), pages, source)
        if pages == 1 or picture.format == "MPO":  # a telephone's JPEG, with a preview after the picture
            return Decoded(_page(picture, source), names=_colours(picture) if source.is_mask else {})
        if picture.format != "TIFF":
            raise DataError(f"expected one picture in {source.path}, found an animation; save one of its pictures")
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


def _pages(picture: Image.Image, source: Source) -> int:
    """How many pages a TIFF has; of other pictures, two stand for several, which are not counted."""
    if picture.format != "TIFF":
        return 1 + bool(getattr(picture, "is_animated", False))
    pages = 1
    while pages <= _MOST_PAGES and _tags(picture).next:  # Pillow would count without end
        try:
            picture.seek(pages)
        except EOFError:
            break
        pages += 1
    picture.seek(0)
    if pages > _MOST_PAGES:
        raise DataError(f"expected up to {_MOST_PAGES} pages in {source.path}, found more; save it as .nii.gz or .nrrd")
    return pages


def _check_parts(source: Source) -> None:
    """See that a PNG or JPEG is made of no more parts than keep a decoder busy for no reason."""
    data, at, parts = source.data, 8, 0
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > _MOST_SCANS:
        raise DataError(f"expected up to {_MOST_SCANS} scans in the JPEG {source.path}, found more; save it as .png")
    while data[:4] == b"\x89PNG" and at < len(data):
        at, parts = at + 12 + int.from_bytes(data[at : at + 4], "big"), parts + 1
        if parts > _CHUNKS + at // _PER_CHUNK:
            raise DataError(f"expected pixels in {source.path}, found {parts} chunks in {at} bytes; save it again")


def _opened(source: Source) -> Image.Image:
    _check_parts(source)
    try:
        picture = Image.open(io.BytesIO(source.data), formats=_FORMATS)
    except UnidentifiedImageError:
        if source.data[:2] in _TIFF:
            raise OSError(
                "or a TIFF of other numbers than Pillow reads: 8 or 16 bits, or 32 in grey; save it as one greyscale "
                "file a channel, or as .nrrd"
            ) from None
        raise OSError("neither TIFF, PNG, JPEG, BMP nor GIF") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"expected a picture of up to {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels in {source.path}, found more; cut "
            "it into tiles"
        ) from None
    _check_page(picture, source)
    picture.load()
    return picture


def _tags(picture: Image.Image) -> Any:
    """The tags of a TIFF; no tag of any other picture."""
    return getattr(picture, "tag_v2", {})


def _check_dimensions(description: str, pages: int, source: Source) -> None:
    """See that the pages of a TIFF are slices, and all there, as far as ImageJ or OME say so."""
    several = {match[1] or match[3]: int(match[2] or match[4]) for match in _PARTS.finditer(description)}
    named = {"C": "channels", "T": "times", "frames": "times"}
    found = [f"{count} {named.get(name, name)}" for name, count in several.items() if count > 1]
    if found and pages > 1:
        raise DataError(
            f"expected the pages of a TIFF to be slices, found {' and '.join(found)} in {source.path}; save one file "
            "a channel, or one greyscale volume"
        )
    images = re.search(r"(?m)^images=(\d{1,9})\s*$", description)
    if images and description.startswith("ImageJ") and int(images[1]) > pages:
        raise DataError(
            f"expected {images[1]} pages in {source.path} as ImageJ wrote, found {pages}; save it as a TIFF of less "
            "than 4 GB, or as .nii.gz or .nrrd"
        )


def _check_page(picture: Image.Image, source: Source, held: int = 0) -> int:
    """Numbers in a page, seen to fit beside those that are ``held``."""
    tags = _tags(picture)
    strips = len(tags.get(TiffImagePlugin.STRIPOFFSETS) or tags.get(TiffImagePlugin.TILEOFFSETS) or ())
    numbers = max(math.prod(picture.size) * len(picture.getbands()), strips * _NUMBERS_OF_A_STRIP)
    check_size([*picture.size, len(picture.getbands())], 32, source.path)
    check_size([held + numbers], 32, source.path)
    return numbers


def _page(picture: Image.Image, source: Source) -> NDArray[Any]:
    """One page ``[C, H, W]``."""
    bits = _bits(picture, source.data)
    _check_samples(picture, source)
    if bits > 8 and picture.mode not in _GREY:
        return _deep_colours(source, bits)
    tags = _tags(picture)
    # Pillow sees to it for 8 bits that white is the highest number.
    inverted = picture.mode in _GREY[2:] and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    if picture.mode == "P":
        if source.is_mask:
            _check_palette(picture, source.path)
        else:  # a palette's numbers name colours and are no intensities; in a mask they are the labels themselves
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB")
    upright = picture.format == "TIFF" and tags.get(_ORIENTATION, 1) == 1
    values = _of_their_sign(np.asarray(picture if upright else ImageOps.exif_transpose(picture)), tags, bits)
    if inverted:
        values = np.iinfo(values.dtype).max - values if values.dtype.kind == "u" else -values
    if values.ndim == 2:
        return values[None]
    if values.shape[-1] in (2, 4):
        if (values[..., -1] != 255).any():
            raise DataError(f"expected an opaque picture in {source.path}, found transparency; save it without alpha")
        values = values[..., :-1]
    return np.moveaxis(values, -1, 0)


def _check_samples(picture: Image.Image, source: Source) -> None:
    """See that Pillow shows all values of a pixel; it passes over those that are neither colour nor transparency."""
    tags = _tags(picture)
    samples, extra = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)), tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    if samples > 1 and (samples > len(picture.getbands()) or (0 in extra and picture.mode in ("RGBX", "RGB", "L"))):
        raise DataError(
            f"expected grey or red, green and blue in {source.path}, found {samples} values a pixel; save one "
            "greyscale file a channel"
        )


def _of_their_sign(values: NDArray[Any], tags: Any, bits: int) -> NDArray[Any]:
    """Numbers that Pillow takes for unsigned bytes or signed words, as the tags of a TIFF say."""
    form = tags.get(TiffImagePlugin.SAMPLEFORMAT, (_UNSIGNED,))[0]
    if form == _SIGNED and bits == 8 and values.dtype == np.uint8:
        return values.view(np.int8)
    if form == _UNSIGNED and bits == 32 and values.dtype == np.int32:
        return values.view(np.uint32)
    return values


def _bits(picture: Image.Image, data: bytes) -> int:
    """Bits of each colour of a file, of which Pillow's picture may have kept eight."""
    if picture.format == "PNG":
        return data[24]  # the first chunk, IHDR: two lengths, a name, width and height, then the depth
    found = _tags(picture).get(TiffImagePlugin.BITSPERSAMPLE, 8)
    return max(found) if isinstance(found, tuple) else int(found)


def _deep_colours(source: Source, bits: int) -> NDArray[Any]:
    try:
        picture = SimpleITK.GetArrayFromImage(read_image(source.path))
    except RuntimeError:  # ITK's word for pixels that it has no name for, such as grey with transparency
        picture = np.zeros(0, np.uint8)
    if picture.dtype.itemsize * 8 < bits or picture.ndim != 3 or picture.shape[-1] != 3:
        raise DataError(
            f"expected colours of 8 or 16 bits without alpha in {source.path}, found {bits} bits in another "
            "arrangement; save it as 16 bit RGB, pixel by pixel, or as one greyscale file a channel"
        )
    with Image.open(io.BytesIO(source.data)) as header:
        turn = header.getexif().get(_ORIENTATION, 1)
    if turn != 1:
        raise DataError(f"expected an upright picture in {source.path}, found an EXIF orientation; save it turned")
    return np.moveaxis(picture, -1, 0)


def _colours(picture: Image.Image) -> dict[int, str]:
    """The colours that a palette gives to the labels that are there."""
    if picture.mode != "P":
        return {}
    palette = picture.getpalette("RGB") or []
    used = [label for label, count in enumerate(picture.histogram()) if count and 3 * label < len(palette)]
    return {label: "#{:02x}{:02x}{:02x}".format(*palette[3 * label : 3 * label + 3]) for label in used}


def _check_palette(picture: Image.Image, path: Path) -> None:
    """See that label 0 is not shown as something: then the file's numbers and its colours mean opposite things."""
    black, colours = "#000000", _colours(picture)
    first = (picture.getpalette("RGB") or [0, 0, 0])[:3]
    if any(first) and any(colour == black for label, colour in colours.items() if label):
        raise DataError(
            f"expected label 0 of the mask {path} to be black in its palette, found that another label is; save "
            f"the mask as greyscale"
        )


PICTURES = Reader(
    summary="TIFF, PNG, JPEG, BMP and GIF pictures: grey, RGB or a palette, one a slice; a TIFF of many pages is a "
    "volume",
    suffixes=(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".gif"),
    decode=_decode,
)
"""The reader of pictures."""
