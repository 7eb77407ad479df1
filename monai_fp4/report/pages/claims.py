"""The page of the paper's claims: a verdict for each, with its numbers, its rule and the cells that are missing."""

from __future__ import annotations

import pandas as pd

from monai_fp4.report.analyse import Analysis
from monai_fp4.report.claims import CLAIMS, Verdict
from monai_fp4.report.pages.blocks import Column, Page, heading, items, note, table, text
from monai_fp4.report.tables import metric_name
from monai_fp4.report.verdicts import limits_of

__all__ = ["claims_page"]

_SAID = {"distinct_scores": "Distinct levels"}


def claims_page(found: Analysis) -> Page:
    """Verdicts first, then what was asked and how it was decided."""
    claims = found.frames["claims"]
    counts = claims["verdict"].value_counts()
    lead = ", ".join(f"{counts[str(v)]} {v}" for v in Verdict if counts.get(str(v)))
    asked = pd.DataFrame(
        [{"claim": c.name, "says": c.says, "rule": f"Needs {c.needs}. {c.rule}"} for c in CLAIMS],
    )
    columns = [
        Column("claim", "Claim"),
        Column("metric", "Judged in"),
        Column("verdict", "Verdict", "status"),
        Column("n", "n", "whole"),
        Column("words", "Numbers, and what is missing", "words"),
    ]
    blocks = [
        note(
            "Held and not held are both shown by a test. Open means that the cells that are finished cannot tell: it is"
            " no evidence for either side. Not tested means that cells are missing."
        ),
        table(
            _together(claims),
            columns,
            f"What this study says of the paper's claims, margin {found.margin:g}; n is the fewest pairs of a test",
            data="claims",
            fixed=True,
        ),
        heading("What was asked, and what decides"),
        text(
            "The claims are those of Du and Rybakov (arXiv 2605.27616), in our own words. The rules were fixed before"
            " the results of a study were looked at, but for the last, which was added after the first results on LGG."
            " 'Corrected' is Holm's correction over all models and recipes of a metric; where each of several tests"
            " must show something, none of them is corrected, since the whole is no more certain than its weakest part."
            " There is no correction for the number of claims. A share of variance beyond chance can be negative: there"
            " is then less of it than chance alone would give."
        ),
        table(
            asked,
            [
                Column("claim", "Claim"),
                Column("says", "The paper says", "words"),
                Column("rule", "What a test needs, and what decides", "words"),
            ],
            "The claims and their rules",
            fixed=True,
        ),
        heading("What the verdicts do not cover"),
        items(limits_of(found.tables)),
    ]
    return Page(
        "claims",
        "The paper's claims",
        f"{len(CLAIMS)} claims; of {len(claims)} questions, one a claim and metric: {lead}.",
        blocks,
    )


def _together(claims: pd.DataFrame) -> pd.DataFrame:
    """One row for the metrics of a claim that are judged alike, with the same words."""
    rows = []
    for (claim, verdict, numbers, missing, n), own in claims.groupby(
        ["claim", "verdict", "numbers", "missing", "n"], sort=False
    ):
        metrics = ", ".join(_SAID.get(m, metric_name(m, inside=at > 0)) for at, m in enumerate(own["metric"]))
        parts = [numbers, f"Missing: {missing}" if missing else ""]
        words = ". ".join(part for part in parts if part).replace("`", "")
        rows.append({"claim": claim, "metric": metrics, "verdict": verdict, "n": n, "words": words})
    return pd.DataFrame(rows)
