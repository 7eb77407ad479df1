"""A study folder as tables: one row a cell, and long tables of what its runs recorded.

Nothing is dropped in silence. Every cell of the definition has a row, with a status that says how far it is, and what
could not be read stands in `problem`, in one sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from monai_fp4.errors import ConfigError
from monai_fp4.recipes import RECIPES
from monai_fp4.report.calibration import bin_width, score_bins
from monai_fp4.report.events import RunEvents, read_events
from monai_fp4.study.layout import Cell, StudyDefinition, StudyFolder, read_json

__all__ = ["KEYS", "METRICS", "STATUSES", "StudyTables", "collect", "metric_name"]

KEYS = ["model", "arch", "scale", "variant", "recipe", "fold", "seed"]
"""What identifies a cell; `variant` names the values of the further axes and is empty without any."""
METRICS = (
    "auprc", "auprc_per_patient", "recall", "recall_per_patient", "precision", "dice", "dice_per_patient", "threshold",
    "distinct_scores", "val_loss",
)  # fmt: skip
STATUSES = ("done", "running", "waiting", "failed", "damaged")
"""In the order of the report; `damaged` is a cell whose files cannot be read, the others are the sweep's own."""
_OPTIONS = ("epochs", "image_size", "batch_size", "learning_rate")


@dataclass(frozen=True)
class StudyTables:
    """The tables of a study.

    Attributes:
        definition: what the study set out to do.
        cells: one row a cell of the definition: `KEYS`, `id`, `status`, `problem`, every metric of `METRICS`, options,
            `epochs_done`, `best_epoch`, `train_seconds`, `version` and more.
        epochs: `KEYS`, `epoch`, losses and metrics, of every epoch of every cell, finished or not.
        scores: `KEYS`, `bin` (left edge), `positives`, `negatives`: predicted probabilities at the best epoch.
        health: `KEYS`, `epoch`, `layer`, `operand`, `snr_db`, `underflow`, `clipped`.
        attention: `KEYS`, `epoch`, `layer`, `measure`, `value`; empty unless the runs record any.
        patients: `KEYS`, `patient`, `auprc`, `recall`, `dice`, where evaluations lie in the cells.
        notes: sentences about the folder as a whole.
    """

    definition: StudyDefinition
    cells: pd.DataFrame
    epochs: pd.DataFrame
    scores: pd.DataFrame
    health: pd.DataFrame
    attention: pd.DataFrame
    patients: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def done(self) -> pd.DataFrame:
        """The finished cells with an AUPRC: the ones that numbers are computed from."""
        return self.cells[(self.cells["status"] == "done") & self.cells["auprc"].notna()]

    @property
    def recipes(self) -> list[str]:
        """The study's recipes in the order of the table of recipes, its own ones after them."""
        own = [name for name in self.definition.recipes if name not in RECIPES]
        return [name for name in RECIPES if name in self.definition.recipes] + own

    @property
    def models(self) -> list[str]:
        """Architecture, scale and variant, in the definition's order."""
        return list(dict.fromkeys(self.cells["model"]))

    @property
    def main_fold(self) -> Any:
        """The fold with the most finished cells, the first of equal ones: seeds are compared within it."""
        counts = self.done["fold"].value_counts()
        return max(self.definition.folds, key=lambda fold: counts.get(str(fold), 0))

    def in_main_fold(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that belong to the main fold."""
        return table[table["fold"] == str(self.main_fold)]


def collect(path: str | Path) -> StudyTables:
    """Read a study folder.

    Raises:
        ConfigError: when the folder holds no study.
    """
    folder = StudyFolder(path)
    definition = folder.read_definition()
    rows: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("cells", "epochs", "scores", "health", "attention", "patients")
    }
    known = set()
    for cell in definition.cells():
        known.add(folder.run_dir(cell))
        _collect_cell(folder, cell, rows)
    notes = tuple(_strangers(folder, known))
    tables = {name: pd.DataFrame(content) for name, content in rows.items()}
    columns = {
        "epochs": ["epoch", "train_loss", *METRICS],
        "scores": ["bin", "width", "positives", "negatives"],
        "health": ["epoch", "layer", "operand", "snr_db", "underflow", "clipped"],
        "attention": ["epoch", "layer", "measure", "value"],
        "patients": ["patient", "auprc", "recall", "dice"],
    }
    for name, extra in columns.items():
        tables[name] = tables[name].reindex(columns=[*KEYS, *extra])
    return StudyTables(definition=definition, notes=notes, **tables)


def metric_name(metric: str) -> str:
    """How a metric is written, such as AUPRC."""
    return {"auprc": "AUPRC", "dice": "Dice", "recall": "Recall"}.get(metric, metric)


def _keys(cell: Cell) -> dict[str, Any]:
    variant = ", ".join(f"{name}={_said(value)}" for name, value in cell.further)
    model = f"{cell.arch} {cell.scale}" + (f" ({variant})" if variant else "")
    # Folds are texts, since one of them may be "all".
    named = (model, cell.arch, cell.scale, variant, cell.recipe, str(cell.fold), cell.seed)
    return dict(zip(KEYS, named, strict=True))


def _said(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _collect_cell(folder: StudyFolder, cell: Cell, rows: dict[str, list[dict[str, Any]]]) -> None:
    keys, run = _keys(cell), folder.run_dir(cell)
    row: dict[str, Any] = {**keys, "id": cell.id, "status": "waiting", "problem": ""}
    row |= dict.fromkeys([*METRICS, "best_epoch", "train_seconds", "peak_memory_bytes"], math.nan)
    row |= {"epochs_done": 0, **dict.fromkeys(("version", "host", "device", "backend"), ""), "attempts": 0}
    row |= dict.fromkeys(_OPTIONS) | {"train_patients": math.nan, "val_patients": math.nan}
    problems: list[str] = []
    try:
        record = folder.record(cell)
        row |= {"status": str(record.status), "attempts": record.attempts, "version": record.version}
        row |= {"host": record.host, "device": record.device, "wall_seconds": record.seconds or math.nan}
        problems += [record.error] if record.error else []
    except ConfigError as error:
        row["status"] = "damaged"
        problems.append(str(error))
    metrics: Mapping[str, Any] = {}
    try:
        metrics = folder.metrics(cell) or {}
        history = _history(metrics, run)
    except ConfigError as error:
        row["status"], metrics, history = "damaged", {}, []
        problems.append(str(error))
    if metrics.get("finished") is True and row["status"] != "damaged":
        # The run itself knows best: a sweep may have been killed before it wrote that the cell is done.
        row["status"], problems = "done", []
    elif row["status"] == "done":
        row["status"] = "damaged"
        problems.append(f"{run / 'metrics.json'} does not say that the run is finished, though the sweep does")
    row |= {name: _number(metrics.get(name)) for name in METRICS} | {"best_epoch": _number(metrics.get("best_epoch"))}
    row["epochs_done"] = len(history)
    if history:
        row["train_seconds"] = math.fsum(_number(entry.get("seconds"), 0.0) for entry in history)
    if row["status"] == "done" and math.isnan(row["auprc"]):
        problems.append("the run is finished but has no AUPRC: its validation patients hold no tumour")
    for entry in history:
        numbers = {name: _number(entry.get(name)) for name in ("train_loss", *METRICS)}
        rows["epochs"].append({**keys, "epoch": int(entry["epoch"]), **numbers})
    row |= _surroundings(run, problems)
    events = read_events(run)
    problems += events.problems
    count, total = events.probability_sums.get(int(row["best_epoch"]) if row["epochs_done"] else 0, (0.0, 0.0))
    row["mean_probability"] = total / count if count else math.nan
    _collect_events(keys, events, row["best_epoch"], rows)
    rows["patients"] += [{**keys, **patient} for patient in _patients(run, metrics, problems)]
    row["problem"] = "; ".join(problems)
    rows["cells"].append(row)


def _history(metrics: Mapping[str, Any], run: Path) -> Sequence[Mapping[str, Any]]:
    history = metrics.get("history", [])
    good = isinstance(history, list) and all(isinstance(e, dict) and isinstance(e.get("epoch"), int) for e in history)
    if not good or (metrics and not history):
        raise ConfigError(f"{run / 'metrics.json'} must hold a history of epochs, but does not; restore or remove it")
    return history


def _number(value: Any, otherwise: float = math.nan) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise


def _surroundings(run: Path, problems: list[str]) -> dict[str, Any]:
    """Options, patients, memory and backend: nice to have, so a damaged file costs a note and not the cell."""
    documents: dict[str, Mapping[str, Any]] = {}
    for name in ("config.json", "patients.json", "environment.json", "cell.json"):
        if (run / name).exists():
            try:
                document = read_json(run / name)
                documents[name] = document if isinstance(document, Mapping) else {}
            except ConfigError as error:
                problems.append(str(error))
    config = documents.get("config.json", {})
    found: dict[str, Any] = {
        name: _said(config[name]) if name == "image_size" else config[name] for name in _OPTIONS if name in config
    }
    patients = documents.get("patients.json", {})
    found |= {f"{part}_patients": len(patients[part]) for part in ("train", "val") if part in patients}
    for document in documents.values():
        if "peak_memory_bytes" in document:
            found["peak_memory_bytes"] = _number(document["peak_memory_bytes"])
    environment = documents.get("environment.json", {})
    if "backend" in environment:
        found["backend"] = str(environment["backend"])
    return found


def _collect_events(
    keys: Mapping[str, Any], events: RunEvents, best_epoch: float, rows: dict[str, list[dict[str, Any]]]
) -> None:
    if best_epoch in events.curves:
        curve = events.curves[int(best_epoch)]
        for left, positives, negatives in score_bins(curve):
            entry = {"bin": left, "width": bin_width(curve), "positives": positives, "negatives": negatives}
            rows["scores"].append({**keys, **entry})
    health: dict[tuple[int, str, str], dict[str, float]] = {}
    for (step, measure, layer, operand), value in events.health.items():
        health.setdefault((events.epoch_of(step), layer, operand), {})[measure] = value
    for (epoch, layer, operand), measures in health.items():
        rows["health"].append({**keys, "epoch": epoch, "layer": layer, "operand": operand, **measures})
    for (step, measure, layer), value in events.attention.items():
        named = {"layer": layer, "measure": measure}
        rows["attention"].append({**keys, **named, "epoch": events.epoch_of(step), "value": value})


def _patients(run: Path, metrics: Mapping[str, Any], problems: list[str]) -> list[dict[str, Any]]:
    """Results by patient: of the run's own metrics, else of an evaluation in a folder within the run's."""
    found = metrics.get("per_patient")
    for path in sorted(run.glob("*/metrics.json")) if found is None else ():
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("per_patient", found)
        except (OSError, ValueError, AttributeError) as error:
            problems.append(f"{path} is no evaluation that can be read ({error})")
    entries = [entry for entry in found or () if isinstance(entry, Mapping) and "patient" in entry]
    return [
        {"patient": str(entry["patient"])} | {name: _number(entry.get(name)) for name in ("auprc", "recall", "dice")}
        for entry in entries
    ]


def _strangers(folder: StudyFolder, known: set[Path]) -> list[str]:
    found = {path.parent for path in folder.cells_path.rglob("cell.json")} - known
    names = sorted(path.relative_to(folder.cells_path).as_posix() for path in found)
    if not names:
        return []
    few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"{len(names)} folders below cells/ belong to no cell of study.json and are not counted: {few}"]
