"""The page of data and methods: the words explained, every table as files, and how the numbers came about."""

from __future__ import annotations

import pandas as pd

from monai_fp4.quantization.recipes import Recipe
from monai_fp4.report.analyse import Analysis
from monai_fp4.report.pages.blocks import Block, Column, Page, files, heading, items, table
from monai_fp4.report.pages.glossary import WORDS, describe_recipe
from monai_fp4.report.statistics import TESTED
from monai_fp4.report.tables import metric_name

__all__ = ["data_page"]

_FILES = {
    "cells": "every cell: status, metrics, options, versions",
    "epochs": "losses and metrics of every epoch of every cell",
    "paired": "recall, AUPRC and Dice of every cell beside the BF16 cell of its seed",
    "comparisons": "paired tests of every recipe against BF16",
    "recipe_pairs": "paired tests of recipes among each other",
    "axes": "paired tests of the further axes' values against the first",
    "patient_comparisons": "differences to BF16 by patient, with bootstrap intervals",
    "patients": "results of every patient in every evaluated cell",
    "variance": "analysis of variance of AUPRC",
    "scores": "counts of predicted probabilities in 126 bins, at the best epoch",
    "curves": "precision-recall curve of every cell at the best epoch: counts at or above each threshold",
    "calibration": "expected calibration error of every cell",
    "health": "signal to noise, underflow and clipping by layer and epoch, mean over seeds and folds",
    "attention": "what the runs recorded of their attention",
    "cost": "seconds and memory",
    "claims": "the paper's claims: verdict, numbers, what is missing, and the rule",
    "advice": "the advice of the page 'Which recipe', with its reasons",
}


def data_page(found: Analysis) -> Page:
    """Files and methods."""
    tables = found.tables
    recipes = [(name, describe_recipe(Recipe.from_config(tables.definition.recipes[name]))) for name in tables.recipes]
    blocks = [
        heading("What the recipes are"),
        _explained(recipes, "Recipe", "What it does", "The recipes of this study"),
        heading("What the words mean"),
        _explained(list(WORDS.items()), "Word", "What it means", "Words of this report"),
        heading("Files"),
        files([(name, _FILES[name]) for name in found.frames]),
        heading("How the numbers came about"),
        items(
            [
                (
                    "A model is an architecture, a scale and the values of further axes. A cell is compared with the"
                    " BF16 cell of the same model, fold and seed."
                ),
                (
                    "Intervals of means are 95 % t intervals over seeds; over folds, the variance is raised for the"
                    " patients that their trainings share (Nadeau and Bengio 2003)."
                ),
                (
                    "p is of a two-sided paired t-test. The sign-flip test beside it supposes no distribution; with n"
                    " pairs it cannot be below 2 / 2^n, so with fewer than six pairs it cannot reach 0.05."
                ),
                f"'Loss < margin' is the one-sided test that excludes a loss of {found.margin:g} or more.",
                (
                    "Holm's correction is over all models and recipes of a metric. The metrics are fixed:"
                    f" {', '.join(metric_name(metric, inside=True) for metric in TESTED)}. The margin is for the user"
                    " to choose, before the numbers are looked at."
                ),
                "Metrics are those of the run's best epoch, on its validation patients.",
            ]
        ),
    ]
    lead = "Recipes and words explained, everything on these pages as CSV and Parquet, and how it was computed."
    return Page("data", "Data and methods", lead, blocks)


def _explained(entries: list[tuple[str, str]], what: str, meaning: str, caption: str) -> Block:
    frame = pd.DataFrame(entries, columns=["what", "meaning"])
    return table(frame, [Column("what", what), Column("meaning", meaning, "words")], caption, fixed=True)
