"""One look for every figure: which recipe is which colour, marker and line, in which order, and what a caption says.

Eleven colours that everybody can tell apart do not exist. BF16 is black, `full` is orange-red, the others have Paul
Tol's muted scheme, made for colour-blind readers; and each has a marker of its own, with lines that differ in dashes,
so that no figure needs colour to be read. Recipes that a user defined get greys after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from monai_fp4.quantization.recipes import RECIPES
from monai_fp4.report.statistics import FEW
from monai_fp4.report.tables import StudyTables

__all__ = [
    "GROUP", "STYLE", "Look", "describe_cells", "draw_interval", "grid", "legend", "look", "mark_empty", "name_recipes",
    "not_drawn", "single", "spread", "whole_epochs",
]  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a recipe."""

    colour: str
    marker: str
    dashes: Any

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of a line without markers."""
        return {"color": self.colour, "linestyle": self.dashes}

    def line_of(self, points: int) -> dict[str, Any]:
        """Arguments of a line through so many points; of few, each has a marker."""
        return self.line | ({"marker": self.marker, "markersize": 3.5} if points <= _FEW_POINTS else {})


_FEW_POINTS = 15
_SOLID = "-"
_DASHED, _DOTTED, _MIXED = (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5))
_LOOKS = {
    "bf16": Look("#000000", "o", _SOLID),
    "full": Look("#D55E00", "s", _SOLID),
    "forward_only": Look("#332288", "^", _DASHED),
    "chain_rule": Look("#56B4E9", "v", _DASHED),
    "sr": Look("#117733", "D", _SOLID),
    "rht": Look("#C9A227", "P", _SOLID),
    "2d": Look("#CC6677", "X", _SOLID),
    "sr_rht": Look("#999933", "<", _DOTTED),
    "sr_2d": Look("#44AA99", ">", _DOTTED),
    "rht_2d": Look("#AA4499", "p", _DOTTED),
    "sr_rht_2d": Look("#661100", "*", _MIXED),
}
_OWN = [
    Look(c, m, d) for c, m, d in zip(("#555555", "#888888", "#AAAAAA"), "hd8", (_DASHED, _DOTTED, _MIXED), strict=True)
]
GROUP = tuple(name for name, r in RECIPES.items() if r.stochastic_rounding or r.hadamard or r.two_d_weights)
"""The recipes with stochastic rounding, the Hadamard transform or 2D scales: shaded in the figures."""

STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "monai-fp4",
    "svg.fonttype": "path", "figure.facecolor": "white",
}  # fmt: skip
"""Matplotlib's settings of every figure; the salt makes the same figure the same SVG."""


def look(recipe: str, recipes: Sequence[str] = ()) -> Look:
    """Look a recipe's style up; one that is not in the table gets a grey by its place among the study's own recipes."""
    if recipe in _LOOKS:
        return _LOOKS[recipe]
    own = [name for name in recipes if name not in _LOOKS]
    return _OWN[(own.index(recipe) if recipe in own else 0) % len(_OWN)]


def grid(
    tables: StudyTables, panel: tuple[float, float] = (3.3, 2.5), models: Sequence[str] | None = None, **kwargs: Any
) -> tuple[Figure, dict[str, Any]]:
    """A figure with one panel a model: architectures in rows and scales in columns, each variant in rows of its own.

    With a single scale the models stand side by side.

    Returns:
        The figure, and model -> axes. Places of the grid that no model stands at stay empty.
    """
    wanted = list(models) if models is not None else tables.models
    named = tables.cells.drop_duplicates("model").set_index("model").loc[wanted]
    rows = list(dict.fromkeys(zip(named["arch"], named["variant"], strict=True)))
    columns = list(dict.fromkeys(named["scale"]))
    places = {m: (rows.index((p["arch"], p["variant"])), columns.index(p["scale"])) for m, p in named.iterrows()}
    if len(columns) == 1:  # one scale: side by side, as wide as three
        places = {model: divmod(number, 3) for number, model in enumerate(wanted)}
    height, width = (1 + max(place[axis] for place in places.values()) for axis in (0, 1))
    with mpl.rc_context(STYLE):
        size = (max(panel[0] * width + 0.4, 4.6), panel[1] * height + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(height, width, squeeze=False, **kwargs)
    for one in axes.ravel():  # shared axes would leave a column whose last panel is empty without numbers
        one.tick_params(labelbottom=True, labelleft=True)
    found: dict[str, Any] = {}
    for model, place in places.items():
        found[str(model)] = axes[place]
        axes[place].set_title(str(model))
    for one in axes.ravel():
        if one not in found.values():
            one.set_axis_off()
    return figure, found


def draw_interval(axes: Any, place: float, low: float, high: float, *, n: int, colour: str, flat: bool = False) -> None:
    """Draw an interval of `n` values as a line, upright or flat.

    One of fewer than three values may be as wide as anything. It does not set the axis, and runs off the frame.
    """
    ends = [(low, place), (high, place)] if flat else [(place, low), (place, high)]
    line = LineCollection([ends], colors=[colour], linewidths=1.5, zorder=3)
    axes.add_collection(line, autolim=n >= FEW)


def name_recipes(axes: Any, recipes: Sequence[str]) -> None:
    """Write a recipe at each place from 0 on, below a panel."""
    axes.set_xticks(range(len(recipes)), recipes, rotation=60, ha="right", rotation_mode="anchor")
    axes.grid(axis="x", visible=False)


def whole_epochs(axes: Any) -> None:
    """Number an axis of epochs by whole ones."""
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)


def mark_empty(panels: dict[str, Any], drawn: Iterable[str], words: str = "no finished cell") -> None:
    """Say in a panel that there is nothing to draw, rather than show empty axes."""
    filled = set(drawn)
    for model, axes in panels.items():
        if model not in filled:
            axes.annotate(words, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color="0.4")
            axes.tick_params(labelbottom=False, labelleft=False)
            axes.set(xlabel="", ylabel="")
            axes.grid(visible=False)


def not_drawn(tables: StudyTables, drawn: Iterable[str], words: str = "finished cell") -> str:
    """A caption's sentence on the study's recipes that a figure has nothing of; begins with a space, or is empty."""
    missing = [recipe for recipe in tables.recipes if recipe not in set(drawn)]
    return f" No {words} yet of {', '.join(missing)}." if missing else ""


def single(
    width: float = 6.4, height: float = 3.8, rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, Any]:
    """A figure in the report's style that has no panel a model."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def legend(
    figure: Figure, tables: StudyTables, drawn: Iterable[str], extra: Sequence[Any] = (), markers: bool = True
) -> None:
    """A legend of the recipes that are drawn, in the study's order, below the panels."""
    shown = set(drawn)
    looks = {name: look(name, tables.recipes) for name in tables.recipes if name in shown}
    handles: list[Any] = [
        Line2D([], [], label=name, marker=style.marker if markers else "", markersize=5, **style.line)
        for name, style in looks.items()
    ]
    with mpl.rc_context(STYLE):
        columns = min(6, max(3, int(figure.get_figwidth() / 1.5)))
        figure.legend(handles=[*handles, *extra], loc="outside lower center", ncols=columns, fontsize=8)


def describe_cells(cells: pd.DataFrame) -> str:
    """What a caption says of its cells: how many, seeds, folds, epochs, image size, code version."""
    if cells.empty:
        return "No finished cell."

    def listed(column: str, word: str, many: str) -> str:
        known = cells[column].dropna()
        values = list(dict.fromkeys(str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in known))
        values = [value for value in values if value]
        if not values:
            return f"{word} not recorded"
        shown = ", ".join(values[:6]) + (f" and {len(values) - 6} more" if len(values) > 6 else "")
        return f"{word if len(values) == 1 else many} {shown}"

    seeds = cells["seed"].nunique()
    count = f"n = {len(cells)} finished cell{'s' if len(cells) != 1 else ''}"
    parts = [count, f"{seeds} seed{'s' if seeds != 1 else ''}", listed("fold", "fold", "folds")]
    parts += [listed("epochs", "epochs", "epochs"), listed("image_size", "image size", "image sizes")]
    return "; ".join([*parts, listed("version", "code version", "code versions")]) + "."


def spread(count: int, width: float = 0.34) -> Any:
    """Offsets that lay dots of one column side by side, always the same."""
    return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(count)
