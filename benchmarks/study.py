"""A study's results as one small JSON file, and from it the tables and the picture of docs/results.md.

    python benchmarks/study.py lgg_500k=/data/study_lgg                # one study
    python benchmarks/study.py lgg_500k=/data/study_lgg+/data/study_attention    # two with the same protocol, as one
    python benchmarks/study.py --judge_again                                     # the files' cells by today's rules

Reads the folders of `monai-fp4 sweep`, finished or not, writes nothing into them, and computes everything with the
package's own report. Writes benchmarks/results/study_<name>.json (every cell, the comparisons with BF16, the analysis
of variance, the paper's claims, what the sweep cost), docs/assets/study-<name>-{light,dark}.svg, and the tables between
the marks of docs/. A cell that is not finished stays one that is not finished. The claims need no more than the results
of each cell, so they can be judged again without the folders; the numbers are then those of the file, of six digits.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from common import RESULTS, ROOT, write_whole
from study_overhead import gaps

from monai_fp4.machine import describe_machine
from monai_fp4.report.analyse import Analysis, analyse
from monai_fp4.report.claims import judge_claims
from monai_fp4.report.statistics import against_baseline, paired
from monai_fp4.report.tables import KEYS, METRICS, StudyTables, collect
from monai_fp4.study.layout import StudyDefinition
from monai_fp4.study.variants import grid_recipes

CELL = (
    "id", "model", "arch", "scale", "recipe", "fold", "seed", "status", "problem", "recall", "auprc",
    "auprc_per_patient", "dice", "precision", "threshold", "best_epoch", "epochs_done", "distinct_scores", "ece",
    "ece_above", "test_auprc", "test_dice", "train_seconds", "wall_seconds", "peak_memory_bytes", "attempts", "version",
)  # fmt: skip
"""What is kept of a cell; what it does not know is left out."""
COMPARISON = (
    "metric", "model", "recipe", "unit", "n", "mean", "low", "high", "percent", "p", "p_holm", "p_margin_holm", "advice"
)  # fmt: skip


def merged(folders: Sequence[Path]) -> StudyTables:
    """The tables of one study, or of several with the same protocol as if they were one.

    Raises:
        SystemExit: they differ in data, options or further axes.
    """
    first, *others = [collect(folder) for folder in folders]
    for folder, other in zip(folders[1:], others, strict=True):
        for name in ("manifest", "protocol", "options", "further"):
            one, two = getattr(first.definition, name), getattr(other.definition, name)
            if one != two:
                raise SystemExit(f"{folder.name} cannot be read with {folders[0].name}: {name} is {two} and not {one}")
        have = first.cells.loc[first.cells["status"] == "done", KEYS]
        tables: dict[str, Any] = {}
        for name in ("cells", "epochs", "scores", "curves", "health", "attention", "patients"):
            rows, more = getattr(first, name), getattr(other, name)
            new = more.merge(have, on=KEYS, how="left", indicator=True) if len(more) else more
            new = new[new["_merge"] == "left_only"].drop(columns="_merge") if len(new) else new
            if len(rows) and len(new):  # of a cell that is in both, the finished one counts
                same = rows.merge(new[KEYS].drop_duplicates(), on=KEYS, how="left", indicator=True)["_merge"] == "both"
                rows = rows[~same.to_numpy()]
            tables[name] = pd.concat([rows, new], ignore_index=True) if len(rows) and len(new) else rows
        definition = replace(
            first.definition,
            archs=tuple(dict.fromkeys((*first.definition.archs, *other.definition.archs))),
            scales=tuple(dict.fromkeys((*first.definition.scales, *other.definition.scales))),
            recipes={**first.definition.recipes, **other.definition.recipes},
            folds=tuple(dict.fromkeys((*first.definition.folds, *other.definition.folds))),
            seeds=tuple(dict.fromkeys((*first.definition.seeds, *other.definition.seeds))),
        )
        first = StudyTables(definition, first.data_set, notes=(*first.notes, *other.notes), **tables)
    return first


def protocol(tables: StudyTables) -> dict[str, Any]:
    """What all cells have in common, and by what they were run; neither paths nor names of machines."""
    definition, done = tables.definition, tables.done
    names = ("archs", "scales", "folds", "seeds")
    counts = tables.cells["status"].value_counts()

    def known(column: str) -> list[Any]:
        return sorted({_json_value(value) for value in done[column] if value not in ("", None) and not pd.isna(value)})

    here = describe_machine()
    same = set(tables.cells["host"]) - {""} == {platform.node()}
    return {
        "data_set": tables.data_set,
        **{name: list(getattr(definition, name)) for name in names},
        **({"protocol": definition.protocol} if definition.protocol else {}),
        "recipes": tables.recipes,
        "further": {name: list(values) for name, values in definition.further.items()},
        "options": dict(definition.options),
        "train_patients": known("train_patients"),
        "val_patients": known("val_patients"),
        "versions": known("version"),
        "backend": known("backend"),
        "device": known("device"),
        "cpu": f"{here.cores} cores of {here.cpu}" if same else "not recorded",
        "cells": len(tables.cells),
        "statuses": {str(status): int(count) for status, count in counts.items()},
    }


REPEATED = ("recall", "auprc", "auprc_per_patient", "dice", "threshold", "distinct_scores")


def repeated(cells: Sequence[Mapping[str, Any]], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """How many cells have the very metrics (of six digits) that they had in an earlier file of the same study."""
    before = {cell["id"]: cell for cell in earlier["cells"] if cell["status"] == "done"}
    both = [(cell, before[cell["id"]]) for cell in cells if cell["status"] == "done" and cell["id"] in before]
    same = sum(all(one.get(name) == two.get(name) for name in REPEATED) for one, two in both)
    return {"versions": earlier["protocol"]["versions"], "cells": len(both), "identical": same}


def compact(found: Analysis, overhead: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that the pages quote."""
    frames = found.frames
    cells = frames["cells"].merge(frames["calibration"][[*KEYS, "ece", "ece_above"]], on=KEYS, how="left")
    comparisons = frames["comparisons"].merge(
        frames["advice"][["model", "recipe", "advice"]], on=["model", "recipe"], how="left"
    )
    return {
        "protocol": protocol(found.tables),
        "margin": found.margin,
        "cells": [_row(row, CELL) for row in cells.to_dict("records")],
        "comparisons": [_row(row, COMPARISON) for row in comparisons.to_dict("records")],
        "variance": [_row(row) for row in frames["variance"].to_dict("records")],
        "variance_words": found.variance_words,
        "claims": [_row(row) for row in frames["claims"].drop(columns=["needs", "rule"]).to_dict("records")],
        "overhead": overhead,
    }


def _row(row: dict[Any, Any], names: Sequence[str] = ()) -> dict[str, Any]:
    plain = {str(name): _json_value(row.get(name)) for name in names or row}
    return {name: value for name, value in plain.items() if value not in (None, "")}


def _json_value(value: Any) -> Any:
    """A JSON value with six digits, which is more than any page shows."""
    if isinstance(value, str):
        return re.sub(r"(?<![\w.])(/[^\s/]+)+/", "", value)  # what failed may name a file of the machine
    if value is None:
        return None
    number = float(value)
    if math.isnan(number):
        return None
    return int(number) if number.is_integer() else float(f"{number:.6g}")


def judged_again(content: Mapping[str, Any]) -> dict[str, Any]:
    """A results file with its claims judged anew, by its own cells and comparisons; all else as it is.

    Raises:
        SystemExit: the study has further axes, which the file does not keep of each cell.
    """
    said = content["protocol"]
    if said["further"]:
        raise SystemExit(f"{said['data_set']}: claims cannot be judged again, since its cells do not say their axes")
    definition = StudyDefinition(
        **{name: tuple(said[name]) for name in ("archs", "scales", "folds", "seeds")},
        recipes=grid_recipes(",".join(said["recipes"])),
        manifest=said["data_set"],
        dataset_dir="",
        protocol=said.get("protocol", ""),
    )
    columns = [*KEYS, "status", *METRICS]
    cells = pd.DataFrame(content["cells"]).reindex(columns=columns).assign(variant="", train_patients=math.nan)
    cells = cells.assign(fold=cells["fold"].astype(str), val_patients=math.nan)
    nothing = pd.DataFrame()
    names = ("epochs", "scores", "curves", "health", "attention", "patients")
    tables = StudyTables(definition, said["data_set"], cells, **dict.fromkeys(names, nothing), notes=())
    pairs = paired(tables)
    claims = judge_claims(tables, pairs, against_baseline(tables, pairs, content["margin"]), content["margin"])
    return {**content, "claims": [_row(row) for row in claims.drop(columns=["needs", "rule"]).to_dict("records")]}


def to_text(content: dict[str, Any]) -> str:
    """JSON with one line an entry of a list, so that a difference between two runs can be read."""
    parts = []
    for name, value in content.items():
        entries = isinstance(value, list)
        lines = [json.dumps(entry) for entry in value] if entries else []
        text = "[\n  " + ",\n  ".join(lines) + "\n ]" if lines else json.dumps(value, indent=None if entries else 1)
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Write the JSON, the pictures and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="NAME=FOLDER[+FOLDER]")
    parser.add_argument("--judge_again", action="store_true", help="judge the claims of the results files anew")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=Path, help="an earlier results file: are its cells the same?")
    parser.add_argument("--json_only", action="store_true", help="draw nothing and leave the pages as they are")
    args = parser.parse_args()
    if bool(args.studies) is args.judge_again:
        parser.error("give studies, or --judge_again")
    for path in sorted(args.results.glob("study_*.json")) if args.judge_again else ():
        before = json.loads(path.read_text(encoding="utf-8"))
        after = judged_again(before)
        write_whole(path, to_text(after))
        changed = sum(claim not in before["claims"] for claim in after["claims"])
        print(f"{path.name}: {changed} of {len(after['claims'])} verdicts or their numbers are others")
    for study in args.studies:
        name, equals, folders = study.partition("=")
        if not equals or not name.replace("_", "").isalnum():
            parser.error(f"a study must be given as NAME=FOLDER with a NAME of letters, digits and _, not as {study}")
        paths = [Path(folder) for folder in folders.split("+")]
        content = compact(analyse(merged(paths)), gaps(paths[0]))
        if args.repeats is not None:
            content["repeated"] = repeated(content["cells"], json.loads(args.repeats.read_text(encoding="utf-8")))
        path = args.results / f"study_{name}.json"
        write_whole(path, to_text(content))
        print(f"{path.name}: {content['protocol']['statuses']} of {content['protocol']['cells']} cells")
    if not args.json_only:
        for script in ("benchmarks/study_picture.py", "docs/gen_tables.py"):
            subprocess.run([sys.executable, "-W", "ignore", str(ROOT / script)], check=True)


if __name__ == "__main__":
    main()
