"""The statistics of a study, as tables: every recipe against BF16, recipes among each other, folds, patients, cost.

Recipes are compared within a model (architecture, scale and further axes) and pair by pair. What the pairs are is the
`unit` of a comparison: the seeds of one fold, or the folds where there are more of those than seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from monai_fp4.report.statistics.intervals import holm, paired_test, patient_bootstrap
from monai_fp4.report.tables import KEYS, StudyTables, reliability

__all__ = [
    "FEW", "MARGIN", "TESTED", "against_baseline", "between_recipes", "between_variants", "by_patient",
    "calibration", "cost", "fold_overlap", "numbered_folds", "paired",
]  # fmt: skip

MARGIN = 0.01
"""A loss of AUPRC or recall below this is taken not to matter, unless the user gives another."""
TESTED = ("recall", "auprc", "dice")
"""The metrics that are tested, recall first, since a missed lesion costs more; each is one family for Holm."""
_MODEL = ["model", "arch", "scale", "variant"]
FEW = 3
"""Pairs below which nothing is said; so many seeds are preferred to folds."""


def paired(tables: StudyTables, metrics: Sequence[str] = TESTED) -> pd.DataFrame:
    """Every finished cell beside the BF16 cell of its model, fold and seed.

    Returns:
        `KEYS`, `metric`, its `value`, `baseline`, `difference` and `percent` of the baseline. Cells whose partner is
        not finished have none and are not in it.
    """
    done = tables.done.melt(id_vars=KEYS, value_vars=list(metrics), var_name="metric").dropna(subset=["value"])
    same = ["metric", "model", "fold", "seed"]
    base = done.loc[done["recipe"] == tables.baseline, [*same, "value"]]
    both = done.merge(base.rename(columns={"value": "baseline"}), on=same)
    both["difference"] = both["value"] - both["baseline"]
    both["percent"] = 100 * both["value"] / both["baseline"].where(both["baseline"] > 0)
    return both


def against_baseline(
    tables: StudyTables, pairs: pd.DataFrame, margin: float = MARGIN, *, by_folds: bool = False
) -> pd.DataFrame:
    """Every recipe of every model against BF16.

    Args:
        tables: the study.
        pairs: of `paired`; each of its metrics is compared.
        margin: the loss that is taken not to matter.
        by_folds: take the folds as pairs, however many seeds there are.

    Returns:
        One row a metric, model and recipe: `unit`, `n`, `mean` difference with `low` and `high`, mean `percent`, `p`,
        `p_holm`, `p_sign_flip`, `p_margin` and `p_margin_holm`. Holm's correction is over all models and recipes, a
        metric.
    """
    rows: list[dict[str, Any]] = []
    for metric in pairs["metric"].unique():
        of_metric, family = pairs[pairs["metric"] == metric], []
        for model, recipe in itertools.product(tables.models, tables.recipes):
            own = of_metric[(of_metric["model"] == model) & (of_metric["recipe"] == recipe)]
            if recipe == tables.baseline or own.empty:
                continue
            family.append(
                {"metric": metric} | _named(own) | {"recipe": recipe} | _compare(tables, own, margin, by_folds)
            )
        rows += _corrected(family)
    return pd.DataFrame(rows, columns=_COLUMNS)


_TEST = ["unit", "n", "mean", "low", "high", "percent", "p", "p_holm", "p_sign_flip", "p_margin", "p_margin_holm"]
_COLUMNS = ["metric", *_MODEL, "recipe", *_TEST]


def between_recipes(tables: StudyTables, metric: str = "auprc", margin: float = MARGIN) -> pd.DataFrame:
    """Every pair of quantized recipes within each model; the difference is the second less the first."""
    done = tables.done.dropna(subset=[metric])
    rows = []
    for model in tables.models:
        own = done[done["model"] == model]
        wide = own.pivot(index=["fold", "seed"], columns="recipe", values=metric)
        names = [name for name in tables.recipes if name in wide and name != tables.baseline]
        for first, second in itertools.combinations(names, 2):
            named = {"metric": metric} | _named(own) | {"recipe": first, "other": second}
            rows += _compare_columns(tables, wide, first, second, named, margin)
    return pd.DataFrame(_corrected(rows), columns=["metric", *_MODEL, "recipe", "other", *_TEST])


def between_variants(tables: StudyTables, metric: str = "auprc", margin: float = MARGIN) -> pd.DataFrame:
    """Every value of the further axes against the first one, for each architecture, scale and recipe; else empty."""
    done = tables.done.dropna(subset=[metric])
    first, *others = list(dict.fromkeys(tables.cells["variant"]))
    rows = []
    for (arch, scale, recipe), own in done.groupby(["arch", "scale", "recipe"], sort=False):
        wide = own.pivot(index=["fold", "seed"], columns="variant", values=metric)
        for other in others:
            named = {"metric": metric, "arch": arch, "scale": scale, "recipe": recipe, "variant": first, "other": other}
            rows += _compare_columns(tables, wide, first, other, named, margin)
    columns = ["metric", "arch", "scale", "recipe", "variant", "other", *_TEST]
    return pd.DataFrame(_corrected(rows), columns=columns)


def by_patient(tables: StudyTables, metric: str = "auprc") -> pd.DataFrame:
    """Every recipe against BF16, patient by patient; empty where no cell holds results of patients.

    The difference of a patient is the mean over the seeds. The interval is over patients, for these very trainings: how
    far they depend on the seed is the other test's business.
    """
    keys = ["model", "recipe", "fold", "seed"]
    results = tables.patients.dropna(subset=[metric]).merge(tables.done[keys], on=keys)  # runs write them as they go
    base = results[results["recipe"] == tables.baseline][["model", "fold", "seed", "patient", metric]]
    both = results.merge(base, on=["model", "fold", "seed", "patient"], suffixes=("", "_baseline"))
    both["difference"] = both[metric] - both[f"{metric}_baseline"]
    rows = []
    for model, recipe in itertools.product(tables.models, tables.recipes):
        own = both[(both["model"] == model) & (both["recipe"] == recipe)]
        if recipe == tables.baseline or own.empty:
            continue
        interval = patient_bootstrap(own.groupby("patient")["difference"].mean())
        counts = {"patients": interval.n, "trainings": len(own[["fold", "seed"]].drop_duplicates())}
        numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
        rows.append({"metric": metric} | _named(own) | {"recipe": recipe} | counts | numbers)
    return pd.DataFrame(rows, columns=["metric", *_MODEL, "recipe", "patients", "trainings", "mean", "low", "high"])


def calibration(tables: StudyTables) -> pd.DataFrame:
    """Expected calibration error of every finished cell with a histogram, over all voxels and above the lowest bin."""
    means = tables.done.set_index(KEYS)["mean_probability"].to_dict()
    rows = []
    for key, group in tables.scores.groupby(KEYS, sort=False):
        if key in means:
            result = reliability(group["positives"], group["negatives"], float(group["width"].iloc[0]), means[key])
            rows.append({**dict(zip(KEYS, key, strict=True)), "ece": result.ece, "ece_above": result.ece_above})
    return pd.DataFrame(rows, columns=[*KEYS, "ece", "ece_above"])


def cost(tables: StudyTables) -> pd.DataFrame:
    """Seconds of an epoch and peak memory of every model and recipe: the median over its finished cells.

    Cells may have shared their machine, so the medians are what this study took and no benchmark.
    """
    done = tables.done.assign(epoch_seconds=tables.done["train_seconds"] / tables.done["epochs_done"])
    columns = {"epoch_seconds": "median", "train_seconds": "sum", "peak_memory_bytes": "median", "seed": "size"}
    table = done.groupby([*_MODEL, "recipe"], sort=False).agg(columns).reset_index().rename(columns={"seed": "cells"})
    base = table[table["recipe"] == tables.baseline].set_index("model")["epoch_seconds"]
    table["times_baseline"] = table["epoch_seconds"] / table["model"].map(base).astype(float)
    return table


def _named(rows: pd.DataFrame) -> dict[str, Any]:
    return {name: rows[name].iloc[0] for name in _MODEL}


def _compare_columns(
    tables: StudyTables, wide: pd.DataFrame, first: str, second: str, named: dict[str, Any], margin: float
) -> list[dict[str, Any]]:
    """The second column less the first, where both have a value; no row where nowhere."""
    both = wide.reindex(columns=[first, second]).dropna().reset_index()
    if both.empty:
        return []
    both["difference"] = both[second] - both[first]
    both["percent"] = 100 * both[second] / both[first]
    return [named | _compare(tables, both, margin)]


def _compare(tables: StudyTables, pairs: pd.DataFrame, margin: float, by_folds: bool = False) -> dict[str, Any]:
    seeds = tables.in_main_fold(pairs)
    apart = numbered_folds(pairs)
    folds = apart.groupby("fold", sort=False)["difference"].mean()
    if len(seeds) >= min(FEW, len(folds)) and not by_folds:
        unit, test, percent = f"seeds of fold {tables.main_fold}", paired_test(seeds["difference"], margin), seeds
    else:
        overlap = fold_overlap(tables, len(folds))
        unit, test, percent = "folds", paired_test(folds, margin, overlap=overlap), apart
    return {"unit": unit, "percent": float(percent["percent"].mean()), **vars(test)}


def numbered_folds(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of folds that hold out different patients: a holdout shares its own with them, so it goes.

    Where there is nothing else, all rows.
    """
    numbered = rows[rows["fold"] != "holdout"]
    return numbered if len(numbered) else rows


def fold_overlap(tables: StudyTables, folds: int) -> float:
    """Validated over trained patients, by which Nadeau and Bengio raise the variance over folds."""
    done = tables.done
    overlap = float((done["val_patients"] / done["train_patients"]).mean())
    return overlap if math.isfinite(overlap) else 1 / max(folds - 1, 1)


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for name in ("p", "p_margin"):
        for row, adjusted in zip(rows, holm([row[name] for row in rows]), strict=True):
            row[f"{name}_holm"] = adjusted
    return rows
