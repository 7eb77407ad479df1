"""The pictures of a manifest's report: intensities of every patient, and lesion volumes by fold."""

from __future__ import annotations

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from monai_fp4.report.figures.picture import Picture
from monai_fp4.report.figures.style import look, single, spread
from monai_fp4.report.survey import Survey

__all__ = ["intensities", "lesion_volumes"]

_PLAIN, _MARKED = look("bf16"), look("full")
"""Black circles and orange squares, told apart without colour."""
_NAMED = 6
_DOTS = 60
"""Dots of a fold up to which each has a place of its own beside the others."""


def intensities(found: Survey) -> Picture | None:
    """A panel a channel: of every patient the range of intensities and the mean of the foreground."""
    patients = found.measured
    if not patients:
        return None
    names = found.manifest.channels
    figure, axes = single(9.6, 0.6 + 2.3 * len(names), rows=len(names))
    marked = set(found.unusual)
    for at, (name, panel) in enumerate(zip(names, axes[:, 0], strict=True)):
        order = sorted(range(len(patients)), key=lambda number: patients[number].intensities[at].mean)
        for group, style in ((False, _PLAIN), (True, _MARKED)):
            chosen = [(x, patients[n].intensities[at]) for x, n in enumerate(order) if (n in marked) == group]
            lines = [[(x, each.percentiles[1]), (x, each.percentiles[3])] for x, each in chosen]
            panel.add_collection(LineCollection(lines, colors=[style.colour], linewidths=1, alpha=0.45))
            x, means = [x for x, _ in chosen], [each.mean for _, each in chosen]
            panel.plot(x, means, style.marker, color=style.colour, markersize=3 if len(order) > 100 else 4)
        panel.set(title=_plain_text(name), ylabel="intensity", xlim=(-1, len(order)), xticks=[])
        panel.margins(y=0.08)
    axes[-1, 0].set_xlabel(f"{len(patients)} patients, by the mean of their foreground")
    handles = [
        Line2D([], [], marker=style.marker, linestyle="-", color=style.colour, label=words)
        for style, words in ((_PLAIN, "foreground mean, 1st to 99th percentile"), (_MARKED, "unusual patient"))
    ]
    figure.legend(handles=handles[: 2 if marked else 1], loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    middle = [np.median([each.intensities[at].mean for each in patients]) for at in range(len(names))]
    said = "; ".join(f"{name} {value:.4g}" for name, value in zip(names, middle, strict=True))
    return Picture(
        name="intensities",
        title="Intensities of every patient",
        caption=(
            "A line from the 1st to the 99th percentile of all voxels, a dot at the mean of the foreground, as a "
            f"training would normalise by it. Orange squares: unusual patients. n = {len(patients)}."
        ),
        alt=f"Range of intensities of {len(patients)} patients; median of the foreground means: {said}.",
        figure=figure,
    )


def lesion_volumes(found: Survey) -> Picture | None:
    """Lesion volume of every patient by fold, on a logarithmic scale; patients without a lesion are counted below."""
    by_id = {each.patient.id: each for each in found.measured}
    in_ml = all(each.lesion_ml is not None for each in found.measured)
    parts = {
        name: [by_id[patient.id] for patient in members if patient.id in by_id] for name, members in found.parts.items()
    }
    if not any(each.lesions for members in parts.values() for each in members):
        return None
    figure, axes = single(max(5.2, 1.0 + 0.9 * len(parts)), 3.6)
    panel = axes[0, 0]
    for x, members in enumerate(parts.values()):
        sizes = sorted(_size(each.lesion_ml, each.examined.tumour_voxels, in_ml) for each in members if each.lesions)
        offsets = spread(_DOTS, 0.6)[(np.arange(len(sizes)) * 37) % _DOTS]  # neighbours in size lie apart
        panel.plot(x + offsets, sizes, _PLAIN.marker, color=_PLAIN.colour, markersize=3.5, alpha=0.6)
        if sizes:
            panel.hlines(np.median(sizes), x - 0.38, x + 0.38, color=_MARKED.colour, linewidth=2, zorder=3)
    labels = []
    for name, members in parts.items():
        empty = sum(not each.lesions for each in members)
        labels.append(f"{_plain_text(name)}\n" + (f"{empty} without" if empty else ""))
    rotated = {"rotation": 40, "ha": "right"} if len(parts) > 8 else {}
    panel.set_xticks(range(len(parts)), labels, fontsize=8, **rotated)
    panel.set(yscale="log", ylabel="lesion volume, ml" if in_ml else "lesion volume, voxels")
    panel.set_xlim(-0.6, len(parts) - 0.4)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    return Picture(
        name="lesion_volumes",
        title="Lesion volumes by fold",
        caption=(
            "A dot a patient with a lesion, a line at the median; below, how many have none, if any. A fold of small "
            "lesions only, or of large ones, gives other results than the rest."
        ),
        alt="Lesion volume of every patient by fold; the table of folds and splits has the sums.",
        figure=figure,
    )


def _size(ml: float | None, voxels: int, in_ml: bool) -> float:
    return ml if in_ml and ml is not None else float(voxels)


def _plain_text(name: str) -> str:
    """A name that matplotlib does not take for a formula."""
    return name.replace("$", r"\$")
