"""The values and pictures of every page, in the order of the navigation.

Each page is a template, ``templates/NAME.html.j2``, which holds its words and says what stands where. Here is what a
template cannot compute. Beside these values, every template is given the study's tables and frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from monai_fp4.quantization.recipes import Recipe
from monai_fp4.report.analyse import Analysis
from monai_fp4.report.claims import CLAIMS, Verdict
from monai_fp4.report.figures import Picture, cost, describe_cells, effects, health, outputs, quality
from monai_fp4.report.pages.recipes import describe_recipe
from monai_fp4.report.statistics import FEW, TESTED, published_findings
from monai_fp4.report.tables import STATUSES, StudyTables, metric_name
from monai_fp4.report.verdicts import Advice, ModelAdvice, limits_of

__all__ = ["Page", "build_pages"]

_LISTED = 15
"""Rows up to which a table is read without a filter, and cells that only wait are listed on the overview."""

Values = dict[str, Any]
Pictures = dict[str, list[Picture | None]]


@dataclass(frozen=True)
class Page:
    """A page: its file name without ending, its title, and the values and pictures by section of its template."""

    name: str
    title: str
    values: dict[str, Any]
    pictures: dict[str, list[Picture]]


def build_pages(found: Analysis) -> list[Page]:
    """Every page, in the order of the navigation."""
    pages = []
    for name, (title, fill) in _PAGES.items():
        values, drawn = fill(found)
        kept = {section: [picture for picture in own if picture is not None] for section, own in drawn.items()}
        pages.append(Page(name, title, values, kept))
    return pages


def _index(found: Analysis) -> tuple[Values, Pictures]:
    tables, definition = found.tables, found.tables.definition
    cells, status = tables.cells, tables.cells["status"]
    counts, tests = status.value_counts(), found.frames["comparisons"]
    share = cells.assign(done=status.eq("done")).groupby(["model", "recipe"])["done"]
    complete = share.agg(lambda done: f"{done.sum()} of {len(done)}").unstack().loc[tables.models, tables.recipes]
    readable = cells["problem"].eq("")
    waiting = status.eq("waiting") & readable
    many = waiting.sum() > _LISTED
    unfinished = cells[~(status.eq("done") & readable) & ~(waiting & many)]
    values = {
        "states": ", ".join(f"{counts[state]} {state}" for state in STATUSES if state in counts),
        "finished": int(status.eq("done").sum()),
        "versions": sorted({str(version) for version in tables.done["version"] if version}),
        "advice": pd.DataFrame([{"model": entry.model, **entry.recipes} for entry in found.advice]),
        "compared": sum(len(entry.recipes) for entry in found.advice),
        "enough": int(tests.loc[tests["metric"] == "auprc", "n"].ge(FEW).sum()),
        "few": FEW,
        "options": ", ".join(f"{name} = {value}" for name, value in definition.options.items()),
        "finished_cells": describe_cells(tables.done),
        "complete": complete.reset_index(),
        "waiting": int(waiting.sum()) if many else 0,
        "unfinished": unfinished.sort_values("status", key=lambda s: s.map(STATUSES[::-1].index), kind="stable"),
        "listed": _LISTED,
        "findings": published_findings(),
    }
    return values, {"percent": [quality.percent_of_baseline(tables, found.frames["paired"])]}


def _recipes(found: Analysis) -> tuple[Values, Pictures]:
    models = [(entry, list(_grouped(entry))) for entry in found.advice]
    return {"limits": limits_of(found.tables), "models": models}, {}


def _grouped(entry: ModelAdvice) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The recipes of each advice that a model has, by the reason for it."""
    for advice in Advice:
        reasons: dict[str, list[str]] = {}
        for name, given in entry.recipes.items():
            if given is advice:
                reasons.setdefault(entry.reasons[name], []).append(name)
        if reasons:
            yield str(advice), reasons


def _claims(found: Analysis) -> tuple[Values, Pictures]:
    claims = found.frames["claims"]
    counts = claims["verdict"].value_counts()
    # One row for the metrics of a claim that are judged alike, with the same words.
    rows = []
    alike = ["claim", "verdict", "numbers", "missing", "n"]
    for (claim, verdict, numbers, missing, n), own in claims.groupby(alike, sort=False):
        names = {"distinct_scores": "Distinct levels"}
        metrics = ", ".join(names.get(m, metric_name(m, inside=at > 0)) for at, m in enumerate(own["metric"]))
        words = ". ".join(part for part in (numbers, missing and f"Missing: {missing}") if part).replace("`", "")
        rows.append({"claim": claim, "metric": metrics, "verdict": verdict, "n": n, "words": words})
    values = {
        "claims": CLAIMS,
        "verdicts": ", ".join(f"{counts[v]} {v}" for v in map(str, Verdict) if v in counts),
        "judged": pd.DataFrame(rows),
        "limits": limits_of(found.tables),
    }
    return values, {}


def _quality(found: Analysis) -> tuple[Values, Pictures]:
    tables, pairs = found.tables, found.frames["paired"]
    return {}, {
        "scale": [quality.auprc_by_scale(tables)],
        "relative": [quality.percent_of_baseline(tables, pairs), quality.percent_of_baseline(tables, pairs, "recall")],
        "folds": [quality.five_folds(tables)],
        "curves": [quality.curves(tables, measure) for measure in ("train_loss", "val_loss", "auprc")],
    }


def _statistics(found: Analysis) -> tuple[Values, Pictures]:
    tables, tests = found.tables, found.frames["comparisons"]
    rows = {metric_name(metric): tests[tests["metric"] == metric] for metric in TESTED}
    values = {
        "comparisons": {name: own for name, own in rows.items() if len(own)},
        "variance_words": found.variance_words,
    }
    return values, {
        "differences": [effects.differences(tables, tests, metric, found.margin) for metric in ("recall", "auprc")],
        "variance": [effects.variance_explained(tables, found.frames["variance"], found.variance_words)],
    }


def _outputs(found: Analysis) -> tuple[Values, Pictures]:
    tables = found.tables
    errors = found.frames["calibration"].groupby(["model", "recipe"], sort=False)
    errors = errors.agg(ece=("ece", "mean"), ece_above=("ece_above", "mean"), n=("ece", "size")).reset_index()
    return {"errors": _by_model(errors, tables)}, {
        "pr_curves": [outputs.pr_curves(tables)],
        "probabilities": [outputs.probabilities(tables)],
        "levels": [outputs.distinct_levels(tables)],
        "attention": [health.attention(tables)],
        "calibration": [outputs.reliability_curves(tables)],
    }


def _health(found: Analysis) -> tuple[Values, Pictures]:
    tables = found.tables
    return {}, {
        "over_time": [health.over_time(tables, measure) for measure in ("snr_db", "underflow", "clipped")],
        "by_layer": [health.by_layer(tables, model) for model in tables.models],
    }


def _cost(found: Analysis) -> tuple[Values, Pictures]:
    tables, costs = found.tables, found.frames["cost"]
    drawn = {"time": [cost.time(tables, costs)], "memory": [cost.memory(tables, costs)]}
    return {"costs": _by_model(costs, tables)}, drawn


def _data(found: Analysis) -> tuple[Values, Pictures]:
    configs = found.tables.definition.recipes
    recipes = {name: describe_recipe(Recipe.from_config(configs[name])) for name in found.tables.recipes}
    return {"recipes": recipes, "tested": [metric_name(metric, inside=True) for metric in TESTED]}, {}


def _by_model(rows: pd.DataFrame, tables: StudyTables) -> pd.DataFrame:
    return rows.sort_values("model", key=lambda names: names.map(tables.models.index), kind="stable")


_PAGES: dict[str, tuple[str, Callable[[Analysis], tuple[Values, Pictures]]]] = {
    "index": ("Overview", _index),
    "recipes": ("Which recipe for my model", _recipes),
    "claims": ("The paper's claims", _claims),
    "quality": ("Quality", _quality),
    "statistics": ("Statistics", _statistics),
    "outputs": ("Outputs", _outputs),
    "health": ("Quantization health", _health),
    "cost": ("Time and memory", _cost),
    "cells": ("All cells", lambda _: ({}, {})),
    "data": ("Data and methods", _data),
}
