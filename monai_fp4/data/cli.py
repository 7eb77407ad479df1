"""``monai-fp4 manifest build`` and ``monai-fp4 manifest check``.

    monai-fp4 manifest build --format lgg --dataset_dir D --folds 5 --seed 0 --output m.json
    monai-fp4 manifest check m.json --dataset_dir D

Options use underscores, as those of ``python -m monai.bundle`` do.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from monai_fp4.data.build import build_manifest, check_manifest, read_groups
from monai_fp4.data.folds import select_patients
from monai_fp4.data.layouts import LAYOUTS
from monai_fp4.data.manifest import refuse_existing, save_manifest, shipped_manifests
from monai_fp4.data.records import Manifest, Split

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["add_parser"]


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``manifest`` to a parser; each of its actions sets ``func``, which returns the exit code."""
    manifest = subparsers.add_parser(
        "manifest", help="list and check the patients of a data folder", description=(__doc__ or "").replace("``", "'")
    )
    manifest.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = manifest.add_subparsers(dest="action", required=True, metavar="ACTION")

    build = actions.add_parser("build", help="read a data folder, assign its patients to folds, write a manifest")
    build.add_argument("--format", default="lgg", help=f"layout: {', '.join(LAYOUTS)} (default: %(default)s)")
    build.add_argument("--dataset_dir", required=True, help="the data folder; for lgg, kaggle_3m or its parent")
    build.add_argument("--output", required=True, help="the file to write")
    build.add_argument("--folds", type=int, default=5, help="how many folds (default: %(default)s)")
    build.add_argument("--seed", type=int, default=0, help="what assigns the folds (default: %(default)s)")
    build.add_argument(
        "--split",
        default=Split.TRAIN.value,
        help="train: assign folds; test: everyone is in the named test split, never trained on (default: %(default)s)",
    )
    build.add_argument("--name", help="what reports call the data (default: the folder's name)")
    build.add_argument("--groups", metavar="CSV", help="table with the columns patient and group: the institutions")
    build.add_argument("--description", default="", help="free text: source, licence")
    build.add_argument("--force", action="store_true", help="write over an existing file")
    build.set_defaults(func=_build)

    check = actions.add_parser("check", help="compare every file of a data folder with a manifest")
    check.add_argument("manifest", help=f"a path or a shipped name: {', '.join(shipped_manifests())}")
    check.add_argument("--dataset_dir", required=True, help="the data folder")
    check.set_defaults(func=_check)


def _build(options: argparse.Namespace) -> int:
    if not options.force:
        refuse_existing(options.output)  # before reading everything, not after
    manifest = build_manifest(
        options.dataset_dir,
        format=options.format,
        folds=options.folds,
        seed=options.seed,
        split=options.split,
        name=options.name,
        groups=read_groups(options.groups) if options.groups else None,
        description=options.description,
    )
    path = save_manifest(manifest, options.output, force=options.force)
    print(f"wrote {path}\n{_summary(manifest)}")
    return 0


def _check(options: argparse.Namespace) -> int:
    manifest = check_manifest(options.manifest, options.dataset_dir)
    images = sum(len(patient.images) for patient in manifest.patients)
    print(f"{images} images of {len(manifest.patients)} patients agree with manifest {manifest.name!r}")
    print(_summary(manifest))
    return 0


def _summary(manifest: Manifest) -> str:
    """A table, one line a fold, then the test split."""
    parts = {f"fold {fold}": select_patients(manifest, fold, "val") for fold in range(manifest.folds)}
    parts["test"] = tuple(patient for patient in manifest.patients if patient.split is Split.TEST)
    lines = [f"{'':8} {'patients':>8} {'images':>8} {'tumour voxels':>14}  groups"]
    for name, patients in parts.items():
        if not patients:
            continue
        counts = sorted(Counter(patient.group for patient in patients).items())
        groups = ", ".join(f"{group or '-'} {count}" for group, count in counts)
        voxels = [patient.tumour_voxels for patient in patients]
        total = "unknown" if None in voxels else str(sum(voxel or 0 for voxel in voxels))
        images = sum(len(patient.images) for patient in patients)
        lines.append(f"{name:8} {len(patients):>8} {images:>8} {total:>14}  {groups}")
    return "\n".join(lines)
