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
import os
import shlex
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_fp4.bundle.options import OPTIONS
from monai_fp4.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from monai_fp4.study.executor import Executor
    from monai_fp4.study.layout import Cell, StudyDefinition, StudyFolder

__all__ = ["add_parser"]


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``sweep`` to a parser; it sets ``func``, which returns the exit code."""
    from monai_fp4.bundle.files import PROTOCOLS
    from monai_fp4.study.grid import COMMON
    from monai_fp4.study.variants import ADDITIONS

    default = {option.name: option.default for option in OPTIONS}
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
    from monai_fp4.study.executor import RayExecutor
    from monai_fp4.study.layout import StudyFolder

    return run_sweep(args, StudyFolder(args.output_dir), RayExecutor)


def run_sweep(args: argparse.Namespace, folder: StudyFolder, executor_type: type[Executor] | Any) -> int:
    """Check everything, then run the sweep, or say what it would run.

    Args:
        args: the parsed command line.
        folder: the study folder.
        executor_type: makes the executor, once everything else is known to be right.
    """
    from monai_fp4.data import load_manifest, prepare_data
    from monai_fp4.data.pseudonyms import refuse_keys_within
    from monai_fp4.lock import FolderLock
    from monai_fp4.study.commands import write_study
    from monai_fp4.study.grid import check, code_version, extend_study
    from monai_fp4.study.layout import CellStatus
    from monai_fp4.study.progress import SweepProgress
    from monai_fp4.study.sweep import Sweep, repair_record

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
                repair_record(folder, cell, CellStatus.DONE)
            print(f"All {len(cells)} cells are done: monai-fp4 report {shlex.quote(str(folder.path))}")
            return 0
        executor = executor_type()  # before anything is written: a cluster may not answer
        progress = SweepProgress()
        try:
            # It refuses cells that fit on no machine, and that before anything is written, too.
            how = {
                "retries": args.retries,
                "cpus": args.cpus_per_cell,
                "gpus": args.gpus_per_cell,
                "trusted": args.trust,
            }
            sweep = Sweep(folder, definition, cells, executor, progress, version=code_version(), **how)
            refuse_keys_within(folder.path, load_manifest(manifest))
            prepare_data(manifest, definition.dataset_dir)  # once, not in every cell at the same time
            for note in write_study(folder, definition, manifest, args.bundles):
                print(f"note: {note}", file=sys.stderr)
            progress.say(f"The study in {folder.path}: {len(cells)} cells on {executor.description}")
            result = sweep.run()
        finally:
            progress.close()
            executor.close()
    print(f"{len(result.done)} of {len(cells)} cells are done: monai-fp4 report {shlex.quote(str(folder.path))}")
    if result.failed:
        print(f"{len(result.failed)} cells failed:", file=sys.stderr)
        for cell, error in result.failed.items():
            print(f"  {cell.id}: {error} (log: {folder.run_dir(cell) / 'run.log'})", file=sys.stderr)
    if result.disk_full:
        print("error: the disk is full, so no further cell was started; make room and sweep again", file=sys.stderr)
    elif result.ended_by:
        print(
            f"ended by {result.ended_by.name}; the same command goes on after the last finished epoch of each cell",
            file=sys.stderr,
        )
    return result.exit_code


def definition_of(args: argparse.Namespace, version: str = "") -> tuple[StudyDefinition, str]:
    """The grid that a command line asks for, and where its manifest is now.

    Raises:
        ConfigError: for a name that is not known, or a number that is none.
    """
    from monai_fp4.bundle.files import protocol_config
    from monai_fp4.bundle.options import defaults
    from monai_fp4.networks import ARCHITECTURES, SCALES
    from monai_fp4.quantization.recipes import FURTHER_RECIPES, RECIPES
    from monai_fp4.study import grid
    from monai_fp4.study.commands import OPTIMIZERS
    from monai_fp4.study.layout import StudyDefinition, read_json
    from monai_fp4.study.variants import grid_recipes

    own = read_json(args.recipes_file) if args.recipes_file else {}
    if not isinstance(own, dict):
        raise ConfigError(f"{args.recipes_file} must hold a mapping of names to recipes, but does not; correct it")
    if taken := sorted({*RECIPES, *FURTHER_RECIPES} & set(own)):
        raise ConfigError(
            f"{args.recipes_file} must give recipes names of their own, but {taken[0]!r} is one of the package's;"
            " rename it"
        )
    further: dict[str, tuple[Any, ...]] = {}
    for text in args.axis:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"--axis must be OPTION=VALUES such as learning_rate=0.001,0.003, but {text!r} was given")
        further[name] = _axis_values(values)
    if args.optimizers is not None:
        further["optimizer"] = grid.names("optimizers", args.optimizers, OPTIMIZERS)
    options = {
        option.name: grid.parse_value(getattr(args, option.name))
        for option in grid.COMMON
        if getattr(args, option.name) is not None
    }
    protocol = protocol_config(args.protocol)
    otherwise = defaults() | protocol
    named = otherwise["manifest"] if args.manifest is None else args.manifest
    dataset_dir = otherwise["dataset_dir"] if args.dataset_dir is None else args.dataset_dir
    path = Path(named)
    # A manifest of the user's is copied, so that the study says by itself who was in which fold.
    kept = "manifest.json" if path.is_file() else named
    definition = StudyDefinition(
        archs=grid.names("archs", args.archs, ARCHITECTURES),
        scales=grid.names("scales", args.scales, SCALES),
        recipes=grid_recipes(_with_attention(args.recipes, args.attention), own),
        folds=grid.folds_of(str(otherwise["fold"]) if args.folds is None else args.folds),
        seeds=grid.seeds_of(f"{otherwise['seed']}," if args.seeds is None else args.seeds),
        further=further,
        manifest=kept,
        dataset_dir=str(Path(dataset_dir).expanduser().resolve()),
        options=options,
        protocol=args.protocol,
        version=version,
        created=grid.now(),
    )
    return StudyDefinition.from_json(definition.to_json()), str(path.resolve()) if path.is_file() else named


def _axis_values(text: str) -> tuple[Any, ...]:
    """``0.001,0.003`` or ``[64,64],[128,128]``: the commas outside of brackets divide."""
    from monai_fp4.study.grid import parse_value

    whole = parse_value(f"[{text}]")
    values = whole if isinstance(whole, list) else [parse_value(word.strip()) for word in text.split(",")]
    return tuple(dict.fromkeys(tuple(value) if isinstance(value, list) else value for value in values))


def _with_attention(recipes: str, attention: str | None) -> str:
    """Cross the recipes with the precision inside attention."""
    if attention is None:
        return recipes
    from monai_fp4.quantization.recipes import RECIPES, AttentionPrecision
    from monai_fp4.study.grid import names

    chosen = names("attention", attention, [str(value) for value in AttentionPrecision])
    words = [word.strip() for word in recipes.split(",")]
    # What does not quantize stays as it is, once: it is the baseline of both.
    plain = [word for word in words if word in RECIPES and not RECIPES[word].quantizes]
    plain += ["bf16"] if "all" in words and "bf16" not in plain else []
    others = [word for word in words if word not in plain]
    suffixes = ["+attention" if precision == AttentionPrecision.FP4 else "" for precision in chosen]
    return ",".join([*plain, *(f"{word}{suffix}" for suffix in suffixes for word in others)])


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
    executor_type: type[Executor] | Any,
) -> None:
    from monai_fp4.durations import format_seconds
    from monai_fp4.study.estimate import Estimate, time_left
    from monai_fp4.study.executor import cell_resources, cells_at_once, this_machine
    from monai_fp4.study.sweep import timing_key, timings

    estimate = Estimate(timings(folder, definition))
    left: list[float | None] = []
    for cell in cells:
        seconds = None if folder.finished(cell) else estimate.seconds(*timing_key(cell))
        if folder.finished(cell):
            said = "done"
        else:
            left.append(seconds)
            time = "time unknown" if seconds is None else f"about {format_seconds(seconds)}"
            said = f"{folder.known_record(cell).status}, {time}"
        print(f"{cell.id}  {said}")
    print(f"{len(cells)} cells, {len(cells) - len(left)} of them done")
    if os.environ.get("RAY_ADDRESS"):
        executor = executor_type()
        most, slots = executor.largest_machine(), executor.slots
    else:
        executor, most = None, this_machine()
        slots = lambda needs: cells_at_once([most], needs)  # noqa: E731
    try:
        needs = [cell_resources(scale, most, args.cpus_per_cell, args.gpus_per_cell) for scale in definition.scales]
        at_once = slots(max(needs, key=lambda item: (item.gpus, item.cpus)))
        whole = time_left(left, at_once)
    finally:
        if executor is not None:
            executor.close()
    if whole is None:
        print("Time: unknown, since not every network has a cell that is done; run one of each first (see --only)")
    else:
        print(
            f"Time: about {format_seconds(whole)}, {at_once} cells at once; from the cells of this study that are done"
        )
