"""Pictures of kinds that Pillow shows otherwise than they are stored: each is read as its tags say, or refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_fp4.data.patients import read_patient
from monai_fp4.errors import DataError

GREY = np.arange(12 * 10, dtype=np.int64).reshape(12, 10) * 2
MASK = (GREY > 200).astype(np.uint8)


def write_tiff(path: Path, pages: list[np.ndarray], description: str = "", photometric: int = 1, **tags: int) -> None:
    """A little-endian TIFF of whole pages ``[H, W]`` or ``[H, W, S]``, uncompressed, by the specification alone."""
    data, links = bytearray(b"II*\0\0\0\0\0"), [4]
    text = description.encode() + b"\0"
    for page in pages:
        samples = page.shape[2] if page.ndim == 3 else 1
        form = {"u": 1, "i": 2, "f": 3}[page.dtype.kind]
        pixels = len(data)
        data += page.astype(page.dtype.newbyteorder("<")).tobytes()
        words = len(data)
        data += struct.pack(f"<{samples}H", *[page.dtype.itemsize * 8] * samples)
        formats = len(data)
        data += struct.pack(f"<{samples}H", *[form] * samples)
        words_at, formats_at = (page.dtype.itemsize * 8, form) if samples == 1 else (words, formats)
        if samples == 2:  # two short numbers stand in the entry itself
            words_at, formats_at = (value | value << 16 for value in (page.dtype.itemsize * 8, form))
        described = len(data)
        data += text + bytes(len(text) % 2)
        entries = [
            (256, 4, 1, page.shape[1]), (257, 4, 1, page.shape[0]), (258, 3, samples, words_at), (259, 3, 1, 1),
            (262, 3, 1, photometric), (270, 2, len(text), described), (273, 4, 1, pixels), (277, 3, 1, samples),
            (278, 4, 1, page.shape[0]), (279, 4, 1, page.nbytes), (339, 3, samples, formats_at),
            *((int(tag.removeprefix("tag")), 3, 1, value) for tag, value in tags.items()),
        ]  # fmt: skip
        struct.pack_into("<I", data, links[-1], len(data))
        data += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
        links.append(len(data))
        data += bytes(4)
    path.write_bytes(data)


def read(image: Path, mask: np.ndarray = MASK) -> tuple[np.ndarray, np.ndarray]:
    Image.fromarray(mask).save(image.parent / "m.png")
    volume = read_patient({"patient": "p", "images": [{"image": str(image), "mask": str(image.parent / "m.png")}]})
    return volume.image[..., 0], volume.mask[0, ..., 0]


@pytest.mark.parametrize(
    "stored",
    [
        (GREY - 128).astype(np.int8),
        GREY.astype(np.uint8),
        (GREY * 100 - 9000).astype(np.int16),
        (GREY * 200).astype(np.uint16),
        (GREY * -8_000_000).astype(np.int32),
        (GREY * 16_000_000).astype(np.uint32),
        (GREY / 7).astype(np.float32),
    ],
    ids=lambda values: values.dtype.name,
)
def test_numbers_of_a_tiff_have_the_sign_that_it_says(stored, tmp_path):
    write_tiff(tmp_path / "a.tif", [stored])
    image, mask = read(tmp_path / "a.tif")
    assert np.array_equal(image[0], stored.astype(np.float32))
    assert np.array_equal(mask, MASK)


@pytest.mark.parametrize("stored", [MASK.astype(np.uint32) * 4294967295, -MASK.astype(np.int8)], ids=["uint32", "int8"])
def test_masks_of_every_sign(stored, tmp_path):
    write_tiff(tmp_path / "m.tif", [stored])
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "a.png")
    pair = {"image": str(tmp_path / "a.png"), "mask": str(tmp_path / "m.tif")}
    assert np.array_equal(read_patient({"patient": "p", "images": [pair]}).mask[0, ..., 0], MASK)


BYTES = GREY.astype(np.uint8)
REFUSED = {
    "two values a pixel": ({"pages": [np.stack([BYTES, BYTES // 2], -1)], "tag338": 0}, r"found 2 values a pixel"),
    "colours and a fourth": (
        {"pages": [np.stack([BYTES] * 4, -1)], "photometric": 2, "tag338": 0}, r"found 4 values a pixel"
    ),
    "five channels": ({"pages": [np.stack([BYTES] * 5, -1)]}, r"a TIFF of other numbers than Pillow reads"),
    "colours of 32 bits": (
        {"pages": [np.stack([BYTES] * 3, -1).astype(np.float32)], "photometric": 2}, r"other numbers than Pillow reads"
    ),
    "64 bits": ({"pages": [GREY.astype(np.uint64)]}, r"a TIFF of other numbers than Pillow reads"),
    "16 bits of floating point": ({"pages": [GREY.astype(np.float16)]}, r"a TIFF of other numbers than Pillow reads"),
    "channels as pages of ImageJ": (
        {"pages": [BYTES] * 3, "description": "ImageJ=1.54f\nimages=3\nchannels=3\nmode=composite\n"},
        r"pages of a TIFF to be slices, found 3 channels in .*a\.tif; save one file a channel",
    ),
    "times as pages of ImageJ": (
        {"pages": [BYTES] * 4, "description": "ImageJ=1.54f\nimages=4\nslices=2\nframes=2\n"}, r"found 2 times in"
    ),
    "channels as pages of OME": (
        {"pages": [BYTES] * 3, "description": '<OME><Image><Pixels SizeC="3" SizeT="1" SizeZ="1"/></Image></OME>'},
        r"to be slices, found 3 channels in",
    ),
    "pages that ImageJ wrote without directories": (
        {"pages": [BYTES], "description": "ImageJ=1.54f\nimages=4\nslices=4\n"}, r"4 pages in .* as ImageJ wrote"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_pillow_would_lose_is_refused(name, tmp_path):
    options, sentence = REFUSED[name]
    write_tiff(tmp_path / "a.tif", **options)
    with pytest.raises(DataError) as refused:
        read(tmp_path / "a.tif")
    assert re.search(sentence, str(refused.value)), refused.value


def test_slices_that_imagej_wrote_are_a_volume(tmp_path):
    pages = [BYTES, BYTES // 2, BYTES // 3, BYTES // 4]
    write_tiff(tmp_path / "a.tif", pages, "ImageJ=1.54f\nimages=4\nslices=4\nchannels=1\nframes=1\n")
    write_tiff(tmp_path / "m.tif", [MASK] * 4, "ImageJ=1.54f\nimages=4\nslices=4\n")
    pair = {"image": str(tmp_path / "a.tif"), "mask": str(tmp_path / "m.tif")}
    volume = read_patient({"patient": "p", "images": [pair]})
    assert np.array_equal(volume.image[0], np.stack(pages, -1))
    assert np.array_equal(volume.mask[0], np.stack([MASK] * 4, -1))


def test_a_gif_and_the_jpeg_of_a_telephone_are_one_picture(tmp_path):
    Image.fromarray(MASK * 255).save(tmp_path / "m.gif")
    colours = np.stack([BYTES, BYTES // 2, BYTES // 3], -1)
    Image.fromarray(colours).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(colours[::2, ::2])]
    )
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.n_frames == 2
        expected = np.asarray(picture.convert("RGB"))
    pair = {"image": str(tmp_path / "a.jpg"), "mask": str(tmp_path / "m.gif")}
    volume = read_patient({"patient": "p", "images": [pair]})
    assert np.array_equal(volume.image[..., 0], np.moveaxis(expected, -1, 0))
    assert np.array_equal(volume.mask[0, ..., 0], MASK)


def test_transparency_of_16_bits_is_refused_by_name(tmp_path):
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for kind, samples in ((4, 2), (6, 4)):
        pixels = np.stack([GREY] * samples, -1).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in pixels)
        header = struct.pack(">IIBBBBB", 10, 12, 16, kind, 0, 0, 0)
        (tmp_path / "a.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        )
        with pytest.raises(DataError, match=r"without alpha in .*a\.png, found 16 bits in another arrangement; save"):
            read(tmp_path / "a.png")
