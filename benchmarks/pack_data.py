"""A small copy of some patients of a data set, to carry to a machine that has none of it.

    python benchmarks/pack_data.py --manifest lgg --dataset_dir /data/kaggle_3m --megabytes 40 --output lgg.tar.xz
    tar -xJf lgg.tar.xz -C pack          # there; then --manifest pack/manifest.json --dataset_dir pack

    python benchmarks/pack_data.py --manifest paper.json --dataset_dir /data/kaggle_3m --webp 83 --output lgg.tar.xz
    python benchmarks/pack_data.py --unpack lgg.tar.xz --output pack     # there

The archive holds the files as they are, so every checksum of the manifest still fits, and a manifest of its own that
names the patients taken and keeps their folds. Patients are taken in turn from each fold, and within a fold from the
one with the least data, until the size is reached. Patients of whom a file is not there are left out and counted, so a
part of a data set can be packed. A manifest with named splits is packed whole or not at all.

With ``--webp`` 8-bit pictures travel as WebP of that quality, each channel as a grey picture of its own, since WebP
would halve the resolution of colours; masks stay exact. ``--unpack`` writes them as what they were, with a manifest
that has the checksums of those files and says what the journey cost, in grey levels.

**What may not be redistributed must not be published in this form either**: keep the archive out of every repository.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from monai_fp4.data import ImagePair, Manifest, Patient, load_manifest, save_manifest
from monai_fp4.data.manifest import to_json
from monai_fp4.errors import DataError, MonaiFP4Error

FILTERS = [{"id": lzma.FILTER_DELTA, "dist": 3}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
"""Neighbouring pixels of three channels are alike."""


def files(patient: Patient) -> list[str]:
    """Each file of a patient once, by its path in the data set."""
    return list(dict.fromkeys(path for pair in patient.images for path in (pair.image, pair.mask)))


def missing(manifest: Manifest, folder: Path) -> list[str]:
    """The patients to train on of whom a file is not there."""
    trained = (patient for patient in manifest.patients if patient.fold is not None or manifest.splits)
    return [patient.id for patient in trained if not all((folder / name).is_file() for name in files(patient))]


def in_turn(manifest: Manifest, without: Collection[str] = ()) -> Iterator[Patient]:
    """The patients that are trained on, one of each fold at a time, those with fewest files first."""
    folds: dict[int, list[Patient]] = {}
    for patient in sorted(manifest.patients, key=lambda each: (len(each.images), each.id)):
        if patient.fold is not None and patient.id not in without:
            folds.setdefault(patient.fold, []).append(patient)
    for group in zip_longest(*(folds[fold] for fold in sorted(folds))):
        yield from (patient for patient in group if patient is not None)


class Loss:
    """What WebP changes, over all pictures: the root of the mean square, and the largest, in grey levels."""

    def __init__(self) -> None:
        self.squares, self.pixels, self.largest = 0.0, 0, 0

    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        """Count one picture."""
        change = np.abs(before.astype(np.int16) - after)
        self.squares += float((change.astype(np.float64) ** 2).sum())
        self.pixels, self.largest = self.pixels + change.size, max(self.largest, int(change.max()))

    def words(self, quality: int) -> str:
        """For the manifest's description, and so for what is reported of it."""
        rms = (self.squares / max(self.pixels, 1)) ** 0.5
        return f"pictures went through WebP of quality {quality}: {rms:.2f} grey levels RMS, at most {self.largest}"


def as_webp(path: Path, quality: int, loss: Loss) -> bytes:
    """A picture [H, W, C] of 8 bits as one grey WebP [H, C * W].

    Raises:
        DataError: it has another depth.
    """
    with Image.open(path) as opened:
        picture = np.atleast_3d(np.asarray(opened))
    if picture.dtype != np.uint8:
        raise DataError(f"expected pictures of 8 bits for --webp, found {picture.dtype} in {path}; leave --webp out")
    content = io.BytesIO()
    flat = picture.transpose(0, 2, 1).reshape(len(picture), -1)
    Image.fromarray(flat).convert("RGB").save(content, "WEBP", quality=quality, method=4)
    loss.add(picture, from_webp(content.getvalue(), picture.shape[2]))
    return content.getvalue()


def from_webp(content: bytes, channels: int) -> np.ndarray:
    """Take back what `as_webp` gave: [H, W, C]."""
    with Image.open(io.BytesIO(content)) as opened:
        flat = np.asarray(opened.convert("L"))
    return flat.reshape(len(flat), channels, -1).transpose(0, 2, 1)


def as_mask(path: Path) -> bytes:
    """A mask without loss, as PNG."""
    content = io.BytesIO()
    with Image.open(path) as opened:
        opened.save(content, "PNG", optimize=True)
    return content.getvalue()


def unpack(archive: Path, folder: Path) -> Manifest:
    """Write what was packed as WebP as the files that it was, and a manifest of those.

    Raises:
        DataError: the folder is not empty, or the archive holds no pictures packed so.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"expected a new folder, found files in {folder}; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    manifest = load_manifest(folder / "manifest.json")

    def written(path: Path, picture: np.ndarray) -> str:
        Image.fromarray(picture.squeeze()).save(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def restored(pair: ImagePair) -> ImagePair:
        image, mask = folder / pair.image, folder / pair.mask
        packed, packed_mask = image.with_name(f"{image.name}.webp"), mask.with_name(f"{mask.name}.png")
        if not packed.is_file() or not packed_mask.is_file():
            raise DataError(f"expected {packed.name} and its mask in {archive}, found none; unpack it with tar -xJf")
        with Image.open(packed_mask) as opened:
            found = written(mask, np.asarray(opened))
        own = written(image, from_webp(packed.read_bytes(), len(manifest.channels)))
        for path in (packed, packed_mask):
            path.unlink()
        return replace(pair, sha256=own, mask_sha256=found)

    patients = tuple(replace(p, images=tuple(map(restored, p.images))) for p in manifest.patients)
    manifest = replace(manifest, patients=patients)
    save_manifest(manifest, folder / "manifest.json", force=True)
    return manifest


def pack(manifest: Manifest, folder: Path, output: Path, most: int, quality: int | None = None) -> list[Patient]:
    """Write the archive; returns the patients that it holds.

    Args:
        manifest: the data set's.
        folder: its files.
        output: the archive.
        most: bytes that it may have.
        quality: of WebP for the pictures; None leaves every file as it is.

    Raises:
        DataError: no patient is there with all files, or not everybody of a manifest with named splits.
    """
    absent = missing(manifest, folder)
    patients = list(in_turn(manifest, absent))
    if not patients:
        raise DataError(
            f"expected the files of {manifest.name} in {folder}, found no patient with all of them; check --dataset_dir"
        )
    if absent:
        print(f"left out, since files of theirs are not in {folder}: {len(absent)} patients, {' '.join(absent)}")
    taken: list[Patient] = []
    loss, lost = Loss(), ""
    partial = output.with_name(f".{output.name}.part")  # an archive that is there is whole
    try:
        with (
            partial.open("wb") as file,
            lzma.LZMAFile(file, "wb", filters=FILTERS) as stream,
            tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            for patient in patients:
                if taken and file.tell() * (len(taken) + 2) / len(taken) > most:  # room for one and what is in buffers
                    break
                for name in files(patient) if quality is None else ():
                    archive.add(folder / name, name, recursive=False)
                for pair in patient.images if quality is not None else ():
                    add(archive, f"{pair.image}.webp", as_webp(folder / pair.image, quality or 0, loss))
                    add(archive, f"{pair.mask}.png", as_mask(folder / pair.mask))
                taken.append(patient)
            if manifest.splits and len(taken) < len(manifest.patients):
                raise DataError(
                    f"expected room for all {len(manifest.patients)} patients of {manifest.name}, whose splits name"
                    f" them, found {len(taken)} in {most / 1e6:g} MB; raise --megabytes or lower --webp"
                )
            lost = f"; {loss.words(quality)}" if quality is not None else ""
            part = replace(
                manifest,
                name=f"{manifest.name}_part",
                patients=tuple(sorted(taken, key=lambda each: each.id)),
                generator=None,
                description=f"{len(taken)} of the {len(manifest.patients)} patients of {manifest.name}{lost}",
            )
            add(archive, "manifest.json", to_json(part).encode())
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return taken


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file that is in memory."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def main() -> None:
    """Pack, and say what was taken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest")
    parser.add_argument("--dataset_dir", type=Path)
    parser.add_argument("--megabytes", type=float, default=40.0, help="the most that the archive may have")
    parser.add_argument("--webp", type=int, choices=range(101), metavar="QUALITY", help="pictures as WebP: 83 is 35 MB")
    parser.add_argument("--unpack", type=Path, metavar="ARCHIVE", help="one of --webp, into the folder --output")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    if (options.unpack is None) is (options.manifest is None or options.dataset_dir is None):
        parser.error("give --manifest and --dataset_dir to pack, or --unpack ARCHIVE")
    most = int(options.megabytes * 1e6)
    try:
        if options.unpack is not None:
            print(f"{options.output}: {unpack(options.unpack, options.output).description}")
            return
        taken = pack(load_manifest(options.manifest), options.dataset_dir, options.output, most, options.webp)
    except MonaiFP4Error as error:
        raise SystemExit(str(error)) from None
    slices = sum(len(patient.images) for patient in taken)
    print(f"{len(taken)} patients, {slices} slices, {options.output.stat().st_size / 1e6:.1f} MB in {options.output}")


if __name__ == "__main__":
    main()
