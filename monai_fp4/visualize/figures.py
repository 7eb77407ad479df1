"""The figures of one model: precision-recall curve, histogram of probabilities, overlays.

Drawn on matplotlib's Agg canvas without pyplot, so that nothing depends on a display or on global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar  # type: ignore[import-untyped]
from numpy.typing import NDArray

from monai_fp4.atomic import write_atomically
from monai_fp4.metrics.bootstrap import Interval
from monai_fp4.metrics.histogram import ScoreHistogram
from monai_fp4.visualize.overlays import Overlay

__all__ = ["overlay_figure", "pr_curve_figure", "probabilities_figure", "save_figure", "to_array"]

# Okabe and Ito's colours, told apart by colour-blind readers; the contours also differ in line style.
_LESION, _BACKGROUND, _MARK = "#D55E00", "#0072B2", "#000000"
_TRUTH, _PREDICTION = "#00E676", "#FF4D6D"
_BINS = 60
_BARS = (1, 2, 5, 10, 20, 50, 100)  # millimetres


def pr_curve_figure(
    histogram: ScoreHistogram, *, threshold: float, interval: Interval | None = None, title: str = ""
) -> Figure:
    """Draw the precision-recall curve of a histogram with at least one positive.

    Args:
        histogram: pooled counts.
        threshold: the operating point to mark; NaN marks none.
        interval: AUPRC and its bootstrap interval, for the legend.
        title: of the figure.
    """
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    curve = histogram.pr_curve(points=2000)
    area = histogram.auprc()
    text = f"AUPRC {area:.3f}"
    if interval is not None and not math.isnan(interval.low):
        text += f" (95 % interval {interval.low:.3f} to {interval.high:.3f})"
    recall, precision = np.append(0, curve.recall), np.append(curve.precision[0], curve.precision)
    # Step-wise, as the area is computed: the precision at the far end holds for the whole step of recall.
    axes.step(recall, precision, where="pre", color=_BACKGROUND, linewidth=1.8, label=text)
    share = curve.positives / (curve.positives + curve.negatives)
    axes.axhline(share, color="0.55", linestyle=":", label=f"chance: {share:.1%} of the voxels are lesion")
    if not math.isnan(threshold):
        counts = histogram.confusion(threshold)
        if not math.isnan(counts.precision):
            label = f"threshold {threshold:.3g}: Dice {counts.dice:.3f}"
            axes.plot(counts.recall, counts.precision, "o", color=_LESION, markersize=8, label=label, zorder=3)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01), title=title)
    axes.grid(alpha=0.25)
    # Below: wherever it stood within, some curve would pass behind it.
    figure.legend(loc="outside lower center", fontsize=8.5)
    return figure


def probabilities_figure(histogram: ScoreHistogram, *, threshold: float, title: str = "") -> Figure:
    """Draw how often each probability was predicted, for lesion and for background voxels, on a logarithmic scale.

    Attention in FP4 can leave few distinct probabilities (the paper's figure 5), so their number is in the title.

    Args:
        histogram: pooled counts of probabilities.
        threshold: marked with a line; NaN marks none.
        title: of the figure.
    """
    figure = Figure(figsize=(6.2, 4.0), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, 1, _BINS + 1)
    positives, negatives = histogram.binned(edges)
    for counts, colour, name in ((negatives, _BACKGROUND, "background"), (positives, _LESION, "lesion")):
        axes.stairs(counts, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(counts, edges, color=colour, linewidth=1.6, label=f"{name}, {counts.sum():,} voxels")
    if not math.isnan(threshold):
        axes.axvline(threshold, color=_MARK, linestyle="--", linewidth=1, label=f"threshold {threshold:.3g}")
    words = f"{histogram.distinct:,}" if histogram.exact else f"more than {histogram.distinct:,}"
    axes.set(xlabel="predicted probability", ylabel="voxels", xlim=(0, 1), yscale="log")
    axes.set_ylim(bottom=0.7)
    axes.set_title((f"{title}\n" if title else "") + f"{words} distinct probabilities", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
    axes.grid(alpha=0.25, axis="y")
    return figure


def overlay_figure(overlays: Sequence[Overlay], *, threshold: float, title: str = "") -> Figure:
    """Draw slices side by side: the scan with both contours above, the probabilities below.

    Args:
        overlays: the slices, at least one.
        threshold: where the model's contour lies.
        title: of the figure.
    """
    columns = len(overlays)
    tallest = max(_height(overlay) / overlay.image.shape[1] for overlay in overlays)
    height = 2 * 2.55 * min(max(tallest, 0.3), 1.0) + 1.8  # wide pictures would stand far apart
    figure = Figure(figsize=(max(2.9 * columns + 0.6, 4.8), height), layout="constrained")
    panels = figure.subplots(2, columns, squeeze=False)
    for (above, below), overlay in zip(panels.T, overlays, strict=True):
        aspect = _height(overlay) / overlay.image.shape[0]
        above.imshow(overlay.image, cmap="gray", vmin=0, vmax=1, aspect=aspect)
        below.imshow(overlay.probability, cmap="magma", vmin=0, vmax=1, aspect=aspect)
        for axes in (above, below):
            _outline(axes, overlay.label, _TRUTH, "solid")
            axes.set_axis_off()
        _outline(above, overlay.probability >= threshold, _PREDICTION, "dashed")
        _mark_sides_and_scale(above, overlay)
        counts = overlay.counts(threshold)
        dice = "no lesion here" if not overlay.label.any() else f"Dice {counts.dice:.2f}, recall {counts.recall:.2f}"
        above.set_title(f"patient {overlay.number}\nslice {overlay.index + 1}: {dice}", fontsize=8)
        below.set_title(
            f"{counts.tp + counts.fn:,} lesion voxels: {counts.fn:,} missed\n{counts.fp:,} false alarms", fontsize=8
        )
    figure.colorbar(
        panels[1, -1].images[0], ax=panels.ravel().tolist(), label="probability", shrink=0.5, anchor=(0, 0),
        fraction=0.03, pad=0.01,
    )  # fmt: skip
    lines = [
        Line2D([], [], color=_TRUTH, label="reference"),
        Line2D([], [], color=_PREDICTION, linestyle="dashed", label=f"model, at or above {threshold:.3g}"),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, facecolor="0.25", labelcolor="white", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all; the same figure gives the same bytes.

    Raises:
        ConfigError: when the system does not let it, such as on a full disk.
    """
    content = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(content, format="png", dpi=130, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def to_array(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure as `[H, W, 3]`, for TensorBoard."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _outline(axes: Any, mask: NDArray[np.bool_], colour: str, style: str) -> None:
    if mask.any():  # closed at the border, or a mask of all pixels would look like none
        rows, columns = (np.arange(-1, edge + 1) for edge in mask.shape)
        closed = np.pad(mask, 1)
        axes.contour(columns, rows, closed, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.3)
        axes.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))


def _height(overlay: Overlay) -> float:
    """Of a picture whose pixels are one wide."""
    rows, columns = overlay.spacing or (1.0, 1.0)
    return overlay.image.shape[0] * rows / columns


def _mark_sides_and_scale(axes: Any, overlay: Overlay) -> None:
    """The patient's right and left, and a bar of a round length, where the files say where the scan lies."""
    if overlay.spacing is None:
        return
    around = [patheffects.withStroke(linewidth=1.5, foreground="black")]
    for x, side in ((0.02, "R"), (0.98, "L")):
        place = {"transform": axes.transAxes, "ha": "left" if side == "R" else "right", "va": "center"}
        axes.text(x, 0.5, side, color="white", fontsize=8, path_effects=around, **place)
    width = overlay.image.shape[1] * overlay.spacing[1]
    length = max((each for each in _BARS if each <= width / 3), default=width)
    bar = AnchoredSizeBar(
        axes.transData, length / overlay.spacing[1], f"{length:g} mm", "lower right", color="white", frameon=False,
        fontproperties=FontProperties(size=7),
    )  # fmt: skip
    for part in (bar.txt_label, bar.size_bar):
        part.get_children()[0].set_path_effects(around)
    axes.add_artist(bar)
