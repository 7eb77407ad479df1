"""The paper's figures of quality: loss curves, AUPRC against scale, AUPRC as a percentage of BF16, and the folds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from monai_fp4.report.figures.picture import Picture
from monai_fp4.report.figures.style import (
    GROUP,
    describe_cells,
    draw_interval,
    grid,
    legend,
    look,
    mark_empty,
    name_recipes,
    not_drawn,
    single,
    spread,
    whole_epochs,
)
from monai_fp4.report.statistics import FEW, mean_interval
from monai_fp4.report.tables import StudyTables, metric_name

__all__ = ["auprc_by_scale", "curves", "five_folds", "percent_of_baseline"]

_SHADE = "#DDE8F5"
_BY_EPOCH = {
    "train_loss": ("Training loss", "training loss", "mean training loss of the epoch"),
    "val_loss": ("Validation loss", "validation loss", "mean loss over the validation patients"),
    "auprc": ("AUPRC by epoch", "AUPRC", "AUPRC over the voxels of all validation patients"),
}


def curves(tables: StudyTables, measure: str) -> Picture | None:
    """A measure by epoch, one thin line a cell, and the mean over the finished ones of a recipe as a thick line.

    Cells that are not finished are drawn as far as they came, and end in a ring.
    """
    title, label, words = _BY_EPOCH[measure]
    known = tables.epochs.dropna(subset=[measure])
    if known.empty:
        return None
    figure, panels = grid(tables)
    status = tables.cells.set_index("id")["status"]
    ids = tables.cells.set_index(["model", "recipe", "fold", "seed"])["id"]
    unfinished = 0
    for (model, recipe), group in known.groupby(["model", "recipe"], sort=False):
        axes, style = panels[model], look(recipe, tables.recipes)
        finished = []
        for (fold, seed), cell in group.groupby(["fold", "seed"], sort=False):
            axes.plot(cell["epoch"], cell[measure], linewidth=0.7, alpha=0.4, **style.line)
            if status[ids[model, recipe, fold, seed]] == "done":
                finished.append(cell)
            else:
                unfinished += 1
                axes.plot(
                    cell["epoch"].iloc[-1], cell[measure].iloc[-1], "o", mfc="white", mec=style.colour, ms=5, zorder=4
                )
        if finished:
            mean = pd.concat(finished).groupby("epoch")[measure].mean()
            axes.plot(mean.index, mean, linewidth=1.6, zorder=3, **style.line_of(len(mean)))
    for axes in panels.values():
        axes.set(xlabel="epoch", ylabel=label)
        whole_epochs(axes)
        # Within a decade a logarithmic axis would have a single number on it.
        if measure != "auprc" and known[measure].gt(0).all() and known[measure].max() > 10 * known[measure].min():
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
    mark_empty(panels, known["model"], "no epoch yet")
    drawn = set(known["recipe"])
    legend(figure, tables, drawn)
    rings = ""
    if unfinished:
        rings = f" {unfinished} unfinished cell{'s end in rings' if unfinished != 1 else ' ends in a ring'}."
    caption = (
        f"{words[0].upper()}{words[1:]}: one thin line a cell, the thick line is the mean of a recipe's finished"
        f" cells.{rings}{not_drawn(tables, drawn, 'epoch')} Axes need not begin at 0. "
    )
    alt = f"{title} against epoch, a panel for each of {len(panels)} models, a colour for each of {len(drawn)} recipes."
    return Picture(f"curves_{measure}", title, caption + describe_cells(tables.done), alt, figure, "epochs")


def auprc_by_scale(tables: StudyTables) -> Picture | None:
    """AUPRC against scale, a panel an architecture; every seed a dot, the mean with its 95 % interval."""
    done = tables.in_main_fold(tables.done)
    if done.empty:
        return None
    scales = list(dict.fromkeys(tables.cells["scale"]))
    rows = list(dict.fromkeys(zip(tables.cells["arch"], tables.cells["variant"], strict=True)))
    columns = min(3, len(rows))
    size = {"width": max(3.4 * columns, 4.8), "height": 3.3 * -(-len(rows) // columns) + 0.7}
    figure, axes = single(**size, rows=-(-len(rows) // columns), columns=columns, sharey=True)
    offsets = spread(len(tables.recipes), 0.66)
    for panel, (arch, variant) in zip(axes.ravel(), rows, strict=False):
        own = done[(done["arch"] == arch) & (done["variant"] == variant)]
        for offset, recipe in zip(offsets, tables.recipes, strict=True):
            style = look(recipe, tables.recipes)
            means = []
            for place, scale in enumerate(scales):
                values = own.loc[(own["recipe"] == recipe) & (own["scale"] == scale), "auprc"]
                if len(values):
                    means.append((place + offset, _dots(panel, place + offset, values, style)))
            if means:
                panel.plot(*zip(*means, strict=True), linewidth=1, alpha=0.8, **style.line)
        panel.set(title=f"{arch} {variant}".strip(), xlabel="scale", xlim=(-0.5, len(scales) - 0.5))
        panel.set_xticks(range(len(scales)), scales)
    for panel in axes.ravel()[len(rows) :]:
        panel.set_axis_off()
    for panel in axes[:, 0]:
        panel.set_ylabel("AUPRC")
    bottom, top = panel.get_ylim()  # of all, which share it; there is no AUPRC beyond 0 and 1
    panel.set_ylim(max(bottom, 0.0), min(top, 1.0))
    drawn = set(done["recipe"])
    shown = {f"{arch} {variant}".strip(): panel for (arch, variant), panel in zip(rows, axes.ravel(), strict=False)}
    mark_empty(shown, {f"{row.arch} {row.variant}".strip() for row in done.itertuples()})
    legend(figure, tables, drawn)
    caption = (
        "AUPRC of the best epoch on the validation patients: every seed a dot, the mean with its 95 % t interval (none"
        f" from a single one; one of two may run off the frame).{not_drawn(tables, drawn)} Axes need not begin at 0. "
    )
    alt = f"AUPRC against scale for {len(rows)} architectures and {len(drawn)} recipes."
    return Picture("auprc_by_scale", "AUPRC against scale", caption + describe_cells(done), alt, figure, "cells")


def percent_of_baseline(tables: StudyTables, paired: pd.DataFrame, metric: str = "auprc") -> Picture | None:
    """A metric as a percentage of the BF16 cell of the same seed."""
    pairs, unit, cells = _pairs(tables, paired[paired["metric"] == metric])
    recipes = [name for name in tables.recipes if name != tables.baseline]
    if pairs.empty or not recipes:
        return None
    width = max(3.3, 0.34 * len(recipes) + 0.9)
    figure, panels = grid(tables, (width, 2.5), sharey=True)
    grouped = [i for i, name in enumerate(recipes) if name in GROUP]
    for model, axes in panels.items():
        axes.axhline(100, color="black", linewidth=0.9)
        if grouped:
            axes.axvspan(min(grouped) - 0.5, max(grouped) + 0.5, color=_SHADE, zorder=0, linewidth=0)
        for place, recipe in enumerate(recipes):
            values = pairs.loc[(pairs["model"] == model) & (pairs["recipe"] == recipe), "percent"]
            if len(values):
                _dots(axes, place, values, look(recipe, tables.recipes), wide=0.34)
            elif model in set(pairs["model"]):
                axes.annotate(
                    "none", (place, 100), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=7,
                    color="0.35", rotation=90,
                )  # fmt: skip
        name_recipes(axes, recipes)
        axes.set(xlim=(-0.6, len(recipes) - 0.4), ylabel="% of BF16")
        axes.margins(y=0.15)
    mark_empty(panels, pairs["model"], "no finished pair")
    extra = [Patch(color=_SHADE, label="SR / RHT / 2D group")] if grouped else []
    legend(figure, tables, recipes, extra)
    name = metric_name(metric)
    caption = (
        f"{name} as a percentage of the BF16 cell with the same seed and fold: every {unit} a dot, the mean with its"
        " 95 % t interval (none from a single one; one of two may run off the frame); where no pair is finished stands"
        f" 'none'. Axes need not begin at 0. {describe_cells(cells)}"
    )
    alt = (
        f"{name} relative to BF16 for {len(recipes)} recipes in {len(panels)} models; numbers in the table of"
        " comparisons."
    )
    return Picture(f"percent_{metric}", f"{name} as a percentage of BF16", caption, alt, figure, "paired")


def _pairs(tables: StudyTables, paired: pd.DataFrame) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """Percentages of the seeds of the main fold, or of the folds where there are more of them and few seeds."""
    every = paired.dropna(subset=["percent"])
    seeds = tables.in_main_fold(every)
    if seeds["seed"].nunique() >= min(FEW, every["fold"].nunique()):
        return seeds, "seed", tables.in_main_fold(tables.done)
    folds = every.groupby(["model", "recipe", "fold"], sort=False)["percent"].mean().reset_index()
    return folds, "fold", tables.done


def five_folds(tables: StudyTables) -> Picture | None:
    """AUPRC by fold for every recipe, where the study has several folds."""
    done = tables.done[tables.done["fold"] != "all"]
    folds = [str(fold) for fold in tables.definition.folds if str(fold) in set(done["fold"])]
    if len(folds) < 2:
        return None
    models = [m for m in tables.models if done.loc[done["model"] == m, "fold"].nunique() > 1]
    if not models:
        return None
    figure, panels = grid(tables, (max(3.3, 0.34 * len(tables.recipes) + 0.9), 2.6), models)
    shades = [str(level) for level in np.linspace(0.15, 0.75, len(folds))]
    marks = "osD^vP*X<>"
    handles: list[Any] = []
    for model, axes in panels.items():
        own = done[done["model"] == model]
        for place, recipe in enumerate(tables.recipes):
            means = own[own["recipe"] == recipe].groupby("fold")["auprc"].mean()
            if means.empty:
                continue
            interval = mean_interval(means)
            style = look(recipe, tables.recipes)
            axes.bar(place, interval.mean, width=0.7, color=style.colour, alpha=0.3, linewidth=0)
            if interval.n > 1:
                draw_interval(axes, place, interval.low, interval.high, n=interval.n, colour=style.colour)
            for offset, shade, mark, fold in zip(spread(len(folds), 0.5), shades, marks * 3, folds, strict=False):
                if fold in means.index:
                    dots = axes.plot(place + offset, means[fold], mark, color=shade, markersize=4, label=f"fold {fold}")
                    if len(handles) < len(folds) and fold not in [h.get_label()[5:] for h in handles]:
                        handles.append(dots[0])
        low = own["auprc"].min()
        axes.set_ylim(max(0.0, low - 0.25 * (own["auprc"].max() - low) - 0.02), None)
        name_recipes(axes, tables.recipes)
        axes.set(ylabel="AUPRC")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=8)
    caption = (
        "AUPRC of each fold (mean over its seeds) as a dot, the mean of the folds as a bar with its 95 % t interval."
        " Folds share training patients, so the interval is narrower than that of new patients. The axis does not"
        f" begin at 0. {describe_cells(done)}"
    )
    alt = f"AUPRC of {len(folds)} folds for {len(tables.recipes)} recipes in {len(panels)} models."
    return Picture("folds", f"Comparison over {len(folds)} folds", caption, alt, figure, "cells")


def _dots(axes: Any, place: float, values: pd.Series, style: Any, wide: float = 0.03) -> float:
    """Every value a dot, the mean a marker with its interval; returns the mean."""
    interval = mean_interval(values)
    axes.plot(place + spread(len(values), wide), values, "o", color=style.colour, ms=2.6, alpha=0.45, mew=0, zorder=2)
    axes.plot(place, interval.mean, style.marker, color=style.colour, markersize=5.5, zorder=4)
    if interval.n > 1:
        draw_interval(axes, place, interval.low, interval.high, n=interval.n, colour=style.colour)
    return interval.mean
