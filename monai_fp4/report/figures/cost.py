"""Figures of cost: seconds of an epoch and, where it was recorded, peak memory."""

from __future__ import annotations

import pandas as pd

from monai_fp4.report.figures.picture import Picture
from monai_fp4.report.figures.style import describe_cells, grid, look, mark_empty, not_drawn
from monai_fp4.report.tables import StudyTables

__all__ = ["memory", "time"]


def time(tables: StudyTables, costs: pd.DataFrame) -> Picture | None:
    """Seconds of an epoch, the median of a recipe's cells, with the ratio to BF16."""
    return _bars(tables, costs, "epoch_seconds", "seconds per epoch", "time", "Time of an epoch", 1.0)


def memory(tables: StudyTables, costs: pd.DataFrame) -> Picture | None:
    """Peak memory, the median of a recipe's cells."""
    return _bars(tables, costs, "peak_memory_bytes", "peak memory, GiB", "memory", "Peak memory", 2.0**30)


def _bars(
    tables: StudyTables, costs: pd.DataFrame, column: str, words: str, name: str, title: str, unit: float
) -> Picture | None:
    known = costs.dropna(subset=[column])
    if known.empty:
        return None
    recipes = [r for r in tables.recipes if r in set(known["recipe"])]
    figure, panels = grid(tables, (3.4, 0.19 * len(recipes) + 0.9))
    for model, axes in panels.items():
        rows = known[known["model"] == model].set_index("recipe")
        for place, recipe in enumerate(recipes):
            if recipe in rows.index:
                value = rows.loc[recipe, column] / unit
                axes.barh(place, value, color=look(recipe, tables.recipes).colour, height=0.65)
                ratio = rows.loc[recipe, "times_baseline"]
                said = f" x{ratio:.2f}" if column == "epoch_seconds" and pd.notna(ratio) else f" {value:.2f}"
                axes.annotate(said, (value, place), va="center", fontsize=7)
            elif len(rows):
                axes.annotate(" none", (0, place), va="center", fontsize=7, color="0.35")
        axes.set_yticks(range(len(recipes)), recipes)
        axes.set(ylim=(len(recipes) - 0.5, -0.5), xlabel=words)
        axes.margins(x=0.18)
        axes.grid(axis="y", visible=False)
    mark_empty(panels, known["model"])
    devices = ", ".join(sorted({str(d) for d in tables.done["device"] if d})) or "not recorded"
    backends = ", ".join(sorted({str(b) for b in tables.done["backend"] if b})) or "not recorded"
    numbers = "beside a bar, times BF16" if column == "epoch_seconds" else "beside a bar, its length"
    caption = (
        f"{title}: median over the finished cells ({numbers}; 'none' without a finished cell)."
        f"{not_drawn(tables, recipes)} Device: {devices}; backend: {backends}. Cells of a sweep share their machine:"
        " this is what the study took, not a benchmark. The emulated backend does more work than BF16 and saves"
        f" neither time nor memory. {describe_cells(tables.done)}"
    )
    alt = f"{title} by recipe for {len(panels)} models; numbers in the table of cost."
    return Picture(name, title, caption, alt, figure, "cost")
