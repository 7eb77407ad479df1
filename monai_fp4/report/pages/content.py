"""The pages of the report in their order, and those around the results: overview, advice, cells."""

from __future__ import annotations

from typing import Any

import pandas as pd

from monai_fp4.report.analyse import Analysis
from monai_fp4.report.figures import describe_cells
from monai_fp4.report.figures.quality import percent_of_baseline
from monai_fp4.report.pages.blocks import (
    Block,
    Column,
    Page,
    cards,
    heading,
    items,
    link,
    note,
    pictures,
    table,
    text,
)
from monai_fp4.report.pages.claims import claims_page
from monai_fp4.report.pages.data import data_page
from monai_fp4.report.pages.results import cost_page, health_page, outputs_page, quality_page, statistics_page
from monai_fp4.report.statistics import FEW
from monai_fp4.report.tables import STATUSES, StudyTables
from monai_fp4.report.verdicts import Advice, limits_of

__all__ = ["build_pages"]

_LISTED = 15
"""Rows up to which a table is read without a filter, and cells that only wait are listed on the overview."""


def build_pages(found: Analysis) -> list[Page]:
    """Every page, in the order of the navigation."""
    return [
        _overview(found),
        _advice(found),
        claims_page(found),
        quality_page(found),
        statistics_page(found),
        outputs_page(found),
        health_page(found),
        cost_page(found),
        _cells(found),
        data_page(found),
    ]


def _overview(found: Analysis) -> Page:
    tables, definition = found.tables, found.tables.definition
    done = tables.cells["status"].eq("done").sum()
    counts = tables.cells["status"].value_counts()
    states = ", ".join(f"{counts[s]} {s}" for s in STATUSES if counts.get(s))
    blocks: list[Block] = []
    if not len(tables.done):
        blocks.append(note("No cell is finished yet. This report lists the cells and holds no results.", "warning"))
    elif done < len(tables.cells):
        blocks.append(
            note(
                f"This is a partial report: {states}, of {len(tables.cells)} cells. The others are listed below.",
                "warning",
            )
        )
    versions = sorted({str(v) for v in tables.done["version"] if v})
    if len(versions) > 1:
        blocks.append(
            note(
                f"The finished cells were run by {len(versions)} versions of the code: {', '.join(versions)}."
                " Differences between recipes may be differences between versions.",
                "warning",
            )
        )
    if any("dirty" in version for version in versions):
        words = "Cells were run from a checkout with uncommitted changes (dirty): no commit holds the code they ran."
        blocks.append(note(words, "warning"))
    blocks += [note(words, "warning") for words in tables.notes]
    if found.advice and len(tables.done):
        blocks += [
            heading("What the evidence says"),
            _advice_table(found),
            *_undecided(found),
            text(
                "Supported: recall and AUPRC are both shown to lose less than the margin. Advised against: one of them"
                " is shown to lose. Hint of loss: lower, but not certain once the number of comparisons is counted."
                " Open: this study cannot tell. Too few seeds: fewer than three pairs with BF16. No finished pair: no"
                " seed has both this recipe and BF16 finished."
            ),
            link("data", "What the recipes are, and the words of this report"),
            link("recipes", "Which recipe for my model: the reasons, and what the evidence does not cover"),
            link("claims", "The paper's claims: which of them this study holds, refutes, leaves open or cannot test"),
        ]
        blocks += pictures(percent_of_baseline(tables, found.frames["paired"]))
    blocks += [heading("The study"), _protocol(tables)]
    grid = _completeness(tables)
    columns = [Column("model", "Model"), *(Column(name, name, "text") for name in tables.recipes)]
    caption = "Finished cells of those planned, by model and recipe"
    blocks += [heading("How complete it is"), table(grid, columns, caption), *_unfinished(tables)]
    sizes = ((definition.archs, "architecture"), (definition.scales, "scale"), (definition.recipes, "recipe"))
    said = ", ".join(f"{len(names)} {word}{'s' if len(names) != 1 else ''}" for names, word in sizes)
    lead = f"{said}; {states}."
    return Page("index", "Overview", lead, blocks)


def _protocol(tables: StudyTables) -> Block:
    definition = tables.definition
    rows: list[tuple[str, Any]] = [
        ("Architectures", ", ".join(definition.archs)),
        ("Scales", ", ".join(definition.scales)),
        ("Recipes", ", ".join(tables.recipes)),
        ("Seeds", ", ".join(map(str, definition.seeds))),
        ("Folds", ", ".join(map(str, definition.folds))),
        *((f"Axis {name}", ", ".join(map(str, values))) for name, values in definition.further.items()),
        ("Data set (manifest)", tables.data_set),
        ("Options of all cells", ", ".join(f"{k} = {v}" for k, v in definition.options.items()) or "the bundles' own"),
        ("Fold in which seeds are compared", str(tables.main_fold)),
        ("Begun with version", definition.version or "not recorded"),
        ("Finished cells", describe_cells(tables.done)),
    ]
    frame = pd.DataFrame(rows, columns=["what", "value"])
    return table(
        frame,
        [Column("what", "What"), Column("value", "Value", "words")],
        "Protocol, from study.json and the cells' own files",
        fixed=True,
    )


def _completeness(tables: StudyTables) -> pd.DataFrame:
    rows = []
    for model in tables.models:
        own = tables.cells[tables.cells["model"] == model]
        row: dict[str, Any] = {"model": model}
        for recipe in tables.recipes:
            cells = own[own["recipe"] == recipe]
            row[recipe] = f"{cells['status'].eq('done').sum()} of {len(cells)}"
        rows.append(row)
    return pd.DataFrame(rows)


def _unfinished(tables: StudyTables) -> list[Block]:
    rest = tables.cells[(tables.cells["status"] != "done") | tables.cells["problem"].ne("")]
    if rest.empty:
        return [text("Every cell is finished, and every file could be read.")]
    waiting = rest["status"].eq("waiting") & rest["problem"].eq("")
    blocks: list[Block] = []
    if waiting.sum() > _LISTED:
        words = f"{waiting.sum()} cells wait: they have not begun, or were interrupted and will go on."
        blocks += [text(words), link("cells", "All cells, one by one")]
        rest = rest[~waiting]
    if rest.empty:
        return blocks
    order = {name: place for place, name in enumerate(reversed(STATUSES))}
    rest = rest.sort_values("status", key=lambda s: s.map(order), kind="stable")
    columns = [
        Column("id", "Cell"),
        Column("status", "Status", "status"),
        Column("epochs_done", "Epochs done", "whole"),
        Column("attempts", "Attempts", "whole"),
        Column("problem", "What is known", "words"),
    ]
    return [
        *blocks,
        table(
            rest,
            columns,
            f"{len(rest)} cell{'s' if len(rest) != 1 else ''} begun and not finished, or with a file that could not be"
            " read",
            filtered=len(rest) > _LISTED,
        ),
    ]


def _undecided(found: Analysis) -> list[Block]:
    """A sentence for a study that is too young for any verdict, whose table would leave a reader guessing."""
    total, tests = sum(len(entry.recipes) for entry in found.advice), found.frames["comparisons"]
    enough = int(tests.loc[tests["metric"] == "auprc", "n"].ge(FEW).sum())
    if enough == total:
        return []
    words = f"{enough or 'None'} of the {total} comparisons {'has' if enough < 2 else 'have'} the {FEW} pairs that a"
    return [note(f"{words} verdict needs. Where they are missing, a higher or lower value may be chance.", "warning")]


def _advice_table(found: Analysis) -> Block:
    recipes = [name for name in found.tables.recipes if name != found.tables.baseline]
    rows = [
        {"model": entry.model} | {name: str(given) for name, given in entry.recipes.items()} for entry in found.advice
    ]
    columns = [Column("model", "Model"), *(Column(name, name, "status") for name in recipes)]
    return table(pd.DataFrame(rows), columns, f"Each recipe beside BF16, margin {found.margin:g}", data="advice")


def _advice(found: Analysis) -> Page:
    tables, entries = found.tables, []
    for entry in found.advice:
        groups = []
        for advice in Advice:
            same: dict[str, list[str]] = {}
            for name, given in entry.recipes.items():
                if given is advice:
                    same.setdefault(entry.reasons[name], []).append(name)
            if members := [(", ".join(names), reason) for reason, names in same.items()]:
                groups.append({"advice": str(advice), "members": members})
        entries.append({"title": entry.model, "summary": entry.summary, "groups": groups, "last": entry.ranking})
    blocks = [
        text(
            "A missed lesion costs more than a false alarm, so recall is judged first and AUPRC second. Each recipe is"
            " compared with BF16 seed by seed, or fold by fold where there are too few seeds."
            f" A recipe is supported if losing {found.margin:g} or more is excluded"
            " for both; it is advised against if one of them is shown to lose and that is not excluded. Every p is"
            " corrected for all comparisons of the study (Holm). Fewer than three pairs say nothing, and recipes are"
            " put in an order only where a test between them shows one.",
            "Open does not mean equal. It means that this study cannot tell.",
        ),
        heading("What the evidence does not cover"),
        items(limits_of(tables)),
        heading("By model"),
        cards(entries) if len(tables.done) else note("No cell is finished yet.", "warning"),
    ]
    lead = "What the evidence supports, what it speaks against, and what it leaves open."
    return Page("recipes", "Which recipe for my model", lead, blocks)


def _cells(found: Analysis) -> Page:
    columns = [
        Column("arch", "Arch"),
        Column("scale", "Scale"),
        *([Column("variant", "Axes")] if found.tables.cells["variant"].ne("").any() else []),
        Column("recipe", "Recipe"),
        Column("fold", "Fold"),
        Column("seed", "Seed", "whole"),
        Column("status", "Status", "status"),
        Column("auprc", "AUPRC", "fixed"),
        Column("auprc_per_patient", "AUPRC per patient", "fixed"),
        Column("recall", "Recall", "fixed"),
        Column("precision", "Precision", "fixed"),
        Column("dice", "Dice", "fixed"),
        Column("best_epoch", "Best epoch", "whole"),
        Column("epochs_done", "Epochs", "whole"),
        Column("distinct_scores", "Distinct levels", "whole"),
        Column("train_seconds", "Seconds", "seconds"),
        Column("version", "Version"),
        Column("problem", "Problem", "words"),
    ]
    caption = (
        "Every cell of the study; of an unfinished one, the best epoch so far. Recall, precision and Dice are at the"
        " threshold with the best F2 on the same patients"
    )
    count = len(found.tables.cells)
    block = table(found.tables.cells, columns, caption, data="cells", filtered=True)
    return Page("cells", "All cells", f"{count} cells, finished or not; click on a heading to sort.", [block])
