"""The page of the paper's claims: a verdict for each, with its numbers, its rule and the cells that are missing."""

from __future__ import annotations

import pandas as pd

from monai_fp4.report.analysis import Analysis
from monai_fp4.report.blocks import Column, Page, heading, items, note, table, text
from monai_fp4.report.claim_evidence import Verdict
from monai_fp4.report.claims import CLAIMS
from monai_fp4.report.collect import metric_name
from monai_fp4.report.limits import limits

__all__ = ["claims_page"]

_SAID = {"distinct_scores": "Distinct levels"}


def claims_page(found: Analysis) -> Page:
    """Verdicts first, then what was asked and how it was decided."""
    claims = found.frames["claims"]
    counts = claims["verdict"].value_counts()
    lead = ", ".join(f"{counts[str(v)]} {v}" for v in Verdict if counts.get(str(v)))
    shown = claims.assign(metric=[_SAID.get(m, metric_name(m)) for m in claims["metric"]], paired=claims["n"])
    columns = [
        Column("claim", "Claim"),
        Column("metric", "Judged in"),
        Column("verdict", "Verdict", "status"),
        Column("n", "n", "whole"),
        Column("numbers", "Numbers", "words"),
        Column("missing", "What is missing", "words"),
    ]
    asked = pd.DataFrame([{"claim": c.name, "says": c.says, "needs": c.needs, "rule": c.rule} for c in CLAIMS])
    blocks = [
        note(
            "Held and not held are both shown by a test. Open means that the cells are there and cannot tell: it is"
            " no evidence for either side. Not tested means that cells are missing."
        ),
        table(
            shown,
            columns,
            f"What this study says of the paper's claims, margin {found.margin:g}; n is the fewest pairs of a test",
            data="claims",
            fixed=True,
        ),
        heading("What was asked, and what decides"),
        text(
            "The claims are those of Du and Rybakov (arXiv 2605.27616), in our own words. The rules were fixed before"
            " any study was looked at. 'Corrected' is Holm's correction over all models and recipes of a metric; where"
            " every one of several tests must show something, none of them is corrected, since the whole is no more"
            " certain than its weakest part. There is no correction for the number of claims."
        ),
        table(
            asked,
            [
                Column("claim", "Claim"),
                *(
                    Column(n, t, "words")
                    for n, t in (("says", "The paper says"), ("needs", "What a test needs"), ("rule", "What decides"))
                ),
            ],
            "The claims and their rules",
            fixed=True,
        ),
        heading("What the verdicts do not cover"),
        items(limits(found.tables)),
    ]
    return Page("claims", "The paper's claims", f"Of {len(claims)} questions: {lead}.", blocks)
