"""Build the shipped manifests; run it again to see that nothing drifted.

    python docs/shipped_manifests.py phantom --output data_manifests/phantom.json
    python docs/shipped_manifests.py nodules --output data_manifests/nodules.json
    python docs/shipped_manifests.py lgg_paper --output data_manifests/lgg_paper.json
    python docs/shipped_manifests.py lgg --dataset_dir D --hashes files.sha256 --output data_manifests/lgg.json

For LGG, ``files.sha256`` lists the SHA-256 of all published files, in the format of ``sha256sum``. Patients whose
files are in ``D`` are read and assigned to five folds. The others are known by their hashes alone and form the test
split: their tumour volume is not known, but the number of slices with tumour is, since all empty masks are one and
the same file. ``lgg_paper`` is the same patients in the splits of arXiv 2605.27616.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from monai_fp4.data.build import build_manifest
from monai_fp4.data.checks import check_patients, slice_number
from monai_fp4.data.folds import assign_folds
from monai_fp4.data.layouts import data_root
from monai_fp4.data.layouts.lgg import LGG_CHANNELS
from monai_fp4.data.manifest import load_manifest, save_manifest
from monai_fp4.data.paper_split import FOLDS, SEED, assign_paper_splits
from monai_fp4.data.phantoms.generators import GENERATORS
from monai_fp4.data.records import ImagePair, Manifest, Patient, Split
from monai_fp4.errors import DataError

__all__ = ["generated_manifest", "lgg_manifest", "lgg_paper_manifest"]

LGG_DESCRIPTION = (
    "Lower-grade glioma, brain MRI of 110 patients: Buda, Saha and Mazurowski, Computers in Biology and Medicine "
    "109 (2019) "
    "218-225; images of The Cancer Imaging Archive's TCGA-LGG collection; published as "
    "mateuszbuda/lgg-mri-segmentation. "
    "88 patients in five folds; 22 patients form the test split, their tumour volume is not known here."
)


def generated_manifest(name: str) -> Manifest:
    """Write a synthetic data set into a temporary folder and describe it: five folds, and its test split.

    Args:
        name: a key of :data:`monai_fp4.data.phantoms.generators.GENERATORS`.
    """
    generator = GENERATORS[name]
    with tempfile.TemporaryDirectory() as folder:
        manifest = build_manifest(
            generator.write(Path(folder) / name),
            format=generator.format,
            folds=5,
            seed=0,
            name=name,
            groups=generator.groups,
            description=generator.description,
        )
    patients = [replace(patient, voxels=()) for patient in manifest.patients]  # nobody has these scans in other files
    held_out = [
        replace(patient, split=Split.TEST, fold=None) if patient.id in generator.test_patients else patient
        for patient in patients
    ]
    return replace(manifest, patients=assign_folds(held_out, 5, 0), generator=name)


def lgg_manifest(dataset_dir: Path, hashes: Path, folds: int = 5, seed: int = 0) -> Manifest:
    """Describe all published patients: those in the data folder by reading them, the others by their hashes.

    Raises:
        DataError: a file in the data folder is not the published one.
    """
    root = data_root(dataset_dir)
    published: dict[str, dict[str, str]] = defaultdict(dict)
    for line in hashes.read_text(encoding="utf-8").splitlines():
        digest, path = line.split()
        published[path.split("/")[0]][path] = digest
    empty = Counter(digest for files in published.values() for path, digest in files.items() if "_mask" in path)
    # The one mask file that many slices share is the one without tumour.
    no_tumour = empty.most_common(1)[0][0]
    here = build_manifest(root, format="lgg", folds=folds, seed=seed)
    for patient in here.patients:
        for pair in patient.images:
            for path, digest in ((pair.image, pair.sha256), (pair.mask, pair.mask_sha256)):
                if published[patient.id].get(path) != digest:
                    raise DataError(f"expected the published file at {root / path}, found another; fetch it again")
    known = {patient.id for patient in here.patients}
    others = tuple(_from_hashes(name, files, no_tumour) for name, files in published.items() if name not in known)
    return Manifest(
        name="lgg",
        format="lgg",
        channels=LGG_CHANNELS,
        patients=tuple(
            sorted((*(replace(each, voxels=()) for each in here.patients), *others), key=lambda patient: patient.id)
        ),
        folds=folds,
        seed=seed,
        description=LGG_DESCRIPTION,
    )


def lgg_paper_manifest() -> Manifest:
    """The patients of the shipped manifest ``lgg``, all 110, in the splits of :mod:`monai_fp4.data.paper_split`."""
    lgg = load_manifest("lgg")
    patients, splits = assign_paper_splits(lgg.patients)
    source = lgg.description.partition(" 88 patients in five folds")[0]
    return replace(
        lgg,
        name="lgg_paper",
        patients=patients,
        folds=FOLDS,
        seed=SEED,
        splits=splits,
        description=f"{source} Five folds and a holdout of arXiv 2605.27616, each with patients to validate and to "
        "test on.",
    )


def _from_hashes(name: str, files: dict[str, str], no_tumour: str) -> Patient:
    images = sorted((path for path in files if "_mask" not in path), key=lambda path: slice_number(path) or 0)
    masks = [path.replace(".tif", "_mask.tif") for path in images]
    return Patient(
        id=name,
        group=name.split("_")[1],
        fold=None,
        split=Split.TEST,
        tumour_voxels=None,
        images=tuple(ImagePair(i, m, files[i], files[m]) for i, m in zip(images, masks, strict=True)),
        tumour_slices=sum(files[mask] != no_tumour for mask in masks),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one of the shipped manifests."""
    parser = argparse.ArgumentParser(prog="python docs/shipped_manifests.py", description="Write a shipped manifest.")
    parser.add_argument("name", choices=(*GENERATORS, "lgg", "lgg_paper"))
    parser.add_argument("--dataset_dir", type=Path, help="lgg: the kaggle_3m folder or its parent")
    parser.add_argument("--hashes", type=Path, help="lgg: the published hashes, as sha256sum writes them")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.name == "lgg" and (options.dataset_dir is None or options.hashes is None):
        parser.error("lgg needs --dataset_dir and --hashes")
    if options.name == "lgg":
        manifest = lgg_manifest(options.dataset_dir, options.hashes)
    elif options.name == "lgg_paper":
        manifest = lgg_paper_manifest()
    else:
        manifest = generated_manifest(options.name)
    check_patients(manifest, source=str(options.output))
    save_manifest(manifest, options.output, force=True)


if __name__ == "__main__":
    main()
