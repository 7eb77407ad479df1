"""A small copy of some patients of a data set, to carry to a machine that has none of it.

    python benchmarks/pack_data.py --manifest lgg --dataset_dir /data/kaggle_3m --megabytes 40 --output lgg.tar.xz
    tar -xJf lgg.tar.xz -C pack          # there; then --manifest pack/manifest.json --dataset_dir pack

The archive holds the files as they are, so every checksum of the manifest still fits, and a manifest of its own that
names the patients taken and keeps their folds. Patients are taken in turn from each fold, and within a fold
from the one with the least data, until the size is reached. Patients of whom a file is not there are left out and
counted, so a part of a data set can be packed. **What may not be redistributed must not be published in
this form either**: keep the archive out of every repository.
"""

from __future__ import annotations

import argparse
import io
import lzma
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from monai_fp4.data import Manifest, Patient, load_manifest
from monai_fp4.data.manifest import to_json
from monai_fp4.errors import DataError, MonaiFP4Error

FILTERS = [{"id": lzma.FILTER_DELTA, "dist": 3}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
"""Neighbouring pixels of three channels are alike."""


def files(patient: Patient) -> list[str]:
    """Each file of a patient once, by its path in the data set."""
    return list(dict.fromkeys(path for pair in patient.images for path in (pair.image, pair.mask)))


def missing(manifest: Manifest, folder: Path) -> list[str]:
    """The patients to train on of whom a file is not there."""
    trained = (patient for patient in manifest.patients if patient.fold is not None)
    return [patient.id for patient in trained if not all((folder / name).is_file() for name in files(patient))]


def in_turn(manifest: Manifest, without: Collection[str] = ()) -> Iterator[Patient]:
    """The patients that are trained on, one of each fold at a time, those with fewest files first."""
    folds: dict[int, list[Patient]] = {}
    for patient in sorted(manifest.patients, key=lambda each: (len(each.images), each.id)):
        if patient.fold is not None and patient.id not in without:
            folds.setdefault(patient.fold, []).append(patient)
    for group in zip_longest(*(folds[fold] for fold in sorted(folds))):
        yield from (patient for patient in group if patient is not None)


def pack(manifest: Manifest, folder: Path, output: Path, most: int) -> list[Patient]:
    """Write the archive; returns the patients that it holds.

    Args:
        manifest: the data set's.
        folder: its files.
        output: the archive.
        most: bytes that it may have.

    Raises:
        DataError: no patient is there with all files.
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
                for name in files(patient):
                    archive.add(folder / name, name, recursive=False)
                taken.append(patient)
            part = replace(
                manifest,
                name=f"{manifest.name}_part",
                patients=tuple(sorted(taken, key=lambda each: each.id)),
                generator=None,
                description=f"{len(taken)} of the {len(manifest.patients)} patients of {manifest.name}",
            )
            content = to_json(part).encode()
            entry = tarfile.TarInfo("manifest.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return taken


def main() -> None:
    """Pack, and say what was taken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=40.0, help="the most that the archive may have")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        taken = pack(load_manifest(options.manifest), options.dataset_dir, options.output, int(options.megabytes * 1e6))
    except MonaiFP4Error as error:
        raise SystemExit(str(error)) from None
    slices = sum(len(patient.images) for patient in taken)
    print(f"{len(taken)} patients, {slices} slices, {options.output.stat().st_size / 1e6:.1f} MB in {options.output}")


if __name__ == "__main__":
    main()
