r"""``monai-fp4 sweep``: a grid of runs on this machine or a Ray cluster.

    monai-fp4 sweep --archs unet,swin,vit --scales 500k,4m,15m --recipes all --seeds 10 --folds 0 \
        --manifest M --dataset_dir D --output_dir study/
    monai-fp4 sweep --protocol paper --archs paper_swin,paper_cnn --scales 4m --recipes bf16,sr_rht_2d --folds 0-4 \
        --dataset_dir D --output_dir study/  as the paper trains
    monai-fp4 sweep ... --dry_run            what would run, and for how long
    RAY_ADDRESS=head:6379 monai-fp4 sweep ...  on a cluster

The same command goes on where a sweep was stopped. The options of the bundles (--epochs, --image_size, ...) hold for
all cells.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from argparse import _SubParsersAction
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from signal import SIGINT

from monai_fp4.bundle.files import PROTOCOLS
from monai_fp4.bundle.options import defaults
from monai_fp4.data import load_manifest, prepare_data
from monai_fp4.data.pseudonyms import refuse_keys_within
from monai_fp4.durations import format_seconds
from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.lock import FolderLock
from monai_fp4.study.check import check, extend_study
from monai_fp4.study.commands import write_study
from monai_fp4.study.estimate import Estimate, time_left, timing_key, timings
from monai_fp4.study.executor import Executor, RayExecutor, cell_resources, cells_at_once, this_machine
from monai_fp4.study.grid import COMMON, code_version, definition_of
from monai_fp4.study.interrupt import interruptible
from monai_fp4.study.layout import Cell, CellStatus, StudyDefinition, StudyFolder
from monai_fp4.study.progress import SweepProgress
from monai_fp4.study.sweep import Sweep, SweepResult
from monai_fp4.study.variants import ADDITIONS

__all__ = ["add_parser", "run_sweep"]

logger = logging.getLogger(__name__)


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``sweep`` to a parser; it sets ``func``, which returns the exit code."""
    default = defaults()
    sweep = subparsers.add_parser(
        "sweep",
        help="run a grid of architectures, scales, recipes, folds and seeds",
        description=(__doc__ or "").replace("``", "'"),
    )
    sweep.formatter_class = argparse.RawDescriptionHelpFormatter
    grid = sweep.add_argument_group("the grid")
    grid.add_argument("--archs", default="unet,swin,vit", help="architectures (default: %(default)s)")
    grid.add_argument("--scales", default="500k,4m,15m", help="scales (default: %(default)s)")
    grid.add_argument(
        "--recipes",
        default="all",
        help="names, all, and variants such as sr+ends or all+last10; a recipe takes "
        + ", ".join(f"+{addition}" for addition in ADDITIONS)
        + " (default: %(default)s)",
    )
    grid.add_argument("--recipes_file", type=Path, help="JSON file of recipes of your own: name -> fields")
    grid.add_argument("--attention", help="high_precision, fp4 or both: each quantizing recipe with it (+attention)")
    grid.add_argument("--optimizers", help="adamw (the bundles' own), muon, sgd: an axis (default: adamw, no axis)")
    grid.add_argument("--seeds", help="how many, or a list or range (default: 1, or the protocol's seed)")
    grid.add_argument(
        "--folds", help="a list or range, holdout, or all: nobody held out (default: 0, or the protocol's)"
    )
    grid.add_argument(
        "--axis", action="append", default=[], metavar="OPTION=VALUES", help="a further axis: an option of the bundles"
    )
    grid.add_argument(
        "--protocol",
        default="",
        metavar="NAME",
        help=f"put this overlay on every bundle: {', '.join(PROTOCOLS)}; its values hold unless they are given here",
    )
    grid.add_argument("--manifest", help=f"path or shipped name (default: {default['manifest']}, or the protocol's)")
    grid.add_argument("--dataset_dir", help=f"the scans (default: {default['dataset_dir']}, or the protocol's)")
    grid.add_argument("--output_dir", required=True, help="the study folder")
    grid.add_argument("--bundles", type=Path, help="take the bundles from this folder (default: the package's own)")
    run = sweep.add_argument_group("how to run it")
    run.add_argument("--dry_run", action="store_true", help="print the cells and the time they take, run nothing")
    run.add_argument("--only", metavar="PATTERN", help="run a part of the grid: a glob over the ids of --dry_run")
    run.add_argument("--trust", action="store_true", help="run bundles that name code of your own, unchecked")
    run.add_argument("--retries", type=int, default=2, help="starts after a failure (default: %(default)s)")
    run.add_argument("--gpus_per_cell", type=float, help="such as 0.25; 0 for the CPU (default: by scale)")
    run.add_argument("--cpus_per_cell", type=float, help="cores, and threads, of a cell (default: by scale)")
    common = sweep.add_argument_group("options of the bundles, for all cells (default: the bundle's own)")
    for option in COMMON:
        common.add_argument(f"--{option.name}", help=option.help.replace("%", "%%"))
    sweep.set_defaults(func=_sweep)


def _sweep(args: argparse.Namespace) -> int:
    if not args.dry_run:
        logger.info("checking the grid, and starting what runs its cells ...")
    with interruptible() as come:
        try:
            return run_sweep(args, StudyFolder(args.output_dir), RayExecutor)
        except KeyboardInterrupt:
            number = come[0] if come else SIGINT
            print(f"ended by {number.name} before a cell was started; the same command starts again", file=sys.stderr)
            return 128 + number


def run_sweep(args: argparse.Namespace, folder: StudyFolder, executor_type: Callable[[], Executor]) -> int:
    """Check everything, then run the sweep, or say what it would run.

    Args:
        args: the parsed command line.
        folder: the study folder.
        executor_type: makes the executor, once everything else is known to be right.

    Returns:
        The exit code.
    """
    if args.retries < 0:
        raise ConfigError(f"retries must be 0 or more, but {args.retries} was given; correct it")
    wanted, manifest = definition_of(args, code_version())
    notes = check(wanted, manifest)
    definition, more = extend_study(folder, wanted, manifest)
    cells = _chosen(definition, args.only)
    for note in (*notes, *more):
        print(f"note: {note}", file=sys.stderr)
    if args.dry_run:
        _print_plan(folder, definition, cells, args, executor_type)
        return 0
    with FolderLock(folder.lock_path, "sweep"):
        definition, _ = extend_study(folder, wanted, manifest)  # another sweep may have begun it meanwhile
        if all(folder.finished(cell) for cell in cells):
            folder.write_definition(definition)
            for cell in cells:  # their workers may have been killed when they had just ended
                folder.repair_record(cell, CellStatus.DONE)
            print(f"All {len(cells)} cells are done: monai-fp4 report {shlex.quote(str(folder.path))}")
            return 0
        executor, progress = executor_type(), SweepProgress()  # before anything is written: a cluster may not answer
        try:
            # It refuses cells that fit on no machine, and that before anything is written, too.
            asked = {"retries": args.retries, "cpus": args.cpus_per_cell, "gpus": args.gpus_per_cell}
            how = asked | {"version": code_version(), "trusted": args.trust}
            sweep = Sweep(folder, definition, cells, executor, progress, **how)
            refuse_keys_within(folder.path, load_manifest(manifest))
            prepare_data(manifest, definition.dataset_dir)  # once, not in every cell at the same time
            for note in write_study(folder, definition, manifest, args.bundles):
                print(f"note: {note}", file=sys.stderr)
            progress.say(f"The study in {folder.path}: {len(cells)} cells on {executor.description}")
            result = sweep.run()
        finally:
            progress.close()
            executor.close()
    _print_result(folder, len(cells), result)
    return result.exit_code


def _print_result(folder: StudyFolder, cells: int, result: SweepResult) -> None:
    print(f"{len(result.done)} of {cells} cells are done: monai-fp4 report {shlex.quote(str(folder.path))}")
    if result.failed:
        print(f"{len(result.failed)} cells failed:", file=sys.stderr)
        for cell, error in result.failed.items():
            print(f"  {cell.id}: {error} (log: {folder.run_dir(cell) / 'run.log'})", file=sys.stderr)
    if result.disk_full:
        print("error: the disk is full, so no further cell was started; make room and sweep again", file=sys.stderr)
    elif result.ended_by:
        goes_on = "the same command goes on after the last finished epoch of each cell"
        print(f"ended by {result.ended_by.name}; {goes_on}", file=sys.stderr)


def _chosen(definition: StudyDefinition, pattern: str | None) -> list[Cell]:
    cells = list(definition.cells())
    if pattern is None:
        return cells
    chosen = [cell for cell in cells if fnmatchcase(cell.id, pattern)]
    if not chosen:
        raise unknown_name("--only matches no cell, so", pattern, [cell.id for cell in cells][:20])
    return chosen


def _print_plan(
    folder: StudyFolder,
    definition: StudyDefinition,
    cells: Sequence[Cell],
    args: argparse.Namespace,
    executor_type: Callable[[], Executor],
) -> None:
    estimate = Estimate(timings(folder, definition))
    left: list[float | None] = []
    for cell in cells:
        said = "done"
        if not folder.finished(cell):
            seconds = estimate.seconds(*timing_key(cell))
            left.append(seconds)
            time = "time unknown" if seconds is None else f"about {format_seconds(seconds)}"
            said = f"{folder.known_record(cell).status}, {time}"
        print(f"{cell.id}  {said}")
    print(f"{len(cells)} cells, {len(cells) - len(left)} of them done")
    executor = executor_type() if os.environ.get("RAY_ADDRESS") else None
    try:
        most = executor.largest_machine() if executor else this_machine()
        needs = [cell_resources(scale, most, args.cpus_per_cell, args.gpus_per_cell) for scale in definition.scales]
        largest = max(needs, key=lambda item: (item.gpus, item.cpus))
        at_once = executor.slots(largest) if executor else cells_at_once([most], largest)
    finally:
        if executor is not None:
            executor.close()
    whole = time_left(left, at_once)
    if whole is None:
        print("Time: unknown, since not every network has a cell that is done; run one of each first (see --only)")
    else:
        print(
            f"Time: about {format_seconds(whole)}, {at_once} cells at once; from the cells of this study that are done"
        )
