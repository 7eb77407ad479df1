"""Check a grid, and hold it against the study that a folder holds: whatever is wrong is found before a cell starts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_fp4.bundle.files import protocol_config
from monai_fp4.bundle.options import OPTIONS, RunOptions, defaults
from monai_fp4.data import load_manifest, select_patients
from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.networks import check_image_size, find_cell
from monai_fp4.study.grid import COMMON
from monai_fp4.study.layout import StudyDefinition, StudyFolder
from monai_fp4.study.variants import recipe_of

__all__ = ["check", "extend_study"]

_MOVABLE = tuple(option.name for option in OPTIONS if not option.starts_a_new_run)


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
