"""The tables of measured results, written from the JSON files that the benchmark scripts leave in benchmarks/results/.

A file that is not there gives "Not run.", so no figure can stand in a page without the run that it came from.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
NOT_RUN = "Not run."


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured(name: str, table: Callable[[Mapping[str, Any]], str]) -> str:
    """The table of one results file, or that there is none."""
    path = RESULTS / f"{name}.json"
    return table(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else NOT_RUN


def _number(value: float | None, places: int = 3) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _source(content: Mapping[str, Any], name: str) -> str:
    machine, protocol = content["machine"], content["protocol"]
    size = " x ".join(map(str, protocol["image_size"]))
    return (
        f"{protocol['epochs']} epochs at {size}, the bundle's own options otherwise; code {machine['code']}, "
        f"{machine['cores']} cores of {machine['cpu']}. From `benchmarks/results/{name}.json`, by `benchmarks/lgg.py`."
    )


_COLUMNS = ("auprc", "auprc_per_patient", "dice", "recall", "precision")


def _failed(cell: Mapping[str, Any], columns: int) -> list[str]:
    return [f"`{cell['bundle']}`", str(cell["fold"]), f"failed: {cell['failed']}", *[""] * (columns - 3)]


def five_folds() -> str:
    """AUPRC and what goes with it, one fold a row, and their mean."""
    name = "lgg_unet_500k_five_folds"

    def table(content: Mapping[str, Any]) -> str:
        cells = [cell for cell in content["cells"] if "failed" not in cell]
        rows = [
            [
                str(c["fold"]),
                *(_number(c[k]) for k in _COLUMNS),
                str(c["best_epoch"]),
                _number(c["training_seconds"], 0),
            ]
            for c in cells
        ]
        means = [statistics.fmean(cell[key] for cell in cells) for key in _COLUMNS]
        rows.append([f"mean of {len(cells)}", *map(_number, means), "", ""])
        header = ["Fold", "AUPRC", "AUPRC a patient", "Dice", "Recall", "Precision", "Best epoch", "Seconds"]
        return markdown(header, rows) + "\n\n" + _source(content, name)

    return measured(name, table)


def bare_unet() -> str:
    """A bare MONAI UNet in a plain loop beside the bundle, on the folds that it was run on."""

    def table(content: Mapping[str, Any]) -> str:
        ours = json.loads((RESULTS / "lgg_unet_500k_five_folds.json").read_text(encoding="utf-8"))
        bundle = {cell["fold"]: cell for cell in ours["cells"] if "failed" not in cell}
        rows = []
        for cell in content["cells"]:
            other = bundle[cell["fold"]]
            last = (cell["auprc_by_epoch"][-1], other["last_epoch_auprc"])
            seconds = (cell["training_seconds"], other["training_seconds"])
            for name, own, n in (("bare UNet, FP32", cell, 0), ("`unet_500k_bf16`", other, 1)):
                auprc = [_number(own["auprc"]), _number(last[n])]
                rows.append([name, str(cell["fold"]), *auprc, _number(seconds[n], 0)])
        source = "From `benchmarks/results/bare_unet.json`, by `benchmarks/bare_unet.py`."
        return markdown(["Training", "Fold", "AUPRC", "After the last epoch", "Seconds"], rows) + "\n\n" + source

    return measured("bare_unet", table)


def recipes_one_fold() -> str:
    """FP4 beside BF16 for each architecture, on one fold."""
    name = "lgg_recipes_one_fold"

    def table(content: Mapping[str, Any]) -> str:
        cells = content["cells"]
        baseline = {c["bundle"].rsplit("_bf16", 1)[0]: c["auprc"] for c in cells if c["bundle"].endswith("_bf16")}
        header = ["Bundle", "Fold", "AUPRC", "Of BF16", "AUPRC a patient", "Dice", "Recall", "Precision", "Seconds"]
        rows = []
        for cell in cells:
            if "failed" in cell:
                rows.append(_failed(cell, len(header)))
                continue
            key = next((k for k in baseline if cell["bundle"].startswith(k)), None)
            share = f"{100 * cell['auprc'] / baseline[key]:.1f} %" if key else ""
            numbers = [_number(cell[k]) for k in _COLUMNS]
            seconds = _number(cell["training_seconds"], 0)
            rows.append([f"`{cell['bundle']}`", str(cell["fold"]), numbers[0], share, *numbers[1:], seconds])
        return markdown(header, rows) + "\n\n" + _source(content, name)

    return measured(name, table)


def decoder() -> str:
    """The cost of the decoders, and what each learnt in a short training."""

    def table(content: Mapping[str, Any]) -> str:
        steps, lgg = content["step_cpu_ms"], content["lgg"]
        names = {"naive": "bare Swin + full-resolution FPN", "mixed": "our encoder, that FPN", "ours": "`swin_500k`"}
        rows = []
        for key, name in names.items():
            learnt = lgg.get(key, {}).get("auprc", [])
            auprc = ", ".join(f"{value:.3f}" for value in learnt)
            rows.append([name, f"{steps['fp32'][key]:.0f}", f"{steps['bf16'][key]:.0f}", auprc])
        source = (
            f"CPU milliseconds of forward and backward, batch {content['batch'][0]} at 128 x 128, one thread; AUPRC "
            f"after each of three epochs on {lgg['train_slices']} slices of 20 patients, on {lgg['test_slices']} "
            "slices of 10 others, one seed. From `benchmarks/results/decoder.json`, by `benchmarks/decoder.py`."
        )
        return markdown(["Network", "FP32 ms", "BF16 ms", "AUPRC, epochs 1 to 3"], rows) + "\n\n" + source

    return measured("decoder", table)


TABLES: dict[str, Callable[[], str]] = {
    "bare_unet": bare_unet,
    "decoder": decoder,
    "five_folds": five_folds,
    "recipes_one_fold": recipes_one_fold,
}
