"""A study folder as tables: one row a cell, and long tables of what its runs recorded.

Nothing is dropped in silence. Every cell of the definition has a row, with a status that says how far it is, and what
could not be read stands in `problem`, in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from monai_fp4.errors import ConfigError, printable
from monai_fp4.quantization.recipes import RECIPES
from monai_fp4.report.tables.cell_files import KEYS, METRICS, STATUSES, collect_cell
from monai_fp4.report.tables.run_health import ATTENTION, LAYERS, SCORES
from monai_fp4.study.layout import StudyDefinition, StudyFolder, read_json

__all__ = ["KEYS", "METRICS", "STATUSES", "StudyTables", "collect", "metric_name"]


@dataclass(frozen=True)
class StudyTables:
    """The tables of a study.

    Attributes:
        definition: what the study set out to do.
        data_set: name of its manifest.
        cells: one row a cell of the definition: `KEYS`, `id`, `status`, `problem`, every metric of `METRICS` and, of
            test patients, of `TEST_METRICS`, options,
            `epochs_done`, `best_epoch`, `train_seconds`, `version` and more.
        epochs: `KEYS`, `epoch`, losses and metrics, of every epoch of every cell, finished or not.
        scores: `KEYS`, `bin` (left edge), `positives`, `negatives`: predicted probabilities at the best epoch.
        curves: `KEYS`, `threshold` from high to low, `tp`, `fp` at or above it: the precision-recall curve of the best
            epoch.
        health: `KEYS`, `epoch`, `layer`, `operand`, `snr_db`, `underflow`, `clipped`.
        attention: `KEYS`, `epoch`, `layer`, `measure`, `value`; empty unless the runs record any.
        patients: `KEYS`, `patient`, `auprc`, `recall`, `dice`, of the runs or of evaluations in their folders.
        notes: sentences about the folder as a whole.
    """

    definition: StudyDefinition
    data_set: str
    cells: pd.DataFrame
    epochs: pd.DataFrame
    scores: pd.DataFrame
    curves: pd.DataFrame
    health: pd.DataFrame
    attention: pd.DataFrame
    patients: pd.DataFrame
    notes: tuple[str, ...]

    @cached_property
    def done(self) -> pd.DataFrame:
        """The finished cells with an AUPRC: the ones that numbers are computed from."""
        return self.cells[(self.cells["status"] == "done") & self.cells["auprc"].notna()]

    @cached_property
    def recipes(self) -> list[str]:
        """The study's recipes in the order of the table of recipes, its own ones after them."""
        own = [name for name in self.definition.recipes if name not in RECIPES]
        return [name for name in RECIPES if name in self.definition.recipes] + own

    @cached_property
    def baseline(self) -> str | None:
        """The name of the recipe that is BF16 throughout, or None."""
        for name, config in self.definition.recipes.items():
            if name == "bf16" or config == "bf16" or config == RECIPES["bf16"].to_config():
                return str(name)
        return None

    @cached_property
    def models(self) -> list[str]:
        """Architecture, scale and variant, in the definition's order."""
        return list(dict.fromkeys(self.cells["model"]))

    @cached_property
    def main_fold(self) -> Any:
        """The fold with the most finished cells, the first of equal ones: seeds are compared within it."""
        counts = self.done["fold"].value_counts()
        return max(self.definition.folds, key=lambda fold: counts.get(str(fold), 0))

    def in_main_fold(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that belong to the main fold."""
        return table[table["fold"] == str(self.main_fold)]

    def done_of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The finished cells that have rows in a table."""
        return self.done.merge(rows[KEYS].drop_duplicates(), on=KEYS)


def collect(path: str | Path) -> StudyTables:
    """Read a study folder.

    Raises:
        ConfigError: when the folder holds no study.
    """
    folder = StudyFolder(path)
    definition = folder.read_definition()
    names = ("cells", "epochs", "scores", "curves", "health", "attention", "patients")
    rows: dict[str, list[Any]] = {name: [] for name in names}
    known = set()
    for cell in definition.cells():
        known.add(folder.run_dir(cell))
        collect_cell(folder, cell, rows)
    if not known:
        raise ConfigError(f"{folder.definition_path} must define cells, but none of its networks exists; sweep others")
    notes = (*_unknown_folders(folder, known), *_without_health(folder, rows["cells"]))
    health = pd.concat(rows.pop("health"), ignore_index=True) if rows["health"] else pd.DataFrame()
    tables = {name: pd.DataFrame(content) for name, content in rows.items()} | {"health": health}
    columns = {
        "epochs": ["epoch", "train_loss", *METRICS],
        "scores": SCORES,
        "curves": ["threshold", "tp", "fp"],
        "health": LAYERS,
        "attention": ATTENTION,
        "patients": ["patient", "auprc", "recall", "dice"],
    }
    for name, extra in columns.items():
        tables[name] = tables[name].reindex(columns=[*KEYS, *extra])
        if tables[name].empty:  # whose columns would be numbers, which do not merge with names
            tables[name] = tables[name].astype(tables["cells"][KEYS].dtypes)
    return StudyTables(definition=definition, data_set=_data_set(folder, definition), notes=notes, **tables)


def metric_name(metric: str, inside: bool = False) -> str:
    """Write a metric's name, such as AUPRC; `inside` of a sentence, recall begins with a small letter."""
    name = {"auprc": "AUPRC", "dice": "Dice"}.get(metric, metric)
    return name if inside else name[0].upper() + name[1:]


def _data_set(folder: StudyFolder, definition: StudyDefinition) -> str:
    """The manifest's own name, where the study keeps a copy of it; else what the study calls it."""
    path = folder.path / definition.manifest
    try:
        return printable(str(read_json(path)["name"])) if path.is_file() else definition.manifest
    except (ConfigError, KeyError, TypeError):
        return definition.manifest


def _without_health(folder: StudyFolder, cells: list[dict[str, Any]]) -> list[str]:
    begun = [cell["id"] for cell in cells if cell["epochs_done"]]
    without = [name for name in begun if not (folder.cells_path / name / "health.json").exists()]
    if not without:
        return []
    return [
        f"{len(without)} of {len(begun)} cells that have begun hold no health.json, which earlier versions did not"
        " write: the health of their layers, their probabilities and their calibration are not in this report."
    ]


def _unknown_folders(folder: StudyFolder, known: set[Path]) -> list[str]:
    found = {path.parent for path in folder.cells_path.rglob("cell.json")} - known
    names = sorted(path.relative_to(folder.cells_path).as_posix() for path in found)
    if not names:
        return []
    few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"{len(names)} folders below cells/ belong to no cell of study.json and are not counted: {few}"]
