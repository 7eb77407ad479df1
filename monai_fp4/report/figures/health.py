"""Figures of quantization: how well FP4 represents each layer's operands, over the layers and over the training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from monai_fp4.report.figures.picture import Picture
from monai_fp4.report.figures.style import describe_cells, grid, legend, look, single, whole_epochs
from monai_fp4.report.tables import KEYS, StudyTables

__all__ = ["attention", "by_layer", "over_time"]

_OPERANDS = ("input", "weight", "gradient")
_MEASURES = {
    "snr_db": ("Signal to noise", "signal-to-noise ratio, dB"),
    "underflow": ("Underflow", "share of non-zero values rounded to 0"),
    "clipped": ("Clipping", "share of values beyond FP4's largest"),
}


def over_time(tables: StudyTables, measure: str) -> Picture | None:
    """The median over the layers by epoch: a row a model, a column an operand, a line a recipe."""
    known = tables.health.dropna(subset=[measure])
    if known.empty:
        return None
    title, words = _MEASURES[measure]
    models = [m for m in tables.models if m in set(known["model"])]
    height = 1.9 * len(models) + 0.9
    figure, axes = single(9.2, height, rows=len(models), columns=3, sharex=True, sharey=True)
    medians = known.groupby(["model", "operand", "recipe", "epoch"], sort=False)[measure].median().reset_index()
    for row, model in zip(axes, models, strict=True):
        for panel, operand in zip(row, _OPERANDS, strict=True):
            own = medians[(medians["model"] == model) & (medians["operand"] == operand)]
            for recipe in tables.recipes:
                line = own[own["recipe"] == recipe].sort_values("epoch")
                style = look(recipe, tables.recipes)
                if len(line):
                    panel.plot(line["epoch"], line[measure], linewidth=1.2, **style.line_of(len(line)))
            if own.empty:
                panel.annotate(
                    "not quantized, or not recorded", (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=8
                )
            panel.set_title(f"{model}: {operand}", fontsize=9)
            whole_epochs(panel)
    figure.supylabel(words, fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel("epoch")
    legend(figure, tables, known["recipe"])
    caption = (
        f"{title} of the quantized layers' operands at the first step of each epoch: median over layers, seeds and"
        f" folds; unfinished cells as far as they came. {describe_cells(tables.done_of(known))}"
    )
    alt = f"{title} against epoch by operand and recipe for {len(models)} models; numbers in the table of health."
    return Picture(f"health_{measure}", f"{title} over the training", caption, alt, figure, "health")


def by_layer(tables: StudyTables, model: str) -> Picture | None:
    """Signal to noise at the last recorded epoch: a row a layer, a column an operand and recipe."""
    known = tables.health[tables.health["model"] == model].dropna(subset=["snr_db"])
    known = known[np.isfinite(known["snr_db"])]
    if known.empty:
        return None
    finished = known.merge(tables.done[KEYS], on=KEYS)
    if len(finished):  # a cell on its way would stand with an early epoch beside others' last
        known = finished
    latest = known["epoch"] == known.groupby(["recipe", "fold", "seed"])["epoch"].transform("max")
    table = known[latest].pivot_table(index="layer", columns=["operand", "recipe"], values="snr_db", sort=False)
    layers = list(dict.fromkeys(known["layer"]))
    wanted = [(o, r) for o in _OPERANDS for r in tables.recipes if (o, r) in table.columns]
    table = table.reindex(index=layers, columns=pd.MultiIndex.from_tuples(wanted))
    width = max(0.34 * len(wanted), 0.75 * len({operand for operand, _ in wanted}))
    names = 0.055 * max(len(layer) for layer in layers)  # inches of the longest name
    figure, axes = single(max(5.0, width + names + 1.6), max(3.0, 0.19 * len(layers) + 1.9))
    # Letters are wider in an SVG than in the PNG that the layout is made for: a long name would lose its first one.
    figure.set_layout_engine("constrained", w_pad=0.04 + 0.05 * names)
    panel = axes[0, 0]
    low, high = np.nanquantile(table, [0.02, 0.98])
    image = panel.imshow(
        table, aspect="auto", cmap="cividis", vmin=low, vmax=max(high, low + 0.5), interpolation="nearest"
    )
    panel.set_yticks(range(len(layers)), layers, fontsize=6.5)
    panel.set_xticks(
        range(len(wanted)), [r for _, r in wanted], rotation=60, ha="right", rotation_mode="anchor", fontsize=7
    )
    for place, (operand, _) in enumerate(wanted):
        if place == 0 or wanted[place - 1][0] != operand:
            count = sum(o == operand for o, _ in wanted)
            panel.annotate(operand, (place + (count - 1) / 2, -0.7), ha="center", va="bottom", annotation_clip=False)
            if place:
                panel.axvline(place - 0.5, color="white", linewidth=2.5)
    panel.grid(visible=False)
    figure.colorbar(image, ax=panel, label="signal-to-noise ratio, dB", aspect=30, pad=0.02)
    slug = "".join(c if c.isalnum() else "_" for c in model)
    caption = (
        f"Signal to noise of every quantized layer of {model} at the last epoch"
        f" {'recorded' if len(finished) else 'that unfinished cells have reached'}, mean over seeds and folds; white:"
        f" not quantized. Gaussian values have about 20 dB; 10 dB less are ten times the error's power."
        f" {describe_cells(tables.done_of(known))}"
    )
    worst = table.mean(axis=1).idxmin()
    alt = (
        f"Heat map of {len(layers)} layers by operand and recipe; the lowest row is {worst} with"
        f" {table.loc[worst].mean():.1f} dB."
    )
    return Picture(f"health_layers_{slug}", f"Signal to noise by layer: {model}", caption, alt, figure, "health")


def attention(tables: StudyTables) -> Picture | None:
    """Entropy of the attention weights as a share of the highest possible, or whatever else a run recorded."""
    known = tables.attention.dropna(subset=["value"])
    if known.empty:
        return None
    # The share is comparable between layers whose windows hold different numbers of tokens; nats are in the files.
    recorded = set(known["measure"])
    measure = next((name for name in ("entropy_share", "entropy") if name in recorded), str(known["measure"].iloc[0]))
    known = known[known["measure"] == measure]
    measure, unit = ("entropy", " / log(tokens)") if measure == "entropy_share" else (measure, "")
    models = [m for m in tables.models if m in set(known["model"])]
    figure, panels = grid(tables, models=models, sharex=True)
    for (model, recipe), group in known.groupby(["model", "recipe"], sort=False):
        line = group.groupby("epoch")["value"].mean()
        style: Any = look(recipe, tables.recipes)
        panels[model].plot(line.index, line, marker=style.marker, markersize=3.5, **style.line)
    for axes in panels.values():
        axes.set(xlabel="epoch", ylabel=f"attention {measure}{unit}")
        whole_epochs(axes)
    legend(figure, tables, known["recipe"])
    extremes = f"0 is all weight on one token, {'1' if unit else 'log(tokens)'} the same weight on all"
    caption = (
        f"Attention {measure}{unit} as the runs recorded it, of one validation batch, mean over layers, seeds and"
        f" folds; unfinished cells as far as they came; {extremes}. {describe_cells(tables.done_of(known))}"
    )
    alt = f"Attention {measure} against epoch for {len(models)} models."
    return Picture("attention", f"Attention {measure}", caption, alt, figure, "attention")
