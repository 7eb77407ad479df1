"""Definition of a study: the axes of its grid, what all cells have in common, and ``study.json``, which says so.

>>> definition = StudyDefinition(
...     archs=("unet", "swinunetr"), scales=("500k",), recipes={"sr_last": {"base": "sr", "bf16_last_share": 0.1}},
...     folds=(0,), seeds=(0,), manifest="phantom", dataset_dir="data/phantom")
>>> [definition.bundle(cell) for cell in definition.cells()]  # swinunetr has no 500k
['unet_500k_sr']
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from monai_fp4.bundle.template import bundle_name
from monai_fp4.errors import ConfigError
from monai_fp4.networks.table import network_table
from monai_fp4.study.layout.cell import Cell

__all__ = ["FORMAT", "NAMED_FOLDS", "StudyDefinition"]

FORMAT = 1
"""Version of the layout, in ``study.json``."""

NAMED_FOLDS = ("holdout", "all")
"""What a fold may be beside a number: the split that a manifest names so, and nobody held out."""


@dataclass(frozen=True, kw_only=True)
class StudyDefinition:
    """``study.json``: the axes of the grid and what all its cells have in common.

    Attributes:
        archs: architectures.
        scales: scales; a pair that the network table does not hold (swinunetr below 15m) is no cell.
        recipes: name -> what the bundle's option ``recipe`` is given: a name, or a mapping of the recipe's fields.
        folds: folds to validate on: numbers, ``holdout`` or ``all``.
        seeds: seeds.
        further: option of the bundles -> its values, one axis each.
        manifest: shipped name of the manifest, or ``manifest.json``: a copy of it in the study folder.
        dataset_dir: folder of its scans.
        options: options of the bundles that all cells have in common, such as ``{"epochs": 3}``.
        protocol: name of the overlay that all cells put on their bundle (``bundles/protocols``), or empty.
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
    protocol: str = ""
    version: str = ""
    created: str = ""

    def networks(self) -> tuple[tuple[str, str], ...]:
        """Pairs of architecture and scale that exist, in the order of the axes."""
        known = {(row.arch, row.scale) for row in network_table()}
        return tuple((arch, scale) for arch in self.archs for scale in self.scales if (arch, scale) in known)

    def cells(self) -> tuple[Cell, ...]:
        """Every cell, seed by seed and recipe by recipe.

        A study that is cut off has whole grids of the first seeds and, within one, whole recipes of all networks; and
        the time left is known as soon as one cell of each network is done.
        """
        axes = [[(name, _frozen(value)) for value in values] for name, values in self.further.items()]
        return tuple(
            Cell(arch, scale, recipe, fold, seed, further)
            for seed in self.seeds
            for fold in self.folds
            for recipe in self.recipes
            for arch, scale in self.networks()
            for further in itertools.product(*axes)
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
        texts = {"manifest": None, "dataset_dir": None, "protocol": "", "created": "", "version": ""}
        wrong += [name for name, missing in texts.items() if not isinstance(values.get(name, missing), str)]
        wrong += [n for n in ("recipes", "further", "options") if not isinstance(values.get(n, {}), Mapping)]
        wrong += [n for n in ("archs", "scales", "folds", "seeds") if not isinstance(values.get(n, []), list)]
        if wrong:
            raise _not_a_study(source, wrong[0])
        axes = {n: values[n] for n in ("archs", "scales", "folds", "seeds")}
        wrong += [n for n, axis in axes.items() if len(set(map(repr, axis))) < len(axis)]  # each cell once
        wrong += [n for n in ("archs", "scales") if not all(isinstance(name, str) for name in values[n])]
        wrong += ["further" for axis in values.get("further", {}).values() if not isinstance(axis, list)]
        wrong += ["recipes" for recipe in values["recipes"].values() if not _names_a_bundle(recipe)]
        # These become names of folders.
        wrong += ["folds" for fold in values.get("folds", ()) if type(fold) is not int and fold not in NAMED_FOLDS]
        wrong += ["seeds" for seed in values.get("seeds", ()) if type(seed) is not int]
        names = [*values.get("recipes", ()), *values.get("further", ()), values.get("version", "")]
        shown = all(isinstance(name, str) and name.isprintable() and "$" not in name for name in names)
        wrong += [] if shown else ["recipes"]
        for axis in ("options", "further"):  # these become words of a command line
            plain = all(re.fullmatch(r"[A-Za-z]\w*", str(name)) and name != "trust" for name in values.get(axis, ()))
            wrong += [] if plain else [axis]
        wrong += ["manifest"] if re.search(r"[^\w.-]|^\.", str(values.get("manifest"))) else []
        wrong += [] if re.fullmatch(r"\w*", str(values.get("protocol", ""))) else ["protocol"]
        if wrong:
            raise _not_a_study(source, wrong[0])
        for name in ("archs", "scales", "folds", "seeds"):
            values[name] = tuple(values[name])
        values["further"] = {name: tuple(_frozen(v) for v in axis) for name, axis in values.get("further", {}).items()}
        return cls(**values)


def _not_a_study(source: str, field: str) -> ConfigError:
    return ConfigError(f"{source} must define a study, but its field '{field}' is missing or wrong; restore it")


def _names_a_bundle(recipe: Any) -> bool:
    """Whether a recipe is a name, or a mapping whose base is one: it becomes part of a file's name."""
    name = recipe.get("base", "full") if isinstance(recipe, Mapping) else recipe
    return isinstance(name, str) and re.fullmatch(r"\w+", name) is not None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
