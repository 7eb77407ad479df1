"""Advise a recipe for each model, as far as the evidence goes: by rules, not opinions.

Recall comes first, since a missed tumour costs more than a false alarm, and AUPRC second; each is judged by its paired
test against BF16, corrected for the number of comparisons:

=============  ======================================================================================
holds          a loss of the margin or more is excluded (non-inferiority, corrected p < 0.05)
gains          better than BF16, corrected p < 0.05
small loss     worse than BF16 and yet shown to lose less than the margin
loses          worse than BF16, corrected p < 0.05, and the margin is not excluded
hint of loss   its own 95 % interval lies below 0, but after correction nothing is shown
open           neither is shown: that is no evidence of equality
too few        fewer than three pairs, or pairs that do not differ at all: nothing is said
=============  ======================================================================================

A recipe is *supported* for a model if neither metric is worse than "small loss", *advised against* if either loses,
else a *hint of loss* or *open*. Supported recipes are not ranked, unless a test between two of them, corrected as well,
shows a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd
from scipy import stats

from monai_fp4.report.statistics import FEW
from monai_fp4.report.tables import StudyTables, metric_name

__all__ = ["Advice", "Judgement", "ModelAdvice", "advise", "judge", "seeds_needed"]

_LEVEL = 0.05
_DECISIVE = ("recall", "auprc")


class Judgement(StrEnum):
    """State of knowledge on one metric of one recipe."""

    HOLDS = "holds"
    GAINS = "gains"
    SMALL_LOSS = "small loss"
    LOSES = "loses"
    HINT = "hint of loss"
    OPEN = "open"
    TOO_FEW = "too few"


class Advice(StrEnum):
    """Advice on one recipe for one model."""

    SUPPORTED = "supported"
    AGAINST = "advised against"
    HINT = "hint of loss"
    OPEN = "open"
    TOO_FEW = "too few seeds"
    NO_DATA = "no finished pair"


@dataclass(frozen=True)
class ModelAdvice:
    """The advice for one model.

    Attributes:
        model: architecture, scale and further axes.
        summary: what holds for the model as a whole.
        recipes: recipe -> advice.
        reasons: recipe -> the sentence that says why.
        ranking: what is known of the order among the supported ones.
    """

    model: str
    summary: str
    recipes: dict[str, Advice]
    reasons: dict[str, str]
    ranking: str


def judge(row: Any) -> Judgement:
    """Judge one row of `comparisons.against_baseline`.

    >>> judge({"n": 5, "mean": -0.02, "p_holm": 0.001, "p_margin_holm": 1.0})
    <Judgement.LOSES: 'loses'>
    >>> judge({"n": 5, "mean": 0.0, "high": 0.01, "p_holm": 1.0, "p_margin_holm": 0.2})
    <Judgement.OPEN: 'open'>
    """
    if row["n"] < FEW or math.isnan(row["p_holm"]):
        return Judgement.TOO_FEW
    differs, within = row["p_holm"] < _LEVEL, row["p_margin_holm"] < _LEVEL
    if differs and row["mean"] > 0:
        return Judgement.GAINS
    if differs:
        return Judgement.SMALL_LOSS if within else Judgement.LOSES
    if within:
        return Judgement.HOLDS
    return Judgement.HINT if row["high"] < 0 else Judgement.OPEN


def seeds_needed(n: int, low: float, high: float, margin: float, power: float = 0.8) -> int | None:
    """Pairs needed to exclude a loss of the margin, if there is none, with the spread that was seen.

    Before any correction, by the usual normal approximation; None where the interval is not known.

    >>> seeds_needed(3, -0.02, 0.02, margin=0.01)
    5
    """
    if n < FEW or math.isnan(low):
        return None
    spread = (high - low) / 2 / float(stats.t.ppf(0.975, n - 1)) * math.sqrt(n)
    quantiles = float(stats.norm.ppf(1 - _LEVEL) + stats.norm.ppf(power))
    return max(FEW, math.ceil((quantiles * spread / margin) ** 2))


def advise(tables: StudyTables, comparisons: pd.DataFrame, pairs: pd.DataFrame, margin: float) -> list[ModelAdvice]:
    """The advice for every model of the study.

    Args:
        tables: the study.
        comparisons: of `comparisons.against_baseline`, with recall and AUPRC.
        pairs: of `comparisons.between_recipes`.
        margin: of the tests.
    """
    base = tables.baseline
    found = []
    for model in tables.models:
        rows = comparisons[comparisons["model"] == model]
        recipes: dict[str, Advice] = {}
        reasons: dict[str, str] = {}
        for recipe in tables.recipes:
            if recipe == base:
                continue
            own = rows[rows["recipe"] == recipe].set_index("metric")
            recipes[recipe], reasons[recipe] = _recipe(own, margin)
        summary = _summary(tables, model, base)
        found.append(ModelAdvice(model, summary, recipes, reasons, _ranking(model, recipes, pairs)))
    return found


def _recipe(own: pd.DataFrame, margin: float) -> tuple[Advice, str]:
    if not all(metric in own.index for metric in _DECISIVE):
        return Advice.NO_DATA, "No seed has both this recipe and BF16 finished."
    rows = {metric: own.loc[metric] for metric in _DECISIVE}
    judged = {metric: judge(row) for metric, row in rows.items()}
    said = _sentences(rows, judged, margin)
    values = set(judged.values())
    if Judgement.TOO_FEW in values:
        return Advice.TOO_FEW, said
    if Judgement.LOSES in values:
        return Advice.AGAINST, said
    if values & {Judgement.HINT, Judgement.OPEN}:
        needed = [seeds_needed(int(row["n"]), row["low"], row["high"], margin) for row in rows.values()]
        most = max((n for n in needed if n is not None), default=0)
        if most > own["n"].min() and Judgement.HINT not in values:
            said += f" With this spread, about {most} pairs would be needed to settle it, before correction."
        return (Advice.HINT if Judgement.HINT in values else Advice.OPEN), said
    return Advice.SUPPORTED, said


def _sentences(rows: Mapping[str, Any], judged: Mapping[str, Judgement], margin: float) -> str:
    """One sentence where both metrics are judged alike, else one each."""
    groups: dict[Judgement, list[str]] = {}
    for metric, judgement in judged.items():
        groups.setdefault(judgement, []).append(metric)
    said = []
    for judgement, metrics in groups.items():
        names = " and ".join(metric_name(metric, inside=n > 0) for n, metric in enumerate(metrics))
        numbers = "; ".join(_numbers(metric, rows[metric], judgement) for metric in metrics)
        said.append(f"{names}: {_WORDS[judgement].format(margin=margin)} ({numbers}).")
    return " ".join(said)


_WORDS = {
    Judgement.HOLDS: "shown to lose less than {margin:g}",
    Judgement.GAINS: "higher than with BF16",
    Judgement.SMALL_LOSS: "lower than with BF16, by less than {margin:g}",
    Judgement.LOSES: "lower than with BF16",
    Judgement.HINT: "lower, though not certain once the number of comparisons is counted",
    Judgement.OPEN: "neither a difference nor its absence within {margin:g} is shown",
    Judgement.TOO_FEW: "nothing follows from so few pairs",
}


def _numbers(metric: str, row: Any, judgement: Judgement) -> str:
    said = f"{metric_name(metric, inside=True)} {row['mean']:+.4f}"
    if not math.isnan(row["low"]):
        said += f", 95 % interval {row['low']:+.4f} to {row['high']:+.4f}"
    unit, n = row["unit"].split(" of ")[0], int(row["n"])
    said += f", n = {n} {unit if n != 1 else unit.removesuffix('s')}"
    if judgement in (Judgement.GAINS, Judgement.LOSES):
        said += f", corrected p {_p(row['p_holm'])}"
    elif judgement in (Judgement.HOLDS, Judgement.SMALL_LOSS):
        said += f", corrected p {_p(row['p_margin_holm'])}"
    return said


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _summary(tables: StudyTables, model: str, base: str | None) -> str:
    own = tables.done[(tables.done["model"] == model) & (tables.done["recipe"] == base)]
    if base is None:
        return "The study has no BF16 recipe, so no recipe can be compared with it."
    if own.empty:
        return "No BF16 cell is finished, so no recipe can be compared with it."
    trained = f"{len(own)} training{'s' if len(own) != 1 else ''}"
    return f"BF16: recall {own['recall'].mean():.3f}, AUPRC {own['auprc'].mean():.3f} (mean of {trained})."


def _ranking(model: str, recipes: dict[str, Advice], pairs: pd.DataFrame) -> str:
    supported = [name for name, advice in recipes.items() if advice is Advice.SUPPORTED]
    if len(supported) < 2:
        return ""
    rows = pairs[(pairs["model"] == model) & pairs["recipe"].isin(supported) & pairs["other"].isin(supported)]
    shown = rows[(rows["n"] >= FEW) & (rows["p_holm"] < _LEVEL)]
    if shown.empty:
        return (
            f"Among the {len(supported)} supported recipes no difference in AUPRC is shown; take the one whose cost"
            " suits."
        )
    said = [_pair(row) for _, row in shown.iterrows()]
    return f"Among the supported recipes, differences in AUPRC are shown for: {', '.join(said)}."


def _pair(row: Any) -> str:
    better, worse = (row["other"], row["recipe"]) if row["mean"] > 0 else (row["recipe"], row["other"])
    return f"{better} over {worse} ({abs(row['mean']):.4f}, corrected p {_p(row['p_holm'])})"
