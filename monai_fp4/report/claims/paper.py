"""The paper's claims, in the words of ``paper.toml``, and what a study says of each: held, not held, open, not tested.

The paper is Du and Rybakov, arXiv 2605.27616; its claims are told in our own words, from its abstract and from public
summaries. Each has a rule that decides it (`rules` and beside it), written before a study was looked at. Two came
later: that on the ViT after the first results on LGG, and when the paper's code had shown that it never has FP4 inside
attention, the rule on the collapse was turned to the recipes that it did run. The last two are no claims of the paper:
they ask the same with FP4 inside attention.
*Open* means that the cells that are finished cannot tell; the claim is neither held nor refuted. *Not tested* means
that cells are missing, and says which. Recall comes before AUPRC, since a missed tumour costs more; the paper's own
figures are AUPRC. No correction is made for the number of claims: each is a question of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import pandas as pd

from monai_fp4.report.claims import rules
from monai_fp4.report.claims.attention import (
    advanced_prevent_collapse,
    advanced_prevent_fp4_collapse,
    attention_is_discretized,
    fp4_attention_is_discretized,
)
from monai_fp4.report.claims.evidence import Evidence, Study
from monai_fp4.report.claims.ranks import vit_trails
from monai_fp4.report.tables import StudyTables

__all__ = ["CLAIMS", "Claim", "judge_claims"]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        name: its short name.
        says: what the paper says, in our words.
        needs: what a study must hold to test it.
        rule: when it is held, and when it is not; what lies between is open.
        decide: the rule as code.
        metrics: what it is judged in.
    """

    name: str
    says: str
    needs: str
    rule: str
    decide: Callable[[Study, str], Evidence]
    metrics: Sequence[str] = ("recall", "auprc")


_TEXTS = tomllib.loads(files("monai_fp4.report.claims").joinpath("paper.toml").read_text(encoding="utf-8"))
_RULES = (
    rules.architecture_over_recipe,
    rules.recipe_choice_is_free,
    rules.cnn_loses_at_scale,
    rules.advanced_reduce_loss,
    attention_is_discretized,
    advanced_prevent_collapse,
    rules.folds_confirm,
    rules.swin_at_every_scale,
    rules.consistency_costs_little,
    vit_trails,
    fp4_attention_is_discretized,
    advanced_prevent_fp4_collapse,
)
CLAIMS = tuple(Claim(decide=rule, **_TEXTS[rule.__name__]) for rule in _RULES)
"""In the order of the report."""


def judge_claims(
    tables: StudyTables,
    pairs: pd.DataFrame,
    comparisons: pd.DataFrame,
    margin: float,
    claims: Iterable[Claim] = CLAIMS,
) -> pd.DataFrame:
    """Judge claims, each in each of its metrics.

    Args:
        tables: the study.
        pairs: of `comparisons.paired`, with recall and AUPRC.
        comparisons: of `comparisons.against_baseline`, with recall and AUPRC.
        margin: of the tests.
        claims: which of them.

    Returns:
        One row a claim and metric: `claim`, `metric`, `verdict`, `n`, `numbers`, `missing`, `says`, `needs`, `rule`.
    """
    study, rows = Study(tables, pairs, comparisons, margin), []
    for claim in claims:
        for metric in claim.metrics:
            found = claim.decide(study, metric)
            judged = {"claim": claim.name, "metric": metric, "verdict": str(found.verdict), "n": found.n}
            judged |= {"numbers": found.numbers, "missing": found.missing}
            rows.append(judged | {"says": claim.says, "needs": claim.needs, "rule": claim.rule})
    return pd.DataFrame(rows)
