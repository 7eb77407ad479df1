"""Figures of what the networks predict: precision-recall curves, probabilities, distinct levels, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monai_fp4.report.figures.picture import Picture
from monai_fp4.report.figures.style import (
    describe_cells,
    grid,
    legend,
    look,
    mark_empty,
    name_recipes,
    not_drawn,
    spread,
)
from monai_fp4.report.tables import KEYS, StudyTables, reliability

__all__ = ["distinct_levels", "pr_curves", "probabilities", "reliability_curves"]

_WHERE = "at the best epoch, all voxels of the validation patients, the seeds of a recipe pooled"


def pr_curves(tables: StudyTables) -> Picture | None:
    """Precision against recall, a line a recipe."""
    curves = _finished(tables, tables.curves)
    if curves.empty:
        return None
    figure, panels = grid(tables, (3.1, 2.8), sharex=True, sharey=True)
    for (model, recipe), group in curves.groupby(["model", "recipe"], sort=False):
        tp, fp = pooled_counts([cell for _, cell in group.groupby(["fold", "seed"], sort=False)])
        if tp[-1] > 0:
            called = tp + fp
            precision = np.divide(tp, called, out=np.ones_like(tp), where=called > 0)
            panels[model].plot(tp / tp[-1], precision, linewidth=1.3, **look(recipe, tables.recipes).line)
    for axes in panels.values():
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    mark_empty(panels, curves["model"])
    legend(figure, tables, curves["recipe"], markers=False)
    caption = (
        f"Precision against recall {_WHERE}, at up to 500 thresholds that each run chose among its scores."
        f" {_drawn(tables, tables.curves)}"
    )
    alt = f"Precision-recall curves of {curves['recipe'].nunique()} recipes in {len(panels)} models."
    return Picture("pr_curves", "Precision-recall curves", caption, alt, figure, "curves")


def pooled_counts(cells: Sequence[pd.DataFrame]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and false positives of several cells together, at every threshold of any of them, from high to low.

    Between two thresholds of a cell its counts are taken to rise evenly; above its highest they are 0.

    >>> one = pd.DataFrame({"threshold": [0.9, 0.1], "tp": [1, 2], "fp": [0, 4]})
    >>> tp, fp = pooled_counts([one, one.assign(threshold=[0.5, 0.1])])
    >>> tp.tolist(), fp.tolist()
    ([1.0, 2.5, 4.0], [0.0, 2.0, 8.0])
    """
    ordered = [cell.sort_values("threshold") for cell in cells]
    thresholds = np.unique(np.concatenate([cell["threshold"].to_numpy(np.float64) for cell in ordered]))
    total = {name: np.zeros(thresholds.size) for name in ("tp", "fp")}
    for cell in ordered:
        for name, counts in total.items():
            counts += np.interp(thresholds, cell["threshold"].to_numpy(np.float64), cell[name], right=0.0)
    return total["tp"][::-1], total["fp"][::-1]


def probabilities(tables: StudyTables) -> Picture | None:
    """Histograms of the predicted probabilities, a line a recipe."""
    scores = _pooled(tables)
    if scores.empty:
        return None
    figure, panels = grid(tables, (3.3, 2.9), sharex=True)
    for (model, recipe), group in scores.groupby(["model", "recipe"], sort=False):
        total = group[["positives", "negatives"]].to_numpy().sum()
        coarse = group.assign(at=np.floor(np.arange(len(group)) / 3)).groupby("at")[["positives", "negatives"]].sum()
        edges = np.linspace(0, 1, len(coarse) + 1)
        style = look(recipe, tables.recipes)
        everything = (coarse["positives"] + coarse["negatives"]).to_numpy() / total
        panels[model].stairs(
            np.where(everything > 0, everything, np.nan), edges, linewidth=1.2, baseline=None, **style.line
        )
    for axes in panels.values():
        axes.set(xlabel="predicted probability", ylabel="share of the voxels", xlim=(0, 1), yscale="log")
    mark_empty(panels, scores["model"])
    legend(figure, tables, scores["recipe"], markers=False)
    caption = (
        f"How often each probability is predicted, {_WHERE}; logarithmic, 42 bins. A comb of few bins says that four"
        f" bits made the output discrete. {_drawn(tables, tables.scores)}"
    )
    alt = f"Histograms of predicted probabilities of {scores['recipe'].nunique()} recipes in {len(panels)} models."
    return Picture("probabilities", "Predicted probabilities", caption, alt, figure, "scores")


def distinct_levels(tables: StudyTables) -> Picture | None:
    """Count the distinct probabilities that a network gives out; logarithmic where they differ tenfold."""
    done = tables.in_main_fold(tables.done).dropna(subset=["distinct_scores"])
    if done.empty:
        return None
    figure, panels = grid(tables, (max(3.3, 0.34 * len(tables.recipes) + 0.9), 2.4), sharey=True)
    for model, axes in panels.items():
        for place, recipe in enumerate(tables.recipes):
            values = done.loc[(done["model"] == model) & (done["recipe"] == recipe), "distinct_scores"]
            style = look(recipe, tables.recipes)
            if len(values):
                axes.plot(
                    place + spread(len(values)), values, style.marker, color=style.colour, markersize=4.5, alpha=0.7
                )
        name_recipes(axes, tables.recipes)
        axes.set(xlim=(-0.6, len(tables.recipes) - 0.4), ylabel="distinct probabilities")
        if done["distinct_scores"].max() > 10 * done["distinct_scores"].min():
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.margins(y=0.15)
    mark_empty(panels, done["model"])
    missing = not_drawn(tables, done["recipe"])
    caption = (
        "Distinct predicted probabilities over all validation voxels at the best epoch, every seed a marker; a lower"
        f" bound where the counts had to be merged.{missing} Axes need not begin at 0. {describe_cells(done)}"
    )
    alt = "Numbers of distinct probabilities by recipe; they stand in the table of cells."
    return Picture("distinct_levels", "Distinct probability levels", caption, alt, figure, "cells")


def reliability_curves(tables: StudyTables) -> Picture | None:
    """Share of lesion voxels against predicted probability."""
    scores = _pooled(tables)
    if scores.empty:
        return None
    # The cells of a fold have the same voxels, so their means weigh alike; one that is unknown makes the whole unknown.
    cells = _finished(tables, tables.scores)[KEYS].drop_duplicates().merge(tables.done[[*KEYS, "mean_probability"]])
    means = cells.groupby(["model", "recipe"])["mean_probability"].agg(lambda values: values.mean(skipna=False))
    figure, panels = grid(tables, (3.0, 2.8), sharex=True, sharey=True)
    for axes in panels.values():
        axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.9, linestyle=":")
        axes.set(xlabel="predicted probability", ylabel="observed share of lesion", xlim=(0, 1), ylim=(0, 1))
    for (model, recipe), group in scores.groupby(["model", "recipe"], sort=False):
        style = look(recipe, tables.recipes)
        width, mean = float(group["width"].iloc[0]), means[model, recipe]
        result = reliability(group["positives"], group["negatives"], width, mean)
        marks: dict[str, Any] = {"marker": style.marker, "markersize": 3}
        panels[model].plot(result.predicted, result.observed, linewidth=1.2, **marks, **style.line)
    mark_empty(panels, scores["model"])
    legend(figure, tables, scores["recipe"])
    caption = (
        f"Reliability {_WHERE}: below the dotted diagonal a network is too sure of a lesion. The Tversky loss, which"
        f" counts missed voxels more than false alarms, pulls it there. {_drawn(tables, tables.scores)}"
    )
    alt = (
        f"Reliability curves of {scores['recipe'].nunique()} recipes in {len(panels)} models; errors in the table of"
        " calibration."
    )
    return Picture("reliability", "Reliability curves", caption, alt, figure, "calibration")


def _pooled(tables: StudyTables) -> pd.DataFrame:
    """Counts by bin of every model and recipe, summed over the finished cells of the main fold."""
    scores = _finished(tables, tables.scores)
    pooled = scores.groupby(["model", "recipe", "bin"], sort=False)[["positives", "negatives"]].sum().reset_index()
    pooled["width"] = scores["width"].iloc[0] if len(scores) else np.nan
    return pooled


def _finished(tables: StudyTables, table: pd.DataFrame) -> pd.DataFrame:
    return tables.in_main_fold(table).merge(tables.done[KEYS], on=KEYS)


def _drawn(tables: StudyTables, table: pd.DataFrame) -> str:
    return describe_cells(tables.done_of(tables.in_main_fold(table)))
