"""Draw the results as bars, once for light pages and once for dark ones.

    python benchmarks/picture.py        # benchmarks/results/*.json -> docs/assets/speed-{light,dark}.svg

Nothing is measured here, and a results file that is missing leaves its panel empty with a word about it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from common import RESULTS, ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ratios import STEP_GOAL, load


@dataclass(frozen=True)
class Theme:
    """Colours of one kind of page; the hues are those of Okabe and Ito, which colour-blind readers tell apart."""

    name: str
    text: str
    grid: str
    peer: str
    ours: str
    series: tuple[str, str, str]

    def style(self, **more: Any) -> dict[str, Any]:
        """Settings of Matplotlib under which a page's pictures are drawn; ``more`` for one of them."""
        return {
            "text.color": self.text, "axes.labelcolor": self.text, "xtick.color": self.text,
            "ytick.color": self.text, "axes.edgecolor": self.grid, "grid.color": self.grid, "axes.grid": True,
            "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5,
            "axes.titlesize": 11, "axes.titleweight": "bold", "svg.hashsalt": "monai-fp4", **more,
        }  # fmt: skip


THEMES = (
    Theme("light", "#1f2328", "#d0d7de", "#8c959f", "#00796b", ("#0072b2", "#d55e00", "#009e73")),
    Theme("dark", "#e6edf3", "#3d444d", "#7d8590", "#4db6ac", ("#56b4e9", "#e69f00", "#3fc79a")),
)
FORMAT = "svg"


def bars(axes: Axes, values: Mapping[str, float], theme: Theme, unit: str, ours: Callable[[str], bool]) -> None:
    """Horizontal bars on a logarithmic axis, quickest on top, each with its figure."""
    names = sorted(values, key=lambda name: -values[name])
    colours = [theme.ours if ours(name) else theme.peer for name in names]
    axes.barh(names, [values[name] for name in names], color=colours, height=0.7)
    axes.set_xscale("log")
    axes.set_xlim(min(values.values()) / 2, max(values.values()) * 4)
    for row, name in enumerate(names):
        value = values[name]
        text = f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
        axes.annotate(text, (value, row), (4, 0), textcoords="offset points", va="center", size=8.5)
    axes.grid(visible=False)
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)


def quantizers(axes: Axes, content: Mapping[str, Any], theme: Theme) -> None:
    """Milliseconds of quantize-and-decode."""
    labels = {
        "ours, rows, nearest": "ours",
        "ours, rows, SR": "ours, SR",
        "ours, columns, RHT + SR": "ours, columns, RHT + SR",
        "x.clone()": "x.clone()",
        "plain torch, rows, nearest": "ours, plain torch",
        "torch.compile, magic numbers": "torch.compile, magic numbers",
        "torch.compile of plain torch": "torch.compile of plain torch",
    }
    rows = {
        labels.get(name, name): entry["ms"]
        for name, entry in content["results"].items()
        if "ms" in entry and (name in labels or not name.startswith(("ours", "plain")))
    }
    bars(axes, rows, theme, "ms", lambda name: name.startswith("ours"))
    shape = " x ".join(map(str, content["protocol"]["shape"]))
    axes.set_title(f"Quantize and decode {shape} FP32 (logarithmic)")


def steps(axes: Axes, content: Mapping[str, Any], theme: Theme) -> None:
    """A training step of every recipe over BF16."""
    protocol = content["protocol"]
    ratios: dict[str, dict[str, float]] = {}
    for cell in content["cells"]:
        if cell["recipe"] != "bf16" and "plain" not in cell["recipe"]:
            arch = cell["bundle"].split("_")[0]
            ratios.setdefault(arch, {})[cell["recipe"]] = cell["ratio"]
    recipes = list(dict.fromkeys(recipe for row in ratios.values() for recipe in row))
    width = 0.8 / max(1, len(ratios))
    for number, (arch, row) in enumerate(ratios.items()):
        places = [index + (number - (len(ratios) - 1) / 2) * width for index in range(len(recipes))]
        heights = [row.get(recipe, 0.0) for recipe in recipes]
        axes.bar(places, heights, width * 0.92, color=theme.series[number % 3], label=arch)
    goal = STEP_GOAL["cuda" if protocol["device"].startswith("cuda") else "cpu"]
    axes.axhline(1, color=theme.text, linewidth=0.8)
    if protocol["scale"] == "15m":
        axes.axhline(goal, color=theme.text, linewidth=0.8, linestyle="--", label=f"goal, {goal:g}")
    axes.set_xticks(range(len(recipes)), recipes, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_ylabel("over BF16")
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.28 * max([goal, *(value for row in ratios.values() for value in row.values())]))
    axes.legend(ncols=4, frameon=False, loc="upper left", labelcolor=theme.text)
    size = " x ".join(map(str, protocol["image_size"]))
    axes.set_title(f"Training step over BF16, {protocol['scale']} at {size}")


def images(axes: Axes, content: Mapping[str, Any], theme: Theme) -> None:
    """Speed of our BF16 networks over MONAI's own."""
    names = {"stock_bf16": "its code, BF16", "stock_fp32": "its code, FP32", "monai_bf16": "SwinUNETR, UNETR"}
    cells = [cell for cell in content["cells"] if cell["contestant"] != "ours"]
    groups = list(dict.fromkeys(f"{cell['arch']} {cell['scale']}" for cell in cells))
    for number, (contestant, label) in enumerate(names.items()):
        own = [cell for cell in cells if cell["contestant"] == contestant]
        places = [groups.index(f"{cell['arch']} {cell['scale']}") + (number - 1) * 0.27 for cell in own]
        heights = [cell["speed_of_ours"] for cell in own]
        axes.bar(places, heights, 0.25, color=theme.series[number], label=label)
        for place, height in zip(places, heights, strict=True):
            axes.annotate(f"{height:.2f}", (place, height), (0, 2), textcoords="offset points", ha="center", size=7.5)
    axes.axhline(1, color=theme.text, linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylim(0, 1.35 * max(cell["speed_of_ours"] for cell in cells))
    axes.set_ylabel("ours is so many times as fast")
    axes.grid(axis="x", visible=False)
    axes.legend(ncols=3, frameon=False, loc="upper left", labelcolor=theme.text)
    axes.set_title("Images a second in a BF16 step, over MONAI's")


def auprc(axes: Axes, content: Mapping[str, Any], theme: Theme) -> None:
    """Seconds for the AUPRC."""
    names = {
        "monai_fp4.metrics.compute_auprc": "ours, exact",
        "monai_fp4.metrics.ScoreHistogram": "ours, streamed",
        "sklearn.metrics.average_precision_score": "scikit-learn",
        "monai.metrics.compute_average_precision": "MONAI",
        "torchmetrics": "torchmetrics",
    }
    peers = content["comparison"]["peers"]
    rows = {names[name]: row["seconds"] for name, row in peers.items() if name in names and "seconds" in row}
    bars(axes, rows, theme, "s", lambda name: name.startswith("ours"))
    axes.set_title(f"AUPRC of {content['comparison']['pixels']:,} pixels (logarithmic)")


PANELS: dict[str, Callable[[Axes, Mapping[str, Any], Theme], None]] = {
    "quantize": quantizers,
    "training_step": steps,
    "auprc": auprc,
    "networks": images,
}


def footer(contents: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The machine, and how disturbed the runs were."""
    known = [content for content in contents.values() if content and "run" in content]
    if not known:
        return "The results do not say on what machine they were measured."
    this = known[0]["machine"]
    loads = [content["run"]["load_average"]["before"] for content in known]
    load = f", load average before the start {max(loads):.1f}" if None not in loads else ""
    dates = sorted(content["run"]["date"][:10] for content in known)
    return f"{this['name']}, {this['cores']} cores, torch {this['torch']}, {dates[-1]}{load}"


def draw(results: Path, folder: Path) -> list[Path]:
    """Draw both pictures; returns where they are."""
    contents = {name: load(results, name) for name in PANELS}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for theme in THEMES:
        with mpl.rc_context(theme.style(**{"axes.titlelocation": "left", "legend.fontsize": 8.5})):
            figure = Figure(figsize=(12, 8.2), layout="constrained")
            for axes, (name, panel) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
                content = contents[name]
                if content is None:
                    axes.set_axis_off()
                    axes.text(0.5, 0.5, f"{name}: not run", ha="center", transform=axes.transAxes)
                else:
                    panel(axes, content, theme)
            figure.supxlabel(footer(contents), fontsize=8.5, color=theme.text)
            paths.append(folder / f"speed-{theme.name}.{FORMAT}")
            figure.savefig(paths[-1], transparent=True, metadata={"Date": None})
    return paths


def main() -> None:
    """Draw what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "assets")
    options = parser.parse_args()
    for path in draw(options.results, options.folder):
        print(path)


if __name__ == "__main__":
    main()
