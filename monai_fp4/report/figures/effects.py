"""Draw what the paper lacks on quality: differences with their intervals and margins, and the variance explained."""

from __future__ import annotations

import pandas as pd
from matplotlib.lines import Line2D

from monai_fp4.report.figures.picture import Picture
from monai_fp4.report.figures.style import describe_cells, draw_interval, grid, look, mark_empty, single
from monai_fp4.report.tables import StudyTables, metric_name

__all__ = ["differences", "variance_explained"]


def differences(tables: StudyTables, comparisons: pd.DataFrame, metric: str, margin: float) -> Picture | None:
    """Mean difference to BF16 with its interval, beside the margin."""
    own = comparisons[comparisons["metric"] == metric]
    if own.empty:
        return None
    recipes = [recipe for recipe in tables.recipes if recipe != tables.baseline]
    name = metric_name(metric, inside=True)
    figure, panels = grid(tables, (3.5, 0.19 * len(recipes) + 1.0), sharex=True)
    for model, axes in panels.items():
        axes.axvline(0, color="black", linewidth=0.9)
        axes.axvline(-margin, color="0.35", linewidth=0.9, linestyle=":")
        rows = own[own["model"] == model].set_index("recipe")
        for place, recipe in enumerate(recipes):
            if recipe not in rows.index:
                continue
            row, style = rows.loc[recipe], look(recipe, tables.recipes)
            shown = row["p_holm"] < 0.05
            face = style.colour if shown else "white"
            axes.plot(row["mean"], place, style.marker, mfc=face, mec=style.colour, markersize=6, zorder=3)
            if pd.notna(row["low"]):
                draw_interval(axes, place, row["low"], row["high"], n=row["n"], colour=style.colour, flat=True)
        axes.set_yticks(range(len(recipes)), recipes)
        axes.set(ylim=(len(recipes) - 0.5, -0.5), xlabel=f"difference in {name} to BF16")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.09)  # a marker shall not lie on the frame
    mark_empty(panels, own["model"], "no finished pair")
    without = any(own.loc[own["model"] == model, "recipe"].nunique() < len(recipes) for model in panels)
    handles = [
        Line2D([], [], marker="o", color="0.3", linestyle="", label="p < 0.05 after Holm"),
        Line2D([], [], marker="o", mfc="white", color="0.3", linestyle="", label="not shown to differ"),
        Line2D([], [], color="0.35", linestyle=":", label=f"margin, -{margin:g}"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    units = ", ".join(dict.fromkeys(own["unit"]))
    caption = (
        f"Mean paired difference in {name} to BF16 with its 95 % interval (pairs: {units}; intervals are not"
        " corrected for their number, the p values behind the filled markers are). An interval wholly right of the"
        " dotted line excludes a loss of the margin; one of two pairs may run off the frame."
        f"{' An empty row has no finished pair; a marker without an interval has only one.' if without else ''}"
        f" {describe_cells(tables.done)}"
    )
    alt = f"Differences in {name} to BF16 with intervals; the same numbers stand in the table of comparisons."
    return Picture(f"difference_{metric}", f"Difference in {name} to BF16", caption, alt, figure, "comparisons")


def variance_explained(tables: StudyTables, variance: pd.DataFrame, what: str) -> Picture | None:
    """Shares of variance as bars."""
    if variance.empty:
        return None
    figure, axes = single(6.6, 0.34 * len(variance) + 1.0)
    panel, places = axes[0, 0], range(len(variance))
    colours = ["#0072B2" if " x " not in s and s != "seed within model" else "#56B4E9" for s in variance["source"]]
    colours = ["0.6" if "seed" in s else c for s, c in zip(variance["source"], colours, strict=True)]
    panel.barh(list(places), 100 * variance["eta_squared"], color=colours, height=0.65)
    for place, (share, p) in enumerate(zip(variance["eta_squared"], variance["p"], strict=True)):
        said = "" if pd.isna(p) else ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"
        panel.annotate(f" {100 * share:.1f} %{said}", (100 * share, place), va="center", fontsize=8)
    panel.set_yticks(list(places), variance["source"])
    panel.set(ylim=(len(variance) - 0.5, -0.5), xlabel="share of the variance of AUPRC, %")
    panel.set_xlim(0, 118 * variance["eta_squared"].max() + 10)
    panel.set_xticks([t for t in panel.get_xticks() if 0 <= t <= 100])
    panel.grid(axis="y", visible=False)
    caption = f"Share of the variance of AUPRC that each source explains (eta squared), {what}"
    alt = "Bars: " + "; ".join(
        f"{s} {100 * e:.1f} %" for s, e in zip(variance["source"], variance["eta_squared"], strict=True)
    )
    return Picture("variance", "Shares of the variance of AUPRC", caption, alt, figure, "variance")
