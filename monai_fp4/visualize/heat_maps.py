"""Heat maps over layers and epochs: where a network is in trouble, and since when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["heat_map_figure"]


def heat_map_figure(
    panels: Mapping[str, NDArray[np.float64]],
    *,
    rows: Sequence[str],
    epochs: Sequence[int],
    label: str,
    limits: tuple[float, float],
) -> Figure:
    """Draw tables side by side on one scale of colours, low values dark.

    Args:
        panels: title -> table `[rows, epochs]`; NaN, which stays white, where nothing was measured.
        rows: names, such as of layers.
        epochs: numbers of the columns, rising.
        label: of the colours.
        limits: of the colours, the same whatever the values, so that what is well looks well; values beyond have the
            colour of the limit.

    Returns:
        The figure; its title names the lowest value of the last epoch.
    """
    tables = list(panels.values())
    names = 0.06 * max(len(name) for name in rows)
    width = np.clip(0.16 * len(epochs), 1.3, 2.6)
    size = (max(6.4, names + 1.4 + (width + 0.25) * len(panels)), max(2.9, 0.17 * len(rows) + 1.3))
    figure = Figure(figsize=size, layout="constrained")
    rows = [name.replace("$", r"\$") for name in rows]  # matplotlib takes dollars for formulas
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for panel, (title, table) in zip(axes, panels.items(), strict=True):
        image = panel.imshow(table, aspect="auto", cmap="cividis", vmin=limits[0], vmax=limits[1],
                             interpolation="nearest")  # fmt: skip
        panel.set_title(title, fontsize=9)
        shown = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), 5)).round().astype(int))
        panel.set_xticks(shown, [str(epochs[at]) for at in shown], fontsize=7)
        panel.set_xlabel("epoch", fontsize=8)
    axes[0].set_yticks(range(len(rows)), rows, fontsize=6.5)
    bar = figure.colorbar(image, ax=list(axes), aspect=30, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=8)
    latest = np.stack([table[:, -1] for table in tables])
    if not np.isnan(latest).all():
        at, row = np.unravel_index(np.nanargmin(latest), latest.shape)
        where = f"{rows[int(row)]}, {list(panels)[int(at)]}" if len(panels) > 1 else rows[int(row)]
        figure.suptitle(f"lowest at epoch {epochs[-1]}: {where}, {latest[at, row]:.3g}", fontsize=9)
    return figure
