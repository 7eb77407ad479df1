"""Everything that the report computes from the tables, once, before a page is written."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from monai_fp4.report.claims import judge_claims
from monai_fp4.report.figures import describe_cells
from monai_fp4.report.statistics import (
    MARGIN,
    against_baseline,
    agreement,
    analyse_variance,
    as_the_paper_tests,
    balanced_part,
    beside_published,
    between_recipes,
    between_variants,
    by_patient,
    calibration,
    cost,
    paired,
    published_differences,
)
from monai_fp4.report.tables import StudyTables
from monai_fp4.report.verdicts import ModelAdvice, advise

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True)
class Analysis:
    """Everything that is computed from the tables, once.

    Attributes:
        tables: the study.
        margin: the loss that is taken not to matter.
        frames: name of the data file -> table.
        variance_words: which cells the analysis of variance is of, and which it is not.
        advice: for every model.
    """

    tables: StudyTables
    margin: float
    frames: dict[str, pd.DataFrame]
    variance_words: str
    advice: list[ModelAdvice]


def analyse(tables: StudyTables, margin: float = MARGIN) -> Analysis:
    """Compute every statistic of the report."""
    pairs = paired(tables)
    comparisons, recipe_pairs = against_baseline(tables, pairs, margin), between_recipes(tables, margin=margin)
    variance, words = _variance(tables)
    health = tables.health.groupby(["model", "recipe", "epoch", "layer", "operand"], sort=False)
    measures = ["snr_db", "underflow", "clipped"]
    frames = {
        "cells": tables.cells,
        "epochs": tables.epochs,
        "paired": pairs,
        "comparisons": comparisons,
        "recipe_pairs": recipe_pairs,
        "patient_comparisons": by_patient(tables),
        "variance": variance,
        "scores": tables.scores,
        "curves": tables.curves,
        "calibration": calibration(tables),
        "health": health[measures].mean().reset_index() if len(tables.health) else tables.health,
        "cost": cost(tables),
        "claims": judge_claims(tables, pairs, comparisons, margin),
    }
    frames |= {"paper_tests": as_the_paper_tests(tables, margin), "agreement": agreement(tables)}
    if tables.definition.protocol == "paper":
        frames["paper_table"] = beside_published(tables)
        frames["paper_differences"] = published_differences(frames["paper_table"], margin)
    if tables.cells["variant"].nunique() > 1:
        frames["axes"] = between_variants(tables, margin=margin)
    if len(tables.attention):
        frames["attention"] = tables.attention
    if len(tables.patients):
        frames["patients"] = tables.patients
    advice = advise(tables, comparisons, recipe_pairs, margin)
    verdicts = [
        {"model": entry.model, "recipe": recipe, "advice": str(given), "reason": entry.reasons[recipe]}
        for entry in advice
        for recipe, given in entry.recipes.items()
    ]
    frames["advice"] = pd.DataFrame(verdicts, columns=["model", "recipe", "advice", "reason"])
    return Analysis(tables=tables, margin=margin, frames=frames, variance_words=words, advice=advice)


def _variance(tables: StudyTables) -> tuple[pd.DataFrame, str]:
    empty = pd.DataFrame(columns=["source", "df", "sum_of_squares", "eta_squared", "f", "p"])
    factors = ["arch", "scale", *(["variant"] if tables.done["variant"].nunique() > 1 else []), "recipe"]
    done = tables.in_main_fold(tables.done)
    part = balanced_part(done, factors, "auprc") if len(done) else None
    if part is None:
        return empty, "No two factors have two levels with the same seeds finished, so there is nothing to analyse yet."
    used = done[done["seed"].isin(part.seeds)]
    for factor, levels in part.levels.items():
        used = used[used[factor].isin(levels)]
    seeds = ", ".join(map(str, part.seeds))
    kept = "; ".join(f"{name} {', '.join(v or 'none' for v in levels)}" for name, levels in part.levels.items())
    left = "; ".join(
        f"{name} {', '.join(v or 'none' for v in levels)}" for name, levels in part.left_out.items() if levels
    )
    words = f"in the largest balanced part of fold {tables.main_fold}: {kept}; seeds {seeds}."
    words += f" Left out, because a combination is not finished: {left}." if left else ""
    if len(part.seeds) == 1:
        words += (
            " With one seed there is nothing to test against, and the highest interaction holds all that is"
            " unexplained."
        )
    return analyse_variance(part), f"{words} {describe_cells(used)}"
