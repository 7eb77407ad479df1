"""Draw the ways of a scan, a weight and a cell through the rooms, once for light pages and once for dark ones.

    python docs/ways_picture.py        # -> docs/assets/ways-{light,dark}.svg

`WAYS` is all that the picture says: at each station the module that a thing passes, and what it is afterwards. A test
checks that the modules exist and that the files are what this script draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

ASSETS = Path(__file__).parent / "assets"

WAYS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "A scan": (
        ("data.layouts", "files of a patient, found"),
        ("data.manifest", "who is in which fold; SHA-256"),
        ("data.readers", "image [C, H, W, D] and its mask"),
        ("data.preprocessing", "normalised, at the network's size"),
        ("data.batched", "augmented batch [B, C, h, w]"),
        ("engines.training", "logits and a loss"),
        ("metrics.cohort", "voxels counted by their score"),
        ("handlers.recorder", "metrics.json"),
        ("handlers.evaluation_report", "intervals and pictures"),
    ),
    "A weight": (
        ("networks.build", "FP32 parameter, drawn from the seed"),
        ("quantization.conversion", "the same one, in an FP4 layer"),
        ("quantization.layers", "operand of three products"),
        ("quantization.formats", "E2M1 codes and block scales"),
        ("quantization.kernels", "product, summed in FP32"),
        ("engines.training", "its gradient, clipped"),
        ("torch.optim", "FP32 parameter, updated"),
        ("handlers.recorder", "checkpoint.pt, model.pt"),
        ("bundle.trained", "loaded, to be evaluated"),
    ),
    "A cell": (
        ("study.grid", "axes of a grid"),
        ("study.check", "definition that could start"),
        ("study.commands", "study.json and bundles"),
        ("study.executor", "place on a machine"),
        ("study.worker", "process: monai.bundle run"),
        ("bundle.session", "run, with the two other ways in it"),
        ("study.sweep", "done, retried or resumed"),
        ("study.layout", "cell.json beside the run's files"),
        ("report", "tables, tests, figures, pages"),
    ),
}

MEETINGS = {5: "one training step", 7: "the run folder"}
"""Rows at which the three are in one place."""

THEMES = {
    "light": ("#1f2328", "#59636e", "#eef1f4", ("#0072b2", "#d55e00", "#009e73")),
    "dark": ("#e6edf3", "#9198a1", "#2b313a", ("#56b4e9", "#e69f00", "#3fc79a")),
}
"""Text, small text, bands, and a colour a way."""

WIDTH, COLUMN, ROW, TOP, LEFT = 860, 284, 58, 66, 22


def draw(theme: str) -> str:
    """The picture as SVG."""
    text, small, band, colours = THEMES[theme]
    rows = max(map(len, WAYS.values()))
    height = TOP + ROW * rows - 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" fill="{text}" '
        'font-family="Roboto, Helvetica, Arial, sans-serif">',
        "<title>The ways of a scan, a weight and a cell through the rooms of the package</title>",
    ]
    for row, caption in MEETINGS.items():
        y = TOP + ROW * row
        lines.append(f'<rect x="0" y="{y - 29}" width="{WIDTH}" height="{ROW - 2}" rx="8" fill="{band}"/>')
        lines.append(
            f'<text x="{WIDTH - 10}" y="{y - 15}" font-size="11" font-style="italic" text-anchor="end" fill="{small}">'
            f"{escape(caption)}</text>"
        )
    for number, ((name, stations), colour) in enumerate(zip(WAYS.items(), colours, strict=True)):
        x = LEFT + COLUMN * number
        end = TOP + ROW * (len(stations) - 1)
        lines.append(f'<text x="{x - 8}" y="24" font-size="17" font-weight="700" fill="{colour}">{escape(name)}</text>')
        lines.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{end}" stroke="{colour}" stroke-width="5"/>')
        for row, (module, becomes) in enumerate(stations):
            y = TOP + ROW * row
            lines.append(f'<circle cx="{x}" cy="{y}" r="7" fill="{band}" stroke="{colour}" stroke-width="4"/>')
            lines.append(f'<text x="{x + 18}" y="{y - 2}" font-size="14" font-weight="600">{escape(module)}</text>')
            lines.append(f'<text x="{x + 18}" y="{y + 15}" font-size="13" fill="{small}">{escape(becomes)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Write both files."""
    for theme in THEMES:
        (ASSETS / f"ways-{theme}.svg").write_text(draw(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
