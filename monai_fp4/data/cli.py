"""``monai-fp4 manifest``: build one, check it, and report on what its files hold.

    monai-fp4 manifest build --dataset_dir D --folds 5 --seed 0 --output m.json
    monai-fp4 manifest check m.json --dataset_dir D
    monai-fp4 manifest report m.json --dataset_dir D --output page.html

Options use underscores, as those of ``python -m monai.bundle`` do.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from monai_fp4.data.build import SPLIT_RULES, check_manifest, find_and_examine
from monai_fp4.data.folds import parts_of
from monai_fp4.data.groups import read_groups
from monai_fp4.data.layouts import AUTO, LAYOUTS
from monai_fp4.data.manifest import refuse_existing, save_manifest, shipped_manifests
from monai_fp4.data.pseudonyms import KEYS, KeyFile, hide, open_keys
from monai_fp4.data.records import Header, Manifest, Reading, Split
from monai_fp4.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["add_parser"]

_GIVEN = ("format", "folds", "seed", "split", "split_rule", "description", "patient_pattern", "series", "channels")
"""Options of ``build`` that go to `find_and_examine` as they are."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> _SubParsersAction[argparse.ArgumentParser]:
    """Add the command ``manifest`` to a parser; each of its actions sets ``func``, which returns the exit code.

    Returns:
        The actions, for those that other rooms add.
    """
    manifest = subparsers.add_parser(
        "manifest", help="list and check the patients of a data folder", description=(__doc__ or "").replace("``", "'")
    )
    manifest.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = manifest.add_subparsers(dest="action", required=True, metavar="ACTION")

    build = actions.add_parser("build", help="read a data folder, assign its patients to folds, write a manifest")
    build.add_argument(
        "--format",
        default=AUTO,
        help=f"layout: {', '.join(LAYOUTS)}, or auto, which says what it finds (default: auto)",
    )
    build.add_argument("--dataset_dir", required=True, help="the data folder; for lgg, kaggle_3m or its parent")
    build.add_argument("--output", required=True, help="the file to write")
    build.add_argument("--folds", type=int, default=5, help="how many folds (default: %(default)s)")
    build.add_argument("--seed", type=int, default=0, help="what assigns the folds (default: %(default)s)")
    build.add_argument(
        "--split",
        default=Split.TRAIN.value,
        help="train: assign folds; test: everyone is in the named test split, never trained on (default: %(default)s)",
    )
    build.add_argument(
        "--split_rule",
        default=SPLIT_RULES[0],
        help="folds: folds that validate; paper: the splits of arXiv 2605.27616, five folds and a holdout, each with "
        "patients to test on (default: %(default)s)",
    )
    build.add_argument("--name", help="what reports call the data (default: the folder's name)")
    build.add_argument(
        "--groups",
        metavar="CSV",
        help="table with the column patient and some of: group (institution, spread over the folds), person (kept in "
        "one fold), fold and split (your own)",
    )
    build.add_argument(
        "--patient_pattern",
        metavar="REGEX",
        help="who one person is, from names: the first group of a regular expression, such as '(patient[0-9]+)-'",
    )
    build.add_argument("--channels", nargs="+", default=(), help="names of the channels, in place of the files' own")
    build.add_argument("--series", metavar="REGEX", help="dicom: the series to take, by description or UID")
    build.add_argument(
        "--labels", type=int, nargs="+", default=(), help="mask values that are the lesion (default: the one beside 0)"
    )
    build.add_argument(
        "--mask_threshold", type=float, help="soft masks (resampled, JPEG) are the lesion from this value on"
    )
    build.add_argument(
        "--ignore_label", type=int, nargs="+", default=(), help="mask values of voxels that no loss and metric counts"
    )
    build.add_argument(
        "--header",
        default=Header.AUTO.value,
        choices=[each.value for each in Header],
        help="what to believe in NIfTI headers; ignore: image and mask lie voxel upon voxel (default: %(default)s)",
    )
    build.add_argument(
        "--tolerance",
        type=float,
        default=Reading.tolerance,
        help="voxels that image and mask may lie apart at the corners (default: %(default)s)",
    )
    build.add_argument("--description", default="", help="free text: source, licence")
    build.add_argument(
        "--pseudonyms",
        metavar="KEYFILE",
        help="hold pseudonyms in the place of patients' keys and paths; the key file says who is who, is made or added "
        "to, and belongs into nobody else's hands",
    )
    build.add_argument("--force", action="store_true", help="write over an existing file")
    build.set_defaults(func=_build)

    check = actions.add_parser("check", help="compare every file of a data folder with a manifest")
    check.add_argument("manifest", help=f"a path or a shipped name: {', '.join(shipped_manifests())}")
    check.add_argument("--dataset_dir", required=True, help="the data folder")
    check.set_defaults(func=_check)
    return actions


def _build(options: argparse.Namespace) -> int:
    if not options.force:
        refuse_existing(options.output)  # before reading everything, not after
    keys = open_keys(options.pseudonyms, options.output) if options.pseudonyms else None
    given = {name: getattr(options, name) for name in _GIVEN}
    name = options.name or (Path(options.output).stem if keys else None)  # the folder's name may say whose it is
    groups = read_groups(options.groups) if options.groups else None
    reading = _reading(options)
    manifest, findings = find_and_examine(options.dataset_dir, name=name, groups=groups, reading=reading, **given)
    if keys:
        manifest, keys = hide(manifest, keys)
        keys.save()
    path = save_manifest(manifest, options.output, force=options.force)
    print("\n".join(findings.facts))
    print(f"wrote {path}\n{_summary(manifest)}")
    print(_who_can_tell(keys))
    for doubt in findings.doubts:
        print(f"warning: {doubt}", file=sys.stderr)
    return 0


def _who_can_tell(keys: KeyFile | None) -> str:
    if keys:
        return f"{keys.path} says who is who: keep it apart and keep a copy; training reads it where {KEYS} names it"
    return (
        "note: patients' keys and paths stand in this manifest, and the keys in metrics and tables of its runs; where "
        "they tell who somebody is, build with --pseudonyms KEYFILE"
    )


def _reading(options: argparse.Namespace) -> Reading:
    if options.labels and options.mask_threshold is not None:
        raise ConfigError("expected --labels or --mask_threshold, found both; a soft mask has no labels")
    if set(options.labels) & set(options.ignore_label):
        raise ConfigError(f"expected other values for --ignore_label than for --labels, found {options.ignore_label}")
    for name in ("tolerance", "mask_threshold"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and (value >= 0 or name == "mask_threshold")):
            raise ConfigError(f"expected --{name} to be a finite number from 0 on, found {value}; correct it")
    return Reading(
        labels=tuple(options.labels),
        mask_threshold=options.mask_threshold,
        ignore_label=tuple(options.ignore_label),
        header=Header(options.header),
        tolerance=options.tolerance,
    )


def _check(options: argparse.Namespace) -> int:
    manifest = check_manifest(options.manifest, options.dataset_dir)
    images = sum(len(patient.images) for patient in manifest.patients)
    print(f"{images} images of {len(manifest.patients)} patients agree with manifest {manifest.name!r}")
    print(_summary(manifest))
    return 0


def _summary(manifest: Manifest) -> str:
    """A table, one line a fold or two for a named split, then the test split."""
    parts = parts_of(manifest)
    width = max(8, *map(len, parts))
    lines = [f"{'':{width}} {'patients':>8} {'images':>8} {'lesion voxels':>14}  groups"]
    for name, patients in parts.items():
        counts = sorted(Counter(patient.group for patient in patients).items())
        groups = ", ".join(f"{group or '-'} {count}" for group, count in counts)
        voxels = [patient.tumour_voxels for patient in patients]
        total = "unknown" if None in voxels else str(sum(voxel or 0 for voxel in voxels))
        images = sum(len(patient.images) for patient in patients)
        lines.append(f"{name:{width}} {len(patients):>8} {images:>8} {total:>14}  {groups}")
    return "\n".join(lines)
