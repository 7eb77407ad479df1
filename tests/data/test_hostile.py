"""Files that are there to do harm: each ends in one sentence, soon, and in little memory."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import write_nifti
from small_dicom import save, slices

from monai_fp4.data.build import find_and_examine
from monai_fp4.data.patients import read_patient
from monai_fp4.data.readers import READERS, Source
from monai_fp4.data.readers.files import sha256_of
from monai_fp4.errors import ConfigError, DataError

LIMIT = 1 / 64  # GiB, so that nothing here needs more


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_FP4_LARGEST_IMAGE", str(LIMIT))


def nifti(*edges: int, datatype: int = 2, bits: int = 8, offset: float = 352.0, voxels: bytes = b"") -> bytes:
    header = bytearray(nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).to_bytes()[:352])
    struct.pack_into("<8h", header, 40, len(edges), *edges, *[1] * (7 - len(edges)))
    struct.pack_into("<2h", header, 70, datatype, bits)
    struct.pack_into("<f", header, 108, offset)
    return bytes(header) + voxels


def nifti2(*edges: int) -> bytes:
    header = bytearray(nibabel.Nifti2Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).to_bytes()[:544])
    struct.pack_into("<8q", header, 16, len(edges), *edges, *[1] * (7 - len(edges)))
    return bytes(header)


def png(width: int, height: int, more: int = 0) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    head += chunk(b"tEXt", b"a\0b") * more
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def tiff(pages: int, edge: int) -> bytes:
    page, data = Image.new("L", (edge, edge)), io.BytesIO()
    page.save(data, "TIFF", compression="tiff_adobe_deflate", save_all=True, append_images=[page] * (pages - 1))
    return data.getvalue()


def tiff_of(strips: int = 1, pages: int = 1) -> bytes:
    """A TIFF of a pixel a row, with a strip for each row, and so many pages of the same strips."""
    one, data = struct.pack("<I", 1), bytearray(b"II*\0" + struct.pack("<I", 8 + 8 * strips))
    data += struct.pack("<I", 8) * strips + one * strips
    tags = [(256, 1, 1), (257, 1, strips), (258, 1, 8), (259, 1, 1), (262, 1, 1), (273, strips, 8), (277, 1, 1),
            (278, 1, 1), (279, strips, 8 + 4 * strips if strips > 1 else 1)]  # fmt: skip
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, *value) for tag, *value in tags)
    for number in range(1, pages + 1):
        data += page + struct.pack("<I", len(data) + len(page) + 4 if number < pages else 0)
    return bytes(data)


def scans(count: int) -> bytes:
    data = io.BytesIO()
    Image.new("L", (64, 64), 9).save(data, "JPEG", progressive=True)
    jpeg = data.getvalue()
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xc4") : -2] * count + jpeg[-2:]


def nrrd(fields: str) -> bytes:
    return f"NRRD0004\ntype: uchar\ndimension: 1\nsizes: 8\n{fields}\n\n".encode() + bytes(8)


def meta(**fields: object) -> bytes:
    given = {"ObjectType": "Image", "NDims": 3, "DimSize": "2 2 2", "ElementType": "MET_UCHAR"} | fields
    return "".join(f"{key} = {value}\n" for key, value in given.items()).encode() + bytes(8)


EMPTY = gzip.compress(b"")
HONEST = nifti(8, 8, 8, voxels=bytes(512))
FILES: dict[str, tuple[str, bytes, str]] = {
    "a stream that unpacks to more": ("a.nii.gz", gzip.compress(HONEST + bytes(2**23)), "unpacks to more"),
    "members that unpack to more": ("a.nii.gz", gzip.compress(HONEST) + gzip.compress(bytes(2**20)) * 9, "to more"),
    "a header that asks for too much": ("a.nii.gz", gzip.compress(nifti(32767, 32767, 99)), "up to 0.0156 GiB"),
    "empty members": ("a.nii.gz", EMPTY * 200_000 + gzip.compress(HONEST), "one compressed stream"),
    "empty members after the header": ("a.nii.gz", gzip.compress(HONEST[:400]) + EMPTY * 200_000, "one compressed"),
    "members of a byte": (
        "a.nii.gz", b"".join(gzip.compress(HONEST[i : i + 1]) for i in range(864)) + gzip.compress(b"a") * 2000,
        "one compressed stream",
    ),
    "an endless name in gzip's header": ("a.nii.gz", b"\x1f\x8b\x08\x08" + b"a" * 2**20, "truncated or damaged"),
    "2^15 voxels along each axis": ("a.nii", nifti(32767, 32767, 32767), "up to 0.0156 GiB"),
    "2^31 voxels in NIfTI-2": ("a.nii", nifti2(2**31, 2**31, 2**31), "up to 0.0156 GiB"),
    "2^62 voxels in NIfTI-2": ("a.nii", nifti2(2**62), "up to 0.0156 GiB"),
    "an axis of 0": ("a.nii", nifti(8, 0, 8), "at least one voxel"),
    "an axis of -5": ("a.nii", nifti(8, -5, 8), "at least one voxel"),
    "no axis": ("a.nii", nifti(), "1 to 7 axes"),
    "an offset that is no number": ("a.nii", nifti(8, 8, 8, offset=float("nan")), "vox_offset nan"),
    "an offset without end": ("a.nii", nifti(8, 8, 8, offset=float("inf")), "vox_offset inf"),
    "numbers of 128 bits": ("a.nii", nifti(8, 8, 8, datatype=1536, bits=128, voxels=bytes(8192)), "up to 64 bits"),
    "a text": ("a.nii", b"not a scan\n" * 99, "header is none"),
    "a packed text": ("a.nii.gz", gzip.compress(b"not a scan\n" * 99), "header is none"),
    "a large PNG": ("a.png", png(9000, 9000), "up to 0.0156 GiB"),
    "a larger PNG": ("a.png", png(60000, 60000), "tiles"),
    "a PNG of 2^31": ("a.png", png(2**31 - 1, 2**31 - 1), "tiles"),
    "a PNG without a pixel": ("a.png", png(0, 0), "truncated or damaged|at least one"),
    "a TIFF of many pages": ("a.tif", tiff(20, 600), "up to 0.0156 GiB"),
    "a TIFF of pages without end": ("a.tif", tiff_of(pages=9000), "up to 8192 pages"),
    "a TIFF of strips without end": ("a.tif", tiff_of(strips=10_000), "up to 0.0156 GiB"),
    "a PNG of chunks without end": ("a.png", png(9, 1, 2000), "chunks in"),
    "a JPEG of scans without end": ("a.jpg", scans(50), "up to 40 scans"),
    "a program as a picture": ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "neither TIFF"),
    "a large MetaImage": ("a.mha", meta(DimSize="30000 30000 30000", ElementDataFile="LOCAL"), "up to 0.0156 GiB"),
    "a MetaImage without a voxel": ("a.mha", meta(DimSize="0 2 2", ElementDataFile="LOCAL"), "at least one|damaged"),
    "a MetaImage that is packed large": (
        "a.mha", meta(CompressedData=True, CompressedDataSize=10**15, ElementDataFile="LOCAL"), "up to 0.0156 GiB"
    ),
    "a MetaImage of a device": ("a.mha", meta(ElementDataFile="/dev/zero"), "no such file"),
    "a MetaImage of another folder": ("a.mhd", meta(ElementDataFile="../secret.raw"), "same folder"),
    "a MetaImage of a link": ("a.mhd", meta(ElementDataFile="link.raw"), "leads out"),
    **{
        f"a MetaImage with a second file behind {sign!r}": (
            "a.mha", meta(Comment=f"x\n{sign}ElementDataFile{key} = ../secret.raw", ElementDataFile="LOCAL"), reason
        )
        for sign, key, reason in (
            ("\v", "", "others"), ("\f", "", "others"), ("\r", "", "others"), ("", "\0x", "others")
        )
    },
    "a MetaImage whose comment takes in the next line": (
        "a.mha", meta(Comment="", ElementDataFile="LOCAL") + b"\nElementDataFile = ../secret.raw\n", "others"
    ),
    "a MetaImage of a name in other letters": (
        "a.mha", meta(elementdatafile="LOCAL", ElementDataFile="../secret.raw"), "same folder"
    ),
    "a MetaImage of many files": ("a.mhd", meta(ElementDataFile="%02d.raw 1 2 1"), "list of files"),
    "a MetaImage with a header without end": ("a.mha", b"Comment = x\n" * 9999, "longer one"),
    "a large NRRD": (
        "a.nrrd", b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 30000 30000 30000\nencoding: raw\n\n",
        "up to 0.0156 GiB",
    ),
    "an NRRD of many files": ("a.nhdr", nrrd("encoding: raw\ndata file: %02d.raw 1 2 1"), "list of files"),
    "an NRRD of two files": ("a.nhdr", nrrd("data file: a\nencoding: raw\ndatafile: ../secret.raw"), "list of files"),
    "an NRRD of lines that end otherwise": ("a.nrrd", nrrd("encoding: raw\rdata file: ../secret.raw"), "others"),
    "an NRRD that hides a file behind a key": ("a.nhdr", nrrd("ElementDataFile:=x\ndata file: ../s.raw"), "no such"),
    "an NRRD that skips much": ("a.nrrd", nrrd("encoding: gzip\nbyte skip: 2000000000"), "a skip"),
    "an NRRD of another folder": (
        "a.nrrd", b"NRRD0004\ntype: uchar\ndimension: 1\nsizes: 8\nencoding: raw\ndata file: ../secret.raw\n\n",
        "same folder",
    ),
}  # fmt: skip


def read(path: Path, digest: str = "") -> Any:
    pair = {"image": str(path), "mask": str(path), "sha256": digest, "mask_sha256": digest}
    return read_patient({"patient": "p", "images": [pair]})


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    file, content, reason = FILES[name]
    (tmp_path / "secret.raw").write_bytes(bytes(8))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.raw").symlink_to(tmp_path / "secret.raw")
    (tmp_path / "data" / file).write_bytes(content)
    with pytest.raises(DataError, match=reason) as refused:
        read(tmp_path / "data" / file)
    assert str(tmp_path / "data") in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.parametrize("suffix", sorted(suffix for reader in READERS.values() for suffix in reader.suffixes))
def test_pipes_and_devices_of_every_format(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"sparse{suffix}").touch()
    os.truncate(tmp_path / f"sparse{suffix}", 2**40)
    for path in tmp_path.iterdir():
        with pytest.raises(DataError, match=r"a pipe or a device|up to 0.0156 GiB"):
            read(path)
        with pytest.raises(DataError):
            sha256_of(path)


@pytest.mark.parametrize(
    "tags",
    [{"Rows": 60000, "Columns": 60000}, {"NumberOfFrames": "2147483647"}, {"Rows": 0}, {"SamplesPerPixel": 60000}],
    ids=str,
)
def test_dicom(tags: dict[str, Any], tmp_path: Path) -> None:
    data = slices(0)[0]
    for name, value in tags.items():
        setattr(data, name, value)
    save([data], tmp_path)
    with pytest.raises(DataError, match=r"up to 0\.0156 GiB|at least one voxel|Samples per Pixel"):
        read(Path(f"{tmp_path}#{data.SeriesInstanceUID}"))


def test_tags_that_itk_writes_into_a_metaimage_are_taken(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.eye(4, dtype=np.uint8)[None])
    for key in ("0008|0005", "my-key", "a key"):
        image.SetMetaData(key, "ISO_IR 100")
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    assert read(tmp_path / "a.mha").mask.sum() == 4


def test_extensions_of_nifti_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file unpacks to millions of them, each an object of nibabel's."""
    flag, extensions = b"\1\0\0\0", (struct.pack("<ii", 16, 4) + bytes(8)) * 10
    content = nifti(8, 8, 8, offset=512.0)[:348] + flag + extensions + bytes([0, 1] * 256)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(nibabel.nifti1.Nifti1Extensions, "from_fileobj", lambda *_: pytest.fail("read"))
    assert read(tmp_path / "a.nii.gz").mask.sum() == 256


def test_frames_of_an_animation_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("L", (4, 4), colour * 40) for colour in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.n_frames", property(lambda _: pytest.fail("counted")))
    with pytest.raises(DataError, match="an animation"):
        read(tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("name", "format", "sentence"),
    [
        ("a.csv", "auto", None),
        ("a.csv", "table", r"a CSV table at .*a\.csv, found no file"),
        ("dataset.json", "auto", None),
        ("dataset.json", "msd", r"a file at .*dataset\.json, found a folder, a pipe or a device"),
    ],
)
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(
    name: str, format: str, sentence: str | None, tmp_path: Path
) -> None:
    write_nifti(tmp_path, ["anna", "bert"])
    os.mkfifo(tmp_path / name)
    opened: list[int] = []

    def let_go_of_whoever_reads() -> None:
        while True:
            opened.append(os.open(tmp_path / name, os.O_WRONLY))
            os.close(opened[-1])

    threading.Thread(target=let_go_of_whoever_reads, daemon=True).start()
    if sentence is None:
        assert find_and_examine(tmp_path, folds=2)[0].format == "nifti"
    else:
        with pytest.raises(DataError, match=sentence):
            find_and_examine(tmp_path, folds=2, format=format)
    assert not opened


def test_pipes_beside_dicom_are_passed_over(tmp_path: Path) -> None:
    data = slices(0)
    save(data, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    path = Path(f"{tmp_path}#{data[0].SeriesInstanceUID}")
    assert len(READERS["dicom"].files(path)) == len(data)


def test_deflated_dicom_that_may_unpack_to_too_much(tmp_path: Path) -> None:
    data = slices(0)[0]
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.add_new(0x00091001, "OB", bytes(2**25))
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(DataError, match=r"up to 0\.0156 GiB"):
        read(tmp_path / "a.dcm")


def test_hashes_are_compared_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(HONEST))
    SimpleITK.WriteImage(SimpleITK.Image(2, 2, 2, SimpleITK.sitkUInt8), str(tmp_path / "a.mha"))
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    save(slices(0)[:1], tmp_path)

    def decode(source: Source) -> None:
        raise AssertionError(f"{source.path} was decoded")

    for reader in READERS.values():
        monkeypatch.setitem(vars(reader), "decode", decode)
    for path in sorted(tmp_path.iterdir()):
        name = path if "." in path.name else path.rename(path.with_suffix(".dcm"))
        with pytest.raises(DataError, match="SHA-256 differs"):
            read(name, "0" * 64)


def test_memory_of_a_small_file_that_unpacks_to_much(tmp_path: Path) -> None:
    """A packed GiB behind a header of 512 bytes, in a process that may have 256 MiB more than it starts with."""
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(HONEST)
        for _ in range(1024):
            file.write(bytes(2**20))
    code = """
import re, resource, sys
from pathlib import Path
from monai_fp4.data.patients import read_patient
from monai_fp4.errors import DataError
used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
try:
    read_patient({"patient": "p", "images": [{"image": sys.argv[1], "mask": sys.argv[1]}]})
except DataError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.nii.gz")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "unpacks to more" in said


def test_the_limit_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = nibabel.Nifti1Image(np.ones((300, 300, 50), np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="MONAI_FP4_LARGEST_IMAGE"):
        read(tmp_path / "a.nii.gz")
    monkeypatch.setenv("MONAI_FP4_LARGEST_IMAGE", "1")
    assert read(tmp_path / "a.nii.gz").image.shape[-1] == 50
    for text in ("much", "-1", "nan", "inf", ""):
        monkeypatch.setenv("MONAI_FP4_LARGEST_IMAGE", text)
        with pytest.raises(ConfigError, match="MONAI_FP4_LARGEST_IMAGE"):
            read(tmp_path / "a.nii.gz")


def _seeds(folder: Path) -> dict[str, bytes]:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for name in ("a.png", "a.tif", "a.jpg", "a.bmp"):
        Image.fromarray(pixels).save(folder / name)
    for name in ("a.nrrd", "a.mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels[..., 0]), str(folder / name))
    slices(0)[0].save_as(folder / "a.dcm", enforce_file_format=True)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"a.nii": HONEST, "a.nii.gz": gzip.compress(HONEST), "b.nii.gz": HONEST}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return _seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.parametrize(
    "name",
    ["a.png", "a.tif", "a.jpg", "a.bmp", "a.nrrd", "a.mha", "a.dcm", "a.nii", "a.nii.gz", "b.nii.gz"],
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=6), keep=st.floats(0, 1))
def test_fuzz(
    name: str, seeds: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, changes: list, keep: float
) -> None:
    """Only our errors, of any file with a few bytes changed, half of them in its first 512."""
    data = bytearray(seeds[name])
    for place, value in changes:
        data[place % (min(512, len(data)) if place % 2 else len(data))] = value
    path = tmp_path_factory.getbasetemp() / f"fuzz_{name}"
    path.write_bytes(bytes(data[: max(1, int(len(data) * keep))] if keep < 0.3 else data))
    try:
        read(path)
    except DataError as refused:
        text = str(refused)
    else:
        text = ""
    assert len(text) < 1000
