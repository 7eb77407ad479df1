"""Write the tables of README.md and docs/ from the package's own tables, or check that nothing drifted.

    python docs/gen_tables.py           # write
    python docs/gen_tables.py --check   # exit 1 and name the files that differ

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; NAME is one of `TABLES`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from monai_fp4.bundle.options import OPTIONS
from monai_fp4.data.layouts import LAYOUTS
from monai_fp4.data.readers import READERS
from monai_fp4.networks import ARCHITECTURES, SCALES, build_network, network_table
from monai_fp4.quantization.recipes import FURTHER_RECIPES, PAPER_RECIPES, RECIPES, Backward, Precision, Recipe
from monai_fp4.report.statistics import PUBLISHED, published_findings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))  # the tests load this file from elsewhere

import reliability_tables  # noqa: E402
import result_tables  # noqa: E402
import speed_tables  # noqa: E402
import study_tables  # noqa: E402
from result_tables import markdown  # noqa: E402

BACKWARD = {
    Backward.FP4: "FP4",
    Backward.HIGH_PRECISION: "high precision",
    Backward.DEQUANTIZED: "high precision, on the decoded FP4 operands",
}


def recipes() -> str:
    """The named recipes, one a row."""

    def row(recipe: Recipe) -> list[str]:
        tick = ["yes" if on else "" for on in (recipe.stochastic_rounding, recipe.hadamard, recipe.two_d_weights)]
        backward = BACKWARD[recipe.backward] if recipe.forward is Precision.FP4 else "BF16"
        return [f"`{recipe.name}`", recipe.forward.upper(), backward, *tick]

    header = ["Recipe", "Forward", "Backward", "Stochastic rounding", "Hadamard transform", "2D weight scales"]
    return markdown(header, map(row, {**RECIPES, **FURTHER_RECIPES}.values()))


def paper_recipes() -> str:
    """The numbers of the paper's code and our names."""
    said = [
        "no quantization, FP16 autocast",
        "all three products",
        "the forward product; gradients from the original operands",
        "the forward product; gradients from the decoded operands",
        "1, weights in 16 x 16 blocks, weight gradient rotated",
        "4, gradients rounded stochastically",
        "1, gradients rounded stochastically",
        "2, weight gradient rotated; by its flags, not its text, also weights in 16 x 16 blocks",
    ]
    rows = (
        [str(number), text, " or ".join(f"`{name}`" for name in names)]
        for (number, names), text in zip(PAPER_RECIPES.items(), said, strict=True)
    )
    return markdown(["Id", "What its code says is in FP4", "Here"], rows)


def paper_published() -> str:
    """Every result number of the paper, and what they support."""
    names = {"paper_swin": "Swin", "paper_cnn": "CNN", "bf16": "baseline (FP16)", "sr_rht_2d": "2D+RHT+SR (id 5)"}
    rows = []
    for (arch, recipe), values in PUBLISHED.items():
        numbers = [*values, statistics.mean(values), statistics.stdev(values)]
        rows.append([names[arch], names[recipe], *(f"{value:.4f}" for value in numbers)])
    table = markdown(["Network", "Recipe", *(f"Fold {fold}" for fold in range(5)), "Mean", "sd"], rows)
    return "\n".join([table, "", *(f"- {sentence}" for sentence in published_findings())])


@cache
def networks() -> str:
    """The architectures and their parameter counts at each scale."""
    counts = {
        (cell.arch, cell.scale): sum(p.numel() for p in build_network(cell.arch, cell.scale).parameters())
        for cell in network_table()
    }

    def row(arch: str, what: str) -> list[str]:
        return [f"`{arch}`", what, *(f"{counts[arch, scale]:,}" if (arch, scale) in counts else "" for scale in SCALES)]

    header = ["Architecture", "What it is", *(f"`{scale}`" for scale in SCALES)]
    return markdown(header, (row(arch, what) for arch, what in ARCHITECTURES.items()))


def options() -> str:
    """What stands at the top of every bundle."""
    rows = ([f"`{option.name}`", f"`{json.dumps(option.default)}`", option.help] for option in OPTIONS)
    return markdown(["Name", "Default", "What it is"], rows)


def layouts() -> str:
    """What ``manifest build --format`` takes."""
    return markdown(["Format", "Layout"], ([f"`{name}`", layout.summary] for name, layout in LAYOUTS.items()))


def readers() -> str:
    """The file formats."""
    rows = ([" ".join(f"`{suffix}`" for suffix in reader.suffixes), reader.summary] for reader in READERS.values())
    return markdown(["Files", "What is read"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "layouts": layouts,
    "networks": networks,
    "options": options,
    "paper_published": paper_published,
    "paper_recipes": paper_recipes,
    "readers": readers,
    "recipes": recipes,
    **reliability_tables.TABLES,
    **result_tables.TABLES,
    **speed_tables.TABLES,
    **study_tables.TABLES,
}


def pages() -> list[Path]:
    """Every page that may hold a table."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill(text: str) -> str:
    """Replace what stands between the markers of ``text`` by the tables of today.

    Raises:
        SystemExit: a marker names a table that does not exist.
    """

    def table(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise SystemExit(f"table {match['name']!r} is not known; known are {', '.join(TABLES)}")
        return f"{match['begin']}\n{TABLES[match['name']]()}\n{match['end']}"

    return re.sub(
        r"(?P<begin><!-- table:(?P<name>\w+) -->)\n.*?(?P<end><!-- /table:(?P=name) -->)", table, text, flags=re.DOTALL
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a table has drifted")
    options = parser.parse_args(arguments)
    drifted = []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = fill(before)
        if before != after:
            drifted.append(str(page.relative_to(ROOT)))
            if not options.check:
                page.write_text(after, encoding="utf-8")
    if options.check and drifted:
        print(f"tables differ from the package in {', '.join(drifted)}: run python docs/gen_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
