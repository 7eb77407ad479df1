"""The study folder: what a sweep writes and a report reads, defined here and nowhere else.

::

    study/
      study.json                      the definition: the axes of the grid and what all cells have in common
      bundles/unet_500k_sr.json ...   the bundle files that the cells run
      cells/unet_500k/sr/fold0_seed3/                    one cell: a run folder, as its bundle writes it,
        cell.json                     with what the sweep knows of it
        run.log                       and what the run printed
      cells/unet_500k/sr/optimizer-muon/fold0_seed3/     the same with a further axis
      .lock                           held by the one sweep that works here

A cell is one run: architecture, scale, recipe, fold, seed and, for each further axis of the grid, an option of the
bundles (`monai_fp4.options`). Everything that identifies a cell is in its path, so the folder can be read with ``ls``.

>>> definition = StudyDefinition(
...     archs=("unet",), scales=("500k",), recipes={"bf16": "bf16", "sr": "sr"}, folds=(0,), seeds=(0, 1),
...     further={"optimizer": ("adamw", "muon")}, manifest="phantom", dataset_dir="data/phantom")
>>> cells = definition.cells()
>>> len(cells), cells[-1].id
(8, 'unet_500k/sr/optimizer-muon/fold0_seed1')
>>> StudyDefinition.from_json(definition.to_json()) == definition
True
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from monai_fp4.bundle_template import bundle_name
from monai_fp4.errors import ConfigError
from monai_fp4.networks.table import network_table
from monai_fp4.run_folder import write_atomically

__all__ = ["Cell", "CellRecord", "CellStatus", "StudyDefinition", "StudyFolder"]

FORMAT = 1
"""Version of the layout, in ``study.json``."""


class CellStatus(StrEnum):
    """How far a cell is."""

    WAITING = "waiting"
    """Not begun, or cut off: the next sweep goes on after its last checkpoint."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, order=True)
class Cell:
    """One run of the grid.

    Attributes:
        arch: architecture.
        scale: scale.
        recipe: a key of `StudyDefinition.recipes`.
        fold: the fold that it is validated on, or ``"all"``.
        seed: its seed.
        further: option and value of each further axis, in the definition's order.
    """

    arch: str
    scale: str
    recipe: str
    fold: int | str = 0
    seed: int = 0
    further: tuple[tuple[str, Any], ...] = ()

    @property
    def group(self) -> str:
        """What all folds and seeds of this combination share: ``unet_500k/sr/optimizer-muon``."""
        axes = "_".join(f"{name}-{_slug(value)}" for name, value in self.further)
        return "/".join([f"{self.arch}_{self.scale}", _slug(self.recipe), *([axes] if axes else [])])

    @property
    def id(self) -> str:
        """The cell's folder below ``cells/``."""
        return f"{self.group}/fold{self.fold}_seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """``cell.json``: what the sweep knows of a cell; the results themselves are in the run's own files.

    Attributes:
        status: how far it is.
        attempts: how often it was started, over all sweeps.
        error: one sentence on why the last attempt failed; empty otherwise.
        seconds: wall time of all attempts together, from the start of the process to its end.
        host: machine of the last attempt.
        device: where it computed, such as ``cpu`` or ``cuda:0``, with the GPUs that Ray gave it.
        started: begin of the last attempt, ISO 8601 in UTC.
        finished: end of the last attempt.
        version: version of the package, with the commit where it runs from a checkout.
        pid: process of the last attempt.
    """

    status: CellStatus = CellStatus.WAITING
    attempts: int = 0
    error: str = ""
    seconds: float = 0.0
    host: str = ""
    device: str = ""
    started: str = ""
    finished: str = ""
    version: str = ""
    pid: int = 0


@dataclass(frozen=True, kw_only=True)
class StudyDefinition:
    """``study.json``: the axes of the grid and what all its cells have in common.

    Attributes:
        archs: architectures.
        scales: scales; a pair that the network table does not hold (swinunetr below 15m) is no cell.
        recipes: name -> what the bundle's option ``recipe`` is given: a name, or a mapping of the recipe's fields.
        folds: folds to validate on.
        seeds: seeds.
        further: option of the bundles -> its values, one axis each.
        manifest: shipped name of the manifest, or ``manifest.json``: a copy of it in the study folder.
        dataset_dir: folder of its scans.
        options: options of the bundles that all cells have in common, such as ``{"epochs": 3}``.
        version: version of the package that began the study, with the commit where it ran from a checkout.
        created: when, ISO 8601 in UTC.
    """

    archs: tuple[str, ...]
    scales: tuple[str, ...]
    recipes: Mapping[str, Any]
    folds: tuple[int | str, ...]
    seeds: tuple[int, ...]
    manifest: str
    dataset_dir: str
    further: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    created: str = ""

    def networks(self) -> tuple[tuple[str, str], ...]:
        """Pairs of architecture and scale that exist, in the order of the axes."""
        known = {(row.arch, row.scale) for row in network_table()}
        return tuple((arch, scale) for arch in self.archs for scale in self.scales if (arch, scale) in known)

    def cells(self) -> tuple[Cell, ...]:
        """Every cell, seed by seed: a study that is cut off has whole grids of the first seeds."""
        combinations: list[tuple[tuple[str, Any], ...]] = [()]
        for name, values in self.further.items():
            combinations = [(*chosen, (name, _frozen(value))) for chosen in combinations for value in values]
        return tuple(
            Cell(arch, scale, recipe, fold, seed, further)
            for seed in self.seeds
            for fold in self.folds
            for arch, scale in self.networks()
            for recipe in self.recipes
            for further in combinations
        )

    def bundle(self, cell: Cell) -> str:
        """File name, without ending, of the bundle that a cell runs: the one of its recipe, or of its recipe's base."""
        recipe = self.recipes[cell.recipe]
        base = recipe if isinstance(recipe, str) else recipe.get("base", "full")
        return bundle_name(cell.arch, cell.scale, base)

    def to_json(self) -> dict[str, Any]:
        """The definition as JSON values, with the layout's version."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_json(cls, document: Any, source: str = "study.json") -> StudyDefinition:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: when it is something else, naming the field.
        """
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, Mapping) else type(document).__name__
            raise ConfigError(
                f"{source} must define a study in format {FORMAT}, but format {found!r} was found; choose the folder"
                " of a study, or the version of monai-fp4 that wrote it"
            )
        values = {name: value for name, value in document.items() if name != "format"}
        known = {item.name: item for item in fields(cls)}
        wrong = [name for name in values if name not in known]
        wrong += [name for name in ("archs", "scales", "recipes", "folds", "seeds") if not values.get(name)]
        wrong += [name for name in ("manifest", "dataset_dir") if not isinstance(values.get(name), str)]
        wrong += [n for n in ("recipes", "further", "options") if not isinstance(values.get(n, {}), Mapping)]
        wrong += [n for n in ("archs", "scales", "folds", "seeds") if not isinstance(values.get(n, []), list)]
        if wrong:
            raise ConfigError(
                f"{source} must define a study, but its field '{wrong[0]}' is missing or wrong; restore it"
            )
        for name in ("archs", "scales", "folds", "seeds"):
            values[name] = tuple(values[name])
        values["further"] = {name: tuple(_frozen(v) for v in axis) for name, axis in values.get("further", {}).items()}
        return cls(**values)


class StudyFolder:
    """The files of a study.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.definition_path = self.path / "study.json"
        self.cells_path = self.path / "cells"
        self.bundles_path = self.path / "bundles"
        self.lock_path = self.path / ".lock"

    def read_definition(self) -> StudyDefinition:
        """Read ``study.json``.

        Raises:
            ConfigError: when the folder holds no study, or a damaged one.
        """
        if not self.definition_path.is_file():
            raise ConfigError(
                f"{self.path} must be the folder of a study, but it holds no study.json; give the output_dir of a"
                " 'monai-fp4 sweep'"
            )
        return StudyDefinition.from_json(read_json(self.definition_path), str(self.definition_path))

    def write_definition(self, definition: StudyDefinition) -> None:
        """Write ``study.json``, whole or not at all."""
        write_json(self.definition_path, definition.to_json())

    def manifest(self, definition: StudyDefinition) -> str:
        """The study's manifest as `monai_fp4.data.load_manifest` takes it: a path, or a shipped name."""
        copy = self.path / definition.manifest
        return str(copy) if copy.is_file() else definition.manifest

    def run_dir(self, cell: Cell) -> Path:
        """The cell's run folder."""
        return self.cells_path / cell.id

    def record(self, cell: Cell) -> CellRecord:
        """What ``cell.json`` says; a cell without one is waiting.

        Raises:
            ConfigError: when the file is damaged.
        """
        path = self.run_dir(cell) / "cell.json"
        if not path.exists():
            return CellRecord()
        document = read_json(path)
        known = {item.name for item in fields(CellRecord)}
        try:
            values = {name: value for name, value in document.items() if name in known}
            return CellRecord(**{**values, "status": CellStatus(document["status"])})
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ConfigError(f"{path} must hold a cell's 'status', but does not; remove it, and sweep again") from None

    def write_record(self, cell: Cell, record: CellRecord) -> None:
        """Write ``cell.json``, whole or not at all."""
        write_json(self.run_dir(cell) / "cell.json", asdict(record))

    def finished(self, cell: Cell) -> bool:
        """Whether the cell's run reached its last epoch, which the run itself says."""
        metrics = self.metrics(cell)
        return metrics is not None and metrics.get("finished") is True

    def metrics(self, cell: Cell) -> dict[str, Any] | None:
        """The run's ``metrics.json`` as it is now, or None before its first epoch.

        Raises:
            ConfigError: when the file is damaged.
        """
        path = self.run_dir(cell) / "metrics.json"
        document = read_json(path) if path.exists() else None
        if document is not None and not isinstance(document, dict):
            raise ConfigError(f"{path} must hold a JSON object, but holds a {type(document).__name__}; restore it")
        return document

    def run_dirs(self) -> Iterator[tuple[Cell, Path]]:
        """Every cell of the definition and its run folder, which may not exist yet."""
        for cell in self.read_definition().cells():
            yield cell, self.run_dir(cell)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: when it cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} must hold JSON, but reading it failed ({error}); restore or remove it") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        ConfigError: when the system does not let it, such as on a full disk.
    """
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _slug(value: Any) -> str:
    """A value as part of a folder's name: ``[128, 128]`` is ``128x128``."""
    text = "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return re.sub(r"[^A-Za-z0-9.+]+", "_", text).strip("_") or "none"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
