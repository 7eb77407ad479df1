"""The paper's claims as data, and what a study says of each: held, not held, open or not tested.

The paper is Du and Rybakov, arXiv 2605.27616; its claims are told in our own words, from its abstract and from public
summaries. Each has a rule that decides it (`rules` and beside it), written before a study was looked at; that on
the ViT alone was added after the first results on LGG.
*Open* means that the cells that are finished cannot tell; the claim is neither held nor refuted. *Not tested* means
that cells are missing, and says which. Recall comes before AUPRC, since a missed tumour costs more; the paper's own
figures are AUPRC. No correction is made for the number of claims: each is a question of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from monai_fp4.report.claims import rules
from monai_fp4.report.claims.attention import advanced_prevent_collapse, attention_is_discretized
from monai_fp4.report.claims.evidence import Evidence, Study
from monai_fp4.report.claims.ranks import vit_trails
from monai_fp4.report.tables import StudyTables

__all__ = ["CLAIMS", "Claim", "judge_claims"]

_QUALITY = ("recall", "auprc")
_LEVELS = ("distinct_scores",)


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
    metrics: tuple[str, ...] = _QUALITY


CLAIMS = (
    Claim(
        "architecture over recipe",
        "The architecture decides more than the recipe how much FP4 costs.",
        "two architectures and two recipes beside BF16, the same three seeds of each",
        "Of the variance of the differences to BF16, beyond chance: held if the architecture's share is shown (F test)"
        " and exceeds the recipe's (95 % jackknife interval over seeds above 0); not held in the reverse case.",
        rules.architecture_over_recipe,
    ),
    Claim(
        "attention is resilient",
        "Networks with attention hardly depend on the recipe.",
        "swin and vit; BF16, full, a recipe with gradients in high precision, an advanced one; three seeds",
        "Held if for every recipe of every such model a loss of the margin is excluded; not held if one recipe is shown"
        " to lose (corrected) and loses the margin or more on average. At the scales that the study has.",
        rules.recipe_choice_is_free,
    ),
    Claim(
        "CNN loses at scale",
        "The CNN gets worse under recipes that quantize gradients, at the larger scales.",
        "unet at 4m and 15m; BF16 and the recipes that quantize gradients; three seeds",
        "Held if full is shown to lose (corrected) by the margin or more on average at 4m or 15m; not held if a loss of"
        " the margin is excluded for every recipe that quantizes gradients at both.",
        rules.cnn_loses_at_scale,
    ),
    Claim(
        "advanced recipes reduce the loss",
        "At the larger scales stochastic rounding, the Hadamard transform and 2D scales give part of that loss back.",
        "unet at 4m or 15m; BF16, full and advanced recipes; three seeds",
        "Where full is shown to lose: held if the mean of the advanced recipes is shown to lie above full; not held if"
        " a gain of the margin is excluded.",
        rules.advanced_reduce_loss,
    ),
    Claim(
        "FP4 discretizes attention",
        "In small networks FP4 leaves softmax attention, and with it the output, only few distinct levels.",
        "full with attention products in FP4 (full+attention), and BF16, of swin and vit at 500k; three seeds",
        "Held if full+attention is shown to have at most a tenth of BF16's distinct probabilities in one of the models;"
        " not held if it is shown to keep more than half in both.",
        attention_is_discretized,
        _LEVELS,
    ),
    Claim(
        "advanced recipes prevent it",
        "Advanced recipes keep attention from collapsing to few levels.",
        "the same, and advanced recipes with attention products in FP4 (such as sr_rht_2d+attention)",
        "Where full+attention collapses: held if every advanced recipe with FP4 attention is shown to keep more than"
        " half of BF16's distinct probabilities; not held if one is shown to have at most a tenth.",
        advanced_prevent_collapse,
        _LEVELS,
    ),
    Claim(
        "five folds confirm",
        "Cross-validation over five folds of patients confirms the findings.",
        "five folds of BF16 and the recipes, of swin, vit and unet, unet at 4m or 15m",
        "With folds in place of seeds as pairs: held if 'attention is resilient' and 'CNN loses at scale' are both"
        " held; not held if one is not.",
        rules.folds_confirm,
    ),
    Claim(
        "Swin at every scale",
        "Swin may take any recipe at every scale, which makes it the network to recommend.",
        "swin at 500k, 4m and 15m; BF16, full, a recipe with gradients in high precision, an advanced one; three seeds",
        "As 'attention is resilient', for swin at all three scales.",
        rules.swin_at_every_scale,
    ),
    Claim(
        "consistency costs little",
        "Gradients that agree with the quantized forward pass, and nothing else, cost 0.003 AUPRC.",
        "chain_rule and forward_only of one model; three seeds",
        "Of chain_rule less forward_only, which differ in nothing else, mean over the models: held if the 95 % interval"
        " holds -0.003 and lies between minus the margin and 0; not held if it does not hold -0.003.",
        rules.consistency_costs_little,
        ("auprc",),
    ),
    Claim(
        "ViT trails",
        "The ViT stays behind the other two, whichever optimizer trains it.",
        "BF16 of vit, swin and unet under two optimizers or more; three seeds",
        "Held if vit is shown to lie below swin and below unet at every scale under every optimizer (Welch's t-test);"
        " not held if it is shown to lie above one of them (corrected).",
        vit_trails,
    ),
)
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
            rows.append(
                {
                    "claim": claim.name,
                    "metric": metric,
                    "verdict": str(found.verdict),
                    "n": found.n,
                    "numbers": found.numbers,
                    "missing": found.missing,
                    "says": claim.says,
                    "needs": claim.needs,
                    "rule": claim.rule,
                }
            )
    return pd.DataFrame(rows)
