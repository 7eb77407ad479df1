"""Draw recall and AUPRC of every study as a percentage of BF16, once for light pages and once for dark ones.

    python benchmarks/study_picture.py     # benchmarks/results/study_*.json -> docs/assets/study-*-{light,dark}.svg

A dot is a cell over the BF16 cell of its seed and fold; a bar is the mean with its 95 % t interval, where there are
three or more. Nothing is computed here that is not in the results, and a recipe without a finished cell stays empty.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from common import RESULTS, ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from picture import THEMES, Theme

from monai_fp4.report.statistics import mean_interval

METRICS = {"recall": "recall, % of BF16", "auprc": "AUPRC, % of BF16"}


def percents(content: Mapping[str, Any], model: str, metric: str) -> dict[str, list[float]]:
    """Recipe -> every finished cell over the BF16 cell of its seed and fold, in percent."""
    done = [cell for cell in content["cells"] if cell["model"] == model and cell["status"] == "done"]
    base = {(c["fold"], c["seed"]): c[metric] for c in done if c["recipe"] == "bf16"}
    found: dict[str, list[float]] = {recipe: [] for recipe in content["protocol"]["recipes"] if recipe != "bf16"}
    for cell in done:
        if cell["recipe"] in found and (cell["fold"], cell["seed"]) in base:
            found[cell["recipe"]].append(100 * cell[metric] / base[cell["fold"], cell["seed"]])
    return found


def panel(axes: Axes, values: Mapping[str, list[float]], colour: str, theme: Theme) -> None:
    """One model and metric: a column a recipe."""
    for place, numbers in enumerate(values.values()):
        offsets = [place + 0.16 * (at - (len(numbers) - 1) / 2) for at in range(len(numbers))]
        if len(numbers) >= 3:
            interval = mean_interval(numbers)
            axes.plot([place, place], [interval.low, interval.high], color=colour, linewidth=1.2, alpha=0.8)
            axes.plot([place - 0.3, place + 0.3], [interval.mean] * 2, color=colour, linewidth=2.2)
        axes.plot(offsets, numbers, "o", color=colour, markersize=3.6, markeredgewidth=0)
        if not numbers:
            where = {"xycoords": ("data", "axes fraction"), "rotation": 90, "ha": "center", "va": "bottom"}
            axes.annotate("not run", (place, 0.04), fontsize=7, color=theme.text, **where)
    axes.axhline(100, color=theme.text, linewidth=0.8)
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.grid(axis="x", visible=False)


def draw(name: str, content: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw both pictures of a study; returns where they are."""
    models = list(dict.fromkeys(cell["model"] for cell in content["cells"]))
    statuses, total = content["protocol"]["statuses"], content["protocol"]["cells"]
    paths = []
    for theme in THEMES:
        with mpl.rc_context(theme.style()):
            figure = Figure(figsize=(max(5.0, 3.9 * len(models)), 6.4), layout="constrained")
            grid = figure.subplots(2, len(models), squeeze=False, sharex=True, sharey="row")
            for column, model in enumerate(models):
                for row, (metric, label) in enumerate(METRICS.items()):
                    axes, values = grid[row, column], percents(content, model, metric)
                    panel(axes, values, theme.series[column % 3], theme)
                    axes.set_xticks(range(len(values)), values, rotation=50, ha="right", rotation_mode="anchor")
                    axes.set_ylabel(label if column == 0 else "")
                grid[0, column].set_title(model)
            words = f"{statuses.get('done', 0)} of {total} cells finished; a dot is a seed, a bar the mean of three or"
            figure.supxlabel(f"{words} more with its 95 % interval", fontsize=8.5, color=theme.text)
            paths.append(folder / f"study-{name}-{theme.name}.svg")
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(paths[-1], transparent=True, metadata={"Date": None})
    return paths


def main() -> None:
    """Draw every study that there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "assets")
    args = parser.parse_args()
    for path in sorted(args.results.glob("study_*.json")):
        name = path.stem.removeprefix("study_").replace("_", "-")
        for drawn in draw(name, json.loads(path.read_text(encoding="utf-8")), args.folder):
            print(drawn.name)


if __name__ == "__main__":
    main()
