"""Evidence for the rules on the paper's claims: a study's models and recipes by their roles, and its paired tests.

A recipe's role is read from its fields and not from its name, so that a study may call `full` with attention in FP4 as
it likes. Claims about recipes are judged on recipes in the standard form (attention products in high precision, no
overrides, no return to BF16, the standard format): variants of them are other questions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from monai_fp4.quantization.recipes import FURTHER_RECIPES, RECIPES, Recipe
from monai_fp4.report.statistics import FEW, PairedTest, paired_test
from monai_fp4.report.tables import StudyTables

__all__ = ["LEVEL", "Evidence", "Networks", "State", "Study", "Verdict", "number", "p_value"]

LEVEL = 0.05
"""The level of significance, after Holm's correction."""


@dataclass(frozen=True)
class Networks:
    """Which architectures the claims are about."""

    cnn: str
    swin: str
    vit: str

    @property
    def attention(self) -> tuple[str, str]:
        """Those with attention."""
        return self.swin, self.vit


OURS = Networks("unet", "swin", "vit")
PAPERS = Networks("paper_cnn", "paper_swin", "paper_vit")


class Verdict(StrEnum):
    """Verdict of a study on a claim."""

    HELD = "held"
    NOT_HELD = "not held"
    OPEN = "open"
    """Tested, and the data cannot tell."""
    NOT_TESTED = "not tested"
    """The cells that a test would need are missing."""


class State(StrEnum):
    """State of knowledge on the loss of one recipe of one model."""

    HOLDS = "holds"
    LOSES = "loses"
    OPEN = "open"
    MISSING = "missing"


@dataclass(frozen=True)
class Evidence:
    """Finding of a rule, and the numbers behind it.

    Attributes:
        verdict: of the claim.
        numbers: what was measured, in a sentence; of a claim that is not tested, what there is that comes near.
        n: pairs behind it, the fewest of its tests; 0 if none was made.
        missing: which cells are missing, or empty.
    """

    verdict: Verdict
    numbers: str
    n: int = 0
    missing: str = ""


@dataclass(frozen=True)
class Study:
    """A study as the rules see it.

    Attributes:
        tables: the study's.
        pairs: of `comparisons.paired`, with recall and AUPRC.
        comparisons: of `comparisons.against_baseline`.
        margin: the loss that is taken not to matter.
    """

    tables: StudyTables
    pairs: pd.DataFrame
    comparisons: pd.DataFrame
    margin: float

    @cached_property
    def networks(self) -> Networks:
        """The paper's own networks in a study that has any of them, else ours."""
        return PAPERS if set(vars(PAPERS).values()) & set(self.tables.definition.archs) else OURS

    @cached_property
    def roles(self) -> dict[str, Recipe]:
        """The study's recipes by name."""
        return {name: Recipe.from_config(config) for name, config in self.tables.definition.recipes.items()}

    def recipes(
        self, *, gradients: bool | None = None, advanced: bool | None = None, attention: bool = False
    ) -> list[str]:
        """The study's quantizing recipes of a role, in the standard form.

        Args:
            gradients: that quantize gradients, or that do not.
            advanced: with stochastic rounding, the Hadamard transform or 2D weights, or without.
            attention: with the attention products in FP4 in place of high precision.
        """
        found = []
        for name in self.tables.recipes:
            recipe = self.roles[name]
            plain = {"name": "", "attention": "high_precision"}
            standard = (*RECIPES.values(), *FURTHER_RECIPES.values())
            known = any(recipe.to_config() | plain == entry.to_config() | plain for entry in standard)
            if not (known and recipe.quantizes and (recipe.attention == "fp4") == attention):
                continue
            tools = recipe.stochastic_rounding or recipe.hadamard or recipe.two_d_weights
            if gradients in (None, recipe.backward == "fp4") and advanced in (None, tools):
                found.append(name)
        return found

    def models(self, archs: Collection[str] | None = None, scales: Collection[str] | None = None) -> list[str]:
        """The study's models of some architectures and scales, all where None."""
        named = self.tables.cells.drop_duplicates("model")
        for column, wanted in (("arch", archs), ("scale", scales)):
            named = named if wanted is None else named[named[column].isin(list(wanted))]
        return list(named["model"])

    def test(self, metric: str, model: str, recipe: str) -> Any:
        """The comparison of a recipe with BF16, or None where no pair is finished."""
        c = self.comparisons
        rows = c[(c["metric"] == metric) & (c["model"] == model) & (c["recipe"] == recipe)]
        return rows.iloc[0] if len(rows) else None

    def state(self, row: Any) -> State:
        """Judge a comparison.

        A loss is shown (`LOSES`) by a corrected p and a mean of the margin or more. That a loss of the margin is
        excluded (`HOLDS`) is not corrected: the rules use it only where every one of several tests must show it, and
        such a conjunction has the level of its weakest part.
        """
        if row is None or row["n"] < FEW or math.isnan(row["p"]):
            return State.MISSING
        if row["p_holm"] < LEVEL and row["mean"] <= -self.margin:
            return State.LOSES
        return State.HOLDS if row["p_margin"] < LEVEL else State.OPEN

    def wide(self, value: str, model: str) -> pd.DataFrame:
        """A value of the finished cells of the main fold: one row a seed, one column a recipe."""
        own = self.tables.in_main_fold(self.tables.done)
        own = own[own["model"] == model].dropna(subset=[value])
        return own.pivot(index="seed", columns="recipe", values=value)

    def log_ratio(self, model: str, recipe: str, level: float = 1 - LEVEL) -> PairedTest:
        """Powers of ten by which a recipe's distinct probabilities differ from BF16's, seed by seed."""
        levels, base = self.wide("distinct_scores", model), self.tables.baseline
        if base not in levels or recipe not in levels:
            return paired_test([], self.margin)
        test = paired_test(np.log10(levels[recipe] / levels[base]).dropna(), self.margin, level=level)
        if test.n >= FEW and math.isnan(test.low):  # the same ratio every time
            return PairedTest(**{**vars(test), "low": test.mean, "high": test.mean})
        return test

    def listed(self, rows: Iterable[tuple[str, str]]) -> str:
        """Models and recipes in words, a few of many."""
        names = [f"{model} {recipe}" for model, recipe in rows]
        return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")

    def all_hold(self, metric: str, wanted: Sequence[tuple[str, str]], absent: str = "") -> Evidence:
        """Judge "none of these loses the margin": one that does refutes it, and only all together can show it.

        Args:
            metric: what is compared.
            wanted: models and recipes of the study that the claim is about.
            absent: what the claim is about and the study does not hold; with it nothing can be held.
        """
        rows = {pair: self.test(metric, *pair) for pair in wanted}
        states = {pair: self.state(row) for pair, row in rows.items()}
        tested = {pair: rows[pair] for pair, state in states.items() if state is not State.MISSING}
        few = [pair for pair in wanted if pair not in tested]
        missing = "; ".join(
            part for part in (absent, f"fewer than {FEW} pairs of {self.listed(few)}" if few else "") if part
        )
        if not tested:
            return Evidence(Verdict.NOT_TESTED, "", 0, missing)
        count = {state: sum(s is state for s in states.values()) for state in State}
        worst = min(tested, key=lambda pair: float(tested[pair]["mean"]))
        said = (
            f"{count[State.HOLDS]} of {len(wanted)} exclude a loss of {self.margin:g}, {count[State.LOSES]} lose;"
            f" lowest {' '.join(worst)} {number(tested[worst])}"
        )
        n = min(int(row["n"]) for row in tested.values())
        if count[State.LOSES]:
            return Evidence(Verdict.NOT_HELD, said, n, missing)
        if absent:
            return Evidence(Verdict.NOT_TESTED, said, n, missing)
        all_hold = count[State.HOLDS] == len(wanted)
        return Evidence(Verdict.HELD if all_hold else Verdict.OPEN, said, n, missing)


def number(test: Any) -> str:
    """A difference with its interval.

    >>> number({"mean": -0.01, "low": -0.02, "high": 0.001})
    '-0.0100 (95 % from -0.0200 to +0.0010)'
    """
    values = test if isinstance(test, dict | pd.Series) else vars(test)
    if math.isnan(values["low"]):
        return f"{values['mean']:+.4f}"
    return f"{values['mean']:+.4f} (95 % from {values['low']:+.4f} to {values['high']:+.4f})"


def p_value(p: float) -> str:
    """A p in words.

    >>> p_value(0.0123), p_value(0.00002)
    ('p = 0.012', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
