"""Parse and check a grid, from a command line to a study's definition: whatever is wrong is found before a cell starts.

An axis is a list (``unet,swin``), and for whole numbers also a range (``0-4``); ``--seeds 10`` is how many:

>>> numbers("folds", "0,2-4"), seeds_of("3"), seeds_of("7,")
((0, 2, 3, 4), (0, 1, 2), (7,))
>>> seeds_of("0")
Traceback (most recent call last):
    ...
monai_fp4.errors.ConfigError: seeds must be at least one seed, but '0' was given; write how many, or a list as 0,1,2
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import monai_fp4
from monai_fp4.bundle.files import protocol_config
from monai_fp4.bundle.options import OPTIONS, RunOptions, defaults
from monai_fp4.data import load_manifest, select_patients
from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.networks import check_image_size, find_cell
from monai_fp4.study.layout import StudyDefinition, StudyFolder
from monai_fp4.study.variants import recipe_of

__all__ = [
    "COMMON",
    "check",
    "code_version",
    "folds_of",
    "names",
    "now",
    "numbers",
    "parse_value",
    "seeds_of",
    "extend_study",
]

_OWN = ("recipe", "arch", "scale", "fold", "seed", "output_dir", "manifest", "dataset_dir")
COMMON = tuple(option for option in OPTIONS if option.name not in _OWN)
"""Options of the bundles that a grid sets for all of its cells, or takes as a further axis."""


def names(axis: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    """Read a list of names.

    Raises:
        ConfigError: for a name that is not known, with the nearest ones.
    """
    known = list(known)
    chosen = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in chosen:
        if name not in known:
            raise unknown_name(axis, name, known)
    if not chosen:
        raise ConfigError(f"{axis} must be at least one of {', '.join(known)}, but {text!r} was given; name one")
    return chosen


def numbers(axis: str, text: str) -> tuple[int, ...]:
    """Read a list of whole numbers and ranges, ends included.

    Raises:
        ConfigError: when it is none.
    """
    found: list[int] = []
    for word in (part.strip() for part in text.split(",") if part.strip()):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", word, re.ASCII)
        if match is None:
            raise ConfigError(f"{axis} must be whole numbers such as 0,2-4, but {word!r} was given; correct it")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not found:
        raise ConfigError(f"{axis} must be at least one whole number, but {text!r} was given; write one such as 0")
    return tuple(dict.fromkeys(found))


def seeds_of(text: str) -> tuple[int, ...]:
    """Read ``--seeds``: how many, or a list or a range of them.

    Raises:
        ConfigError: when it is neither, or none.
    """
    if text.strip().isdecimal():
        if int(text) == 0:
            raise ConfigError(
                f"seeds must be at least one seed, but {text!r} was given; write how many, or a list as 0,1,2"
            )
        return tuple(range(int(text)))
    return numbers("seeds", text)


def folds_of(text: str) -> tuple[int | str, ...]:
    """Read ``--folds``: numbers and ``holdout``, or ``all`` alone, under which nobody is held out.

    >>> folds_of("0-2"), folds_of("holdout,0"), folds_of("all")
    ((0, 1, 2), ('holdout', 0), ('all',))
    """
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        return ("all",)
    numbered = ",".join(word for word in words if word != "holdout")
    if "holdout" not in words:
        return numbers("folds", numbered)
    return ("holdout", *(numbers("folds", numbered) if numbered.strip(",") else ()))


def parse_value(text: str) -> Any:
    """Read an option's value as the command line of a bundle does: JSON where it is JSON, else a text.

    >>> parse_value("3"), parse_value("[128, 128]"), parse_value("128,128"), parse_value("adamw"), parse_value("True")
    (3, [128, 128], [128, 128], 'adamw', True)
    """
    if text in ("True", "False"):
        return text == "True"
    for written in (text, f"[{text}]") if "," in text else (text,):
        with suppress(ValueError):
            return json.loads(written)
    return text


def check(definition: StudyDefinition, manifest: str) -> list[str]:
    """See that every cell could start.

    Args:
        definition: the grid.
        manifest: its manifest, as a path or a shipped name.

    Returns:
        What the user should know: which pairs of architecture and scale are no network.

    Raises:
        ConfigError: an option that no bundle has or that does not fit, an image size that a network cannot take, or an
            architecture that exists at none of the scales.
        DataError: a manifest that cannot be used, a fold that it does not have, or no patients to test on under a
            protocol that wants them.
    """
    networks = definition.networks()
    notes = []
    for arch in definition.archs:
        missing = [scale for scale in definition.scales if (arch, scale) not in networks]
        if len(missing) == len(definition.scales):
            find_cell(arch, missing[0])  # says at which scales it exists
        if missing:
            notes.append(f"{arch} does not exist at {', '.join(missing)}: no cells")
    records, protocol = load_manifest(manifest), protocol_config(definition.protocol)
    for fold in definition.folds:
        for part in ("train", "val", *(["test"] if "test" in protocol else [])):
            select_patients(records, fold, part)
    known = defaults()
    own = [name for name, value in protocol.items() if name not in known and not isinstance(value, (dict, list))]
    allowed = [*(option.name for option in COMMON), *own]
    for name in (*definition.options, *(name for name in definition.further if name != "optimizer")):
        if name not in allowed:
            raise unknown_name("option", name, allowed)
    if "optimizer" in definition.further and "optimizer" in protocol:
        raise ConfigError(
            f"the protocol {definition.protocol!r} chooses the optimizer, but --optimizers was given too; leave it out"
            f"{', or give --axis optimizer_name=adamw,adamax' if 'optimizer_name' in own else ''}"
        )
    both = [name for name in definition.further if name in definition.options]
    if both:
        raise ConfigError(f"{both[0]} must be an axis or the same for all cells, but both were given; leave one out")
    for cell in replace(definition, folds=definition.folds[:1]).cells():  # the folds were checked above
        values = {name: value for name, value in protocol.items() if not str(value).startswith("$")}
        values |= definition.options
        values |= {name: list(value) if isinstance(value, tuple) else value for name, value in cell.further}
        values |= {"arch": cell.arch, "scale": cell.scale, "fold": cell.fold, "seed": cell.seed}
        values["recipe"] = recipe_of(definition.recipes[cell.recipe], cell.arch, cell.scale)
        # Sections, such as the optimizer's, and what a protocol adds are no options.
        options = RunOptions.from_config(**{name: values.get(name, default) for name, default in known.items()})
        check_image_size(cell.arch, cell.scale, options.image_size, spatial_dims=len(options.image_size))
    return notes


def extend_study(folder: StudyFolder, wanted: StudyDefinition, manifest: str) -> tuple[StudyDefinition, list[str]]:
    """Find what the study in a folder becomes when this grid is asked of it; nothing is written.

    A study may grow: a value more on an axis adds cells. What its cells have in common may not change, as they could
    not be compared any more, and nothing may be left out, so that nobody takes a part for the whole.

    Args:
        folder: the study folder, which may not exist yet.
        wanted: the grid that is asked for.
        manifest: its manifest, as a path or a shipped name.

    Returns:
        The definition to write, and what the user should know.

    Raises:
        ConfigError: when the folder holds another study, naming the field in which they differ.
    """
    if not folder.definition_path.exists():
        others = [path.name for path in folder.path.iterdir()] if folder.path.is_dir() else []
        others = [name for name in others if not name.startswith(".")]
        if others or (folder.path.exists() and not folder.path.is_dir()):
            what = f"holds {others[0]}" if others else "is a file"
            raise ConfigError(f"{folder.path} must be a new folder or that of a study, but it {what}; choose another")
        return wanted, []
    found = folder.read_definition()

    def refuse(name: str, there: Any, here: Any, remedy: str = "choose another output_dir") -> ConfigError:
        return ConfigError(
            f"{folder.path} holds another study: '{name}' is {there!r} there and {here!r} here; {remedy}"
        )

    for name in dict.fromkeys([*found.options, *wanted.options]):
        if name not in _MOVABLE and found.options.get(name) != wanted.options.get(name):
            raise refuse(name, found.options.get(name), wanted.options.get(name))
    for name in ("protocol", "manifest"):
        if getattr(found, name) != getattr(wanted, name):
            raise refuse(name, getattr(found, name), getattr(wanted, name))
    copied = folder.path / found.manifest
    if copied.is_file() and _digest(copied) != _digest(Path(manifest)):
        raise refuse("manifest", f"sha256 {_digest(copied)[:12]}", f"sha256 {_digest(Path(manifest))[:12]}")
    for name, config in wanted.recipes.items():
        if name in found.recipes and found.recipes[name] != config:
            raise refuse(f"recipe {name}", found.recipes[name], config)
    if list(found.further) != list(wanted.further):
        raise refuse("axes", list(found.further), list(wanted.further))
    before, after = _axes(found), _axes(wanted)
    notes = []
    for axis, values in before.items():
        left_out = [value for value in values if value not in after[axis]]
        if left_out:
            raise refuse(axis, list(values), list(after[axis]), "name all of them, and --only to run a part")
        added = [value for value in after[axis] if value not in values]
        if added:
            notes.append(f"the study grows: {axis} also {', '.join(map(str, added))}")
    return StudyDefinition.from_json(wanted.to_json() | {"version": found.version, "created": found.created}), notes


_MOVABLE = tuple(option.name for option in OPTIONS if not option.starts_a_new_run)


def _axes(definition: StudyDefinition) -> Mapping[str, tuple[Any, ...]]:
    return {
        "archs": definition.archs,
        "scales": definition.scales,
        "recipes": tuple(definition.recipes),
        "folds": definition.folds,
        "seeds": definition.seeds,
        **definition.further,
    }


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} must be a manifest, but it cannot be read ({error}); restore it") from error


def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout: ``0.1.0 (97518c7)``."""
    root = Path(monai_fp4.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return monai_fp4.__version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return monai_fp4.__version__
    return f"{monai_fp4.__version__} ({said})"


def now() -> str:
    """The time as the study's files write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
