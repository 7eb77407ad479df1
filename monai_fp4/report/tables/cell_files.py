"""One cell of a study: everything its files say, as rows of the report's tables.

The run itself knows best how far it is: a sweep may have been killed before it wrote that a cell is done. What cannot
be read makes a cell `damaged` if it holds the results, and costs a note if it only stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from monai_fp4.errors import ConfigError, printable
from monai_fp4.report.tables.run_health import read_health
from monai_fp4.study.layout import Cell, StudyFolder, read_json

__all__ = ["KEYS", "METRICS", "STATUSES", "TEST_METRICS", "collect_cell"]

KEYS = ["model", "arch", "scale", "variant", "recipe", "fold", "seed"]
"""What identifies a cell; `variant` names the values of the further axes and is empty without any."""
METRICS = (
    "auprc", "auprc_per_patient", "recall", "recall_per_patient", "precision", "dice", "dice_per_patient", "threshold",
    "distinct_scores", "val_loss",
)  # fmt: skip
"""The metrics of a cell that are read from its `metrics.json`."""
TEST_METRICS = tuple(
    f"test_{name}" for name in ("auprc", "auprc_per_patient", "recall", "precision", "dice", "dice_per_patient")
)
"""Of the fold's test patients, where the protocol has any: ``test.json``, with the weights that validation chose."""
STATUSES = ("done", "running", "waiting", "failed", "damaged")
"""In the order of the report; `damaged` is a cell whose files cannot be read, the others are the sweep's own."""
_OPTIONS = ("epochs", "image_size", "batch_size", "learning_rate")
_UNKNOWN = ("best_epoch", "train_seconds", "wall_seconds", "peak_memory_bytes", "train_patients", "val_patients")
_EMPTY: Mapping[str, Any] = {
    **dict.fromkeys([*METRICS, *TEST_METRICS, *_UNKNOWN], math.nan),
    **dict.fromkeys(("version", "host", "device", "backend"), ""),
    **dict.fromkeys(_OPTIONS),
    "epochs_done": 0,
    "attempts": 0,
}


def _keys(cell: Cell) -> dict[str, Any]:
    variant = ", ".join(f"{name}={_as_text(value)}" for name, value in cell.further)
    model = f"{cell.arch} {cell.scale}" + (f" ({variant})" if variant else "")
    # Folds are texts, since one of them may be "all".
    named = (model, cell.arch, cell.scale, variant, cell.recipe, str(cell.fold), cell.seed)
    return dict(zip(KEYS, named, strict=True))


def _as_text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def collect_cell(folder: StudyFolder, cell: Cell, rows: dict[str, list[Any]]) -> None:
    """Read a cell and append its rows.

    Args:
        folder: the study's.
        cell: one of its definition.
        rows: table -> rows, appended to; of `health`, which has a million rows in a large study, a table a cell.
    """
    keys, run = _keys(cell), folder.run_dir(cell)
    problems: list[str] = []
    row: dict[str, Any] = {**keys, "id": cell.id, "status": "waiting", "problem": "", **_EMPTY}
    row |= _record(folder, cell, problems)
    metrics, history = _results(folder, cell, row, problems)
    row |= {name: _number(metrics.get(name)) for name in (*METRICS, "best_epoch")}
    row["epochs_done"] = len(history)
    if history:
        row["train_seconds"] = math.fsum(_number(entry.get("seconds"), 0.0) for entry in history)
    if row["status"] == "done" and math.isnan(row["auprc"]):
        problems.append("the run is finished but has no AUPRC: its validation patients hold no lesion")
    for entry in history:
        numbers = {name: _number(entry.get(name)) for name in ("train_loss", *METRICS)}
        rows["epochs"].append({**keys, "epoch": entry["epoch"], **numbers})
    row |= _tested(run, problems) if row["status"] == "done" else {}
    row |= _surroundings(run, metrics, problems)
    row["mean_probability"] = _collect_health(keys, run, row["best_epoch"], rows, problems)
    rows["curves"] += [{**keys, **point} for point in _curve(run, row["best_epoch"], problems)]
    rows["patients"] += [{**keys, **patient} for patient in _patients(run, metrics, problems)]
    row["problem"] = "; ".join(problems)
    rows["cells"].append({name: printable(value) if isinstance(value, str) else value for name, value in row.items()})


def _record(folder: StudyFolder, cell: Cell, problems: list[str]) -> dict[str, Any]:
    """What the sweep says of the cell."""
    try:
        record = folder.record(cell)
    except ConfigError as error:
        problems.append(str(error))
        return {"status": "damaged"}
    problems += [record.error] if record.error else []
    said = {"status": str(record.status), "attempts": record.attempts, "wall_seconds": record.seconds or math.nan}
    return said | {name: getattr(record, name) for name in ("version", "host", "device")}


def _results(
    folder: StudyFolder, cell: Cell, row: dict[str, Any], problems: list[str]
) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """The run's metrics and their history; `row` gets the status that follows from them."""
    path = folder.run_dir(cell) / "metrics.json"
    try:
        metrics = folder.metrics(cell) or {}
        history = _history(metrics, path)
    except ConfigError as error:
        row["status"] = "damaged"
        problems.append(str(error))
        return {}, []
    if metrics.get("finished") is True and row["status"] != "damaged":
        row["status"] = "done"
        problems.clear()  # of an attempt before the one that finished
    elif row["status"] == "done":
        row["status"] = "damaged"
        problems.append(f"{path} does not say that the run is finished, though the sweep does")
    return metrics, history


def _history(metrics: Mapping[str, Any], path: Path) -> Sequence[Mapping[str, Any]]:
    history = metrics.get("history", [])
    good = isinstance(history, list) and all(isinstance(e, dict) and isinstance(e.get("epoch"), int) for e in history)
    if not good or (metrics and not history):
        raise ConfigError(f"{path} must hold a history of epochs, but does not; restore or remove it")
    return history


def _number(value: Any, otherwise: float = math.nan) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise


def _tested(run: Path, problems: list[str]) -> dict[str, float]:
    """What the run measured on the test patients of its fold; nothing where its protocol has none."""
    path = run / "test.json"
    if not path.exists():
        return {}
    try:
        found = read_json(path)
        return {name: _number(found.get(name.removeprefix("test_"))) for name in TEST_METRICS}
    except (ConfigError, AttributeError) as error:
        problems.append(f"{path} holds no results of the test patients ({error}); restore or remove it")
        return {}


def _surroundings(run: Path, metrics: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Read options, patients, memory and backend: nice to have, so a damaged file costs a note and not the cell."""
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
        name: _as_text(config[name]) if name == "image_size" else config[name] for name in _OPTIONS if name in config
    }
    patients = documents.get("patients.json", {})
    found |= {
        f"{part}_patients": len(patients[part]) for part in ("train", "val") if isinstance(patients.get(part), list)
    }
    for document in (*documents.values(), metrics):
        if "peak_memory_bytes" in document:
            found["peak_memory_bytes"] = _number(document["peak_memory_bytes"])
    environment = documents.get("environment.json", {})
    if "backend" in environment:
        found["backend"] = str(environment["backend"])
    return found


def _collect_health(
    keys: Mapping[str, Any], run: Path, best_epoch: float, rows: dict[str, list[Any]], problems: list[str]
) -> float:
    """Append what the run measured of its layers and predictions; gives the mean probability of the best epoch."""
    path = run / "health.json"
    if not path.exists():
        return math.nan
    try:
        found = read_health(path, best_epoch)
    except ConfigError as error:
        problems.append(str(error))
        return math.nan
    if found["health"]:
        rows["health"].append(pd.DataFrame(found["health"]).assign(**keys))
    for name in ("attention", "scores"):
        rows[name] += [{**keys, **entry} for entry in found[name]]
    return float(found["mean_probability"])


def _curve(run: Path, best_epoch: float, problems: list[str]) -> list[dict[str, float]]:
    """The precision-recall curve that the run keeps of its best epoch."""
    path = run / "pr_curve.json"
    if not path.exists():
        return []
    try:
        curve = read_json(path)
        columns = [[float(value) for value in curve[name]] for name in ("thresholds", "tp", "fp")]
        points = [dict(zip(("threshold", "tp", "fp"), point, strict=True)) for point in zip(*columns, strict=True)]
        return points if curve["epoch"] == best_epoch else []
    except (ConfigError, KeyError, TypeError, ValueError):
        problems.append(f"{path} holds no precision-recall curve; restore or remove it")
        return []


def _patients(run: Path, metrics: Mapping[str, Any], problems: list[str]) -> list[dict[str, Any]]:
    """Results by patient: of the run's own metrics, else of an evaluation in a folder within the run's."""
    found = metrics.get("per_patient")
    for path in () if found else sorted(run.glob("*/metrics.json")):
        try:
            found = read_json(path).get("per_patient", found)
        except (ConfigError, AttributeError) as error:
            problems.append(f"{path} is no evaluation that can be read ({error})")
    listed = found if isinstance(found, list) else []
    entries = [entry for entry in listed if isinstance(entry, Mapping) and "patient" in entry]
    return [
        {"patient": printable(str(entry["patient"]))}
        | {name: _number(entry.get(name)) for name in ("auprc", "recall", "dice")}
        for entry in entries
    ]
