"""The statistics of arXiv 2605.27616, as its scripts compute them.

They are reported beside this package's own (`monai_fp4.report.statistics.comparisons`), not in their place. Two
recipes are compared by the Wilcoxon signed-rank test over seeds (or folds, where there is one seed), its p values
rounded to six digits and corrected by Holm; the effect is Cohen's d of the paired differences. Kendall's W says how far
the seeds agree on the order of the recipes.

The exact test has a floor: n pairs that all differ the same way give ``2 / 2**n``. With ten seeds and the 28 pairs of
eight recipes Holm multiplies that to 0.055, so no comparison of the seed study could ever have been significant; with
five folds one p value cannot fall below 0.0625. `PairTest.floor` keeps it beside each value.

>>> smallest_p(10), round(28 * smallest_p(10), 4), smallest_p(5)
(0.001953125, 0.0547, 0.0625)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from monai_fp4.report.statistics.comparisons import fold_overlap, numbered_folds
from monai_fp4.report.statistics.intervals import holm, paired_test
from monai_fp4.report.tables import StudyTables

__all__ = ["PairTest", "agreement", "as_the_paper_tests", "kendall_w", "pair_tests", "smallest_p"]

FEW = 3
"""Fewer common seeds than these are not compared."""
FOLDS = "folds"
STRONG, MODERATE = 0.7, 0.5
"""Kendall's W above which the paper calls an agreement strong, or moderate."""


@dataclass(frozen=True)
class PairTest:
    """One recipe against another.

    Attributes:
        n: common seeds or folds.
        mean: of the differences, the second recipe less the first.
        p: of the Wilcoxon test, rounded to six digits; 1 where nothing differs.
        p_holm: corrected for all pairs that were tested together.
        cohens_d: mean over standard deviation (n - 1) of the differences; NaN where all are alike.
        floor: the smallest ``p_holm`` that so many pairs and tests can give.
    """

    n: int
    mean: float
    p: float
    p_holm: float
    cohens_d: float
    floor: float


def smallest_p(n: int) -> float:
    """The smallest two-sided p value of an exact Wilcoxon signed-rank test of n pairs, ``2 / 2**n``."""
    return min(1.0, 2.0 ** (1 - n))


def pair_tests(scores: Mapping[str, Mapping[int, float]]) -> dict[tuple[str, str], PairTest]:
    """Compare every two recipes of one family, in the order given.

    Args:
        scores: recipe -> seed (or fold) -> score.

    Returns:
        Pair of recipes -> its test, for pairs with at least three seeds in common.
    """
    tested: dict[tuple[str, str], PairTest] = {}
    for first, second in combinations(scores, 2):
        common = sorted(scores[first].keys() & scores[second].keys())
        if len(common) < FEW:
            continue
        differences = np.array([scores[second][key] - scores[first][key] for key in common])
        p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
        spread = float(differences.std(ddof=1))
        mean = float(differences.mean())
        d = mean / spread if spread > 0 else math.nan
        tested[first, second] = PairTest(len(common), mean, round(p, 6), math.nan, d, math.nan)
    corrected = holm([test.p for test in tested.values()])
    return {
        pair: replace(test, p_holm=float(p), floor=min(1.0, len(tested) * smallest_p(test.n)))
        for (pair, test), p in zip(tested.items(), corrected, strict=True)
    }


def kendall_w(scores: Sequence[Sequence[float]]) -> float:
    """Kendall's coefficient of concordance, without a correction for ties: 1 where all seeds order recipes alike.

    ``W = 12 S / (m^2 (k^3 - k))`` with m seeds, k recipes and S the sum of squared deviations of the rank sums. The
    paper calls more than 0.7 strong and more than 0.5 moderate.

    Args:
        scores: `[m][k]`, a row a seed.

    Returns:
        From 0 to 1; NaN for fewer than two recipes or no seed.

    >>> kendall_w([[0.9, 0.8, 0.7], [0.5, 0.4, 0.1]]), kendall_w([[0.9, 0.8], [0.8, 0.9]])
    (1.0, 0.0)
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2:
        return math.nan
    m, k = table.shape
    sums = stats.rankdata(-table, axis=1).sum(axis=0)
    return float(12 * ((sums - sums.mean()) ** 2).sum() / (m**2 * (k**3 - k)))


def as_the_paper_tests(tables: StudyTables, margin: float, metric: str = "auprc") -> pd.DataFrame:
    """Every two recipes of each model, by the paper's statistics and, of the same differences, by ours.

    As in its script for many seeds, the score is that of the validation patients and Holm corrects within a model.

    Returns:
        `model`, `recipe`, `other`, `unit`, `n`, `mean` of the second less the first, `cohens_d`, Wilcoxon's `p` and
        `p_holm`, the `floor` that this cannot pass; and our `low`, `high` and `p_t` of the paired t-test.
    """
    rows = []
    for model, unit, scores in _families(tables, metric):
        for (first, second), test in pair_tests(scores).items():
            common = sorted(scores[first].keys() & scores[second].keys())  # sums of floats depend on their order
            overlap = fold_overlap(tables, len(common)) if unit == FOLDS else 0.0
            ours = paired_test([scores[second][key] - scores[first][key] for key in common], margin, overlap=overlap)
            named = {"model": model, "recipe": first, "other": second, "unit": unit}
            rows.append(named | vars(test) | {"low": ours.low, "high": ours.high, "p_t": ours.p})
    columns = ["model", "recipe", "other", "unit", "n", "mean", "cohens_d", "p", "p_holm", "floor", "low", "high",
               "p_t"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def agreement(tables: StudyTables, metric: str = "auprc") -> pd.DataFrame:
    """Kendall's W of each model: how far its seeds (or folds) order the recipes alike, of those that have them all.

    Returns:
        `model`, `unit`, `n` seeds or folds, `recipes`, `w`, and `word`: strong, moderate or weak, as the paper has it.
    """
    rows = []
    for model, unit, scores in _families(tables, metric):
        whole = pd.DataFrame(scores).dropna(axis="columns", how="all").dropna()
        w = kendall_w(whole.to_numpy()) if len(whole) > 1 else math.nan
        if not math.isnan(w):
            word = "strong" if w > STRONG else "moderate" if w > MODERATE else "weak"
            shape = {"n": len(whole), "recipes": len(whole.columns)}
            rows.append({"model": model, "unit": unit} | shape | {"w": w, "word": word})
    return pd.DataFrame(rows, columns=["model", "unit", "n", "recipes", "w", "word"])


def _families(tables: StudyTables, metric: str) -> Iterator[tuple[str, str, dict[str, dict[Any, float]]]]:
    """Each model, what its pairs are, and recipe -> seed of the main fold or, with fewer than three of those, fold."""
    done = tables.done.dropna(subset=[metric])
    for model in tables.models:
        own = done[done["model"] == model]
        seeds = tables.in_main_fold(own)
        folds = numbered_folds(own)
        by_folds = seeds["seed"].nunique() < min(FEW, folds["fold"].nunique())
        key, rows = ("fold", folds) if by_folds else ("seed", seeds)
        wide = rows.pivot_table(index=key, columns="recipe", values=metric, aggfunc="mean")
        scores = {str(name): wide[name].dropna().to_dict() for name in tables.recipes if name in wide}
        yield model, FOLDS if by_folds else f"seeds of fold {tables.main_fold}", scores
