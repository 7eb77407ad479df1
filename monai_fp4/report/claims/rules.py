"""The rules on the paper's claims about losses: what makes each held, not held or open, and what a test needs.

Every rule was written down before a study was looked at. "Not different" is never taken for "equal": that nothing is
lost is held only where a loss of the margin or more is excluded.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from monai_fp4.report.claims.evidence import LEVEL, Evidence, State, Study, Verdict, number, p_value
from monai_fp4.report.statistics import (
    FEW,
    BalancedPart,
    PairedTest,
    against_baseline,
    analyse_variance,
    balanced_part,
    beyond_chance,
    holm,
    mean_interval,
    numbered_folds,
    paired_test,
)

__all__ = [
    "advanced_reduce_loss", "architecture_over_recipe", "cnn_loses_at_scale", "consistency_costs_little",
    "folds_confirm", "recipe_choice_is_free", "swin_at_every_scale",
]  # fmt: skip

SCALES = ("500k", "4m", "15m")
LARGER = ("4m", "15m")
FOLDS = 5
PAPER_COST = -0.003


def architecture_over_recipe(study: Study, metric: str) -> Evidence:
    """Shares of the variance of the differences to BF16, beyond chance; jackknife over seeds."""
    tables = study.tables
    pairs = tables.in_main_fold(study.pairs[study.pairs["metric"] == metric])
    pairs = pairs[pairs["recipe"].isin(study.recipes())]
    factors = ["arch", *(["scale"] if pairs["scale"].nunique() > 1 else []), "recipe"]
    pairs = pairs[pairs["variant"] == pairs["variant"].iloc[0]] if len(pairs) else pairs
    part = balanced_part(pairs, factors, "difference") if len(pairs) else None
    if part is None or min(len(part.levels["arch"]), len(part.levels["recipe"])) < 2 or len(part.seeds) < FEW:
        seeds = f"{len(part.seeds)} seed{'s' if len(part.seeds) != 1 else ''}" if part is not None else ""
        have = f"{seeds} of {_shape(part)}" if part is not None else "no balanced part"
        missing = f"two architectures and two recipes with BF16 and the same {FEW} seeds; finished: {have}"
        return Evidence(Verdict.NOT_TESTED, "", 0, missing)
    shares, n = beyond_chance(part), len(part.seeds)
    table = analyse_variance(part).set_index("source")
    whole = shares["arch"] - shares["recipe"]
    without = [_without(part, seed) for seed in range(n)]
    interval = mean_interval([n * whole - (n - 1) * value for value in without])
    p = {name: float(table.loc[name, "p"]) for name in ("arch", "recipe")}
    said = (
        f"architecture {100 * shares['arch']:.0f} % of the variance ({p_value(p['arch'])}), recipe"
        f" {100 * shares['recipe']:.0f} % ({p_value(p['recipe'])}), beyond chance, in {_shape(part)}; difference"
        f" {whole:+.2f} (95 % from {interval.low:+.2f} to {interval.high:+.2f}, jackknife over {n} seeds)"
    )
    left = [f"{name} {', '.join(levels)}" for name, levels in part.left_out.items() if levels]
    missing = f"left out, because a combination is not finished: {'; '.join(left)}" if left else ""
    if p["arch"] < LEVEL and interval.low > 0:
        return Evidence(Verdict.HELD, said, n, missing)
    if p["recipe"] < LEVEL and interval.high < 0:
        return Evidence(Verdict.NOT_HELD, said, n, missing)
    return Evidence(Verdict.OPEN, said, n, missing)


def recipe_choice_is_free(study: Study, metric: str) -> Evidence:
    """No recipe of Swin or ViT loses the margin, at the scales that the study has."""
    return _no_recipe_loses(study, metric, study.networks.attention, ())


def swin_at_every_scale(study: Study, metric: str) -> Evidence:
    """No recipe of Swin loses the margin, at any of the three scales."""
    return _no_recipe_loses(study, metric, (study.networks.swin,), SCALES)


def _no_recipe_loses(study: Study, metric: str, archs: tuple[str, ...], scales: tuple[str, ...]) -> Evidence:
    recipes = study.recipes()
    wanted = [(model, recipe) for model in study.models(archs) for recipe in recipes]
    absent = [f"no {arch}" for arch in archs if not study.models([arch])]
    known = set(study.tables.cells.loc[study.tables.cells["arch"].isin(archs), "scale"])
    absent += [f"{' and '.join(archs)} at {scale}" for scale in scales if scale not in known]
    plain = study.recipes(gradients=True, advanced=False)
    if not plain or not study.recipes(advanced=True) or not study.recipes(gradients=False):
        absent.append("recipes to choose among: `full`, one with gradients in high precision and an advanced one")
    return study.all_hold(metric, wanted, "; ".join(absent))


def cnn_loses_at_scale(study: Study, metric: str) -> Evidence:
    """The plain recipe loses at a larger scale; refuted where no gradient-quantizing recipe does at either."""
    plain, cnn = study.recipes(gradients=True, advanced=False), study.networks.cnn
    models = study.models([cnn], LARGER)
    rows = [study.test(metric, model, recipe) for model in models for recipe in plain]
    tested = [row for row in rows if study.state(row) is not State.MISSING]
    known = set(study.tables.cells.loc[study.tables.cells["arch"] == cnn, "scale"])
    absent = [f"{cnn} at {scale}" for scale in LARGER if scale not in known]
    small = [(model, row) for model in study.models([cnn], SCALES[:1]) for row in _rows(study, metric, model, plain)]
    near = "; ".join(f"not about it: {model} {row['recipe']} {number(row)}, n = {row['n']}" for model, row in small)
    if not tested:
        absent = absent or [f"{FEW} pairs of {study.listed((m, r) for m in models for r in plain)}"]
        return Evidence(Verdict.NOT_TESTED, near, 0, "; ".join(absent))
    said = "; ".join(f"{row['model']} {row['recipe']} {number(row)}" for row in tested)
    n = min(int(row["n"]) for row in tested)
    if any(study.state(row) is State.LOSES for row in tested):
        return Evidence(Verdict.HELD, said, n, "; ".join(absent))
    every = [(model, recipe) for model in models for recipe in study.recipes(gradients=True)]
    none = study.all_hold(metric, every, "; ".join(absent))
    verdict = Verdict.NOT_HELD if none.verdict is Verdict.HELD else Verdict.OPEN
    return Evidence(verdict, f"{said}; of all that quantize gradients: {none.numbers}", n, none.missing)


def advanced_reduce_loss(study: Study, metric: str) -> Evidence:
    """The mean of the advanced recipes less the plain one, seed by seed, where the plain one is shown to lose."""
    plain, advanced = (study.recipes(gradients=True, advanced=tools) for tools in (False, True))
    cnn = study.networks.cnn
    found: list[tuple[str, PairedTest, State]] = []
    for model in study.models([cnn], LARGER):
        wide = study.wide(metric, model)
        names = [name for name in advanced if name in wide]
        for recipe in plain:
            if recipe in wide and names:
                gains = wide[names].mean(axis=1, skipna=False) - wide[recipe]
                test = paired_test(-gains, study.margin)
                if test.n >= FEW and not math.isnan(test.p):
                    found.append((model, test, study.state(study.test(metric, model, recipe))))
    if not found:
        wanted = f"{cnn} at {' or '.join(LARGER)} with BF16, `full` and advanced recipes, {FEW} seeds"
        return Evidence(Verdict.NOT_TESTED, "", 0, wanted)
    said = "; ".join(f"{model} advanced less full {number(_turned(test))}" for model, test, _ in found)
    n = min(test.n for _, test, _ in found)
    losing = [test for _, test, state in found if state is State.LOSES]
    if not losing:
        return Evidence(Verdict.OPEN, f"no loss to reduce is shown; {said}", n)
    corrected = holm([test.p for test in losing])
    if any(p < LEVEL and test.mean < 0 for p, test in zip(corrected, losing, strict=True)):
        return Evidence(Verdict.HELD, said, n)
    verdict = Verdict.NOT_HELD if all(test.p_margin < LEVEL for test in losing) else Verdict.OPEN
    return Evidence(verdict, said, n)


def folds_confirm(study: Study, metric: str) -> Evidence:
    """The claims on resilience and on the CNN, with folds in place of seeds as pairs."""
    tables = study.tables
    folds = numbered_folds(tables.done)["fold"].nunique()
    if folds < FOLDS:
        return Evidence(Verdict.NOT_TESTED, "", 0, f"{FOLDS} folds; finished cells are of {folds}")
    pairs = study.pairs[study.pairs["metric"] == metric]
    again = replace(study, comparisons=against_baseline(tables, pairs, study.margin, by_folds=True))
    judged = {"attention": recipe_choice_is_free(again, metric), "CNN": cnn_loses_at_scale(again, metric)}
    said = "; ".join(f"{name}: {found.verdict}, {found.numbers or found.missing}" for name, found in judged.items())
    verdicts = {found.verdict for found in judged.values()}
    n = min((found.n for found in judged.values() if found.n), default=0)
    missing = "; ".join(found.missing for found in judged.values() if found.missing)
    if Verdict.NOT_HELD in verdicts:
        return Evidence(Verdict.NOT_HELD, said, n, missing)
    if verdicts == {Verdict.HELD}:
        return Evidence(Verdict.HELD, said, n, missing)
    return Evidence(Verdict.OPEN if n else Verdict.NOT_TESTED, said, n, missing)


def consistency_costs_little(study: Study, metric: str) -> Evidence:
    """`chain_rule` less `forward_only`, seed by seed, mean over the models that have both."""
    models = []
    for model in study.models():
        wide = study.wide(metric, model)
        if {"chain_rule", "forward_only"} <= set(wide):
            models.append((wide["chain_rule"] - wide["forward_only"]).rename(model).dropna())
    models = [one for one in models if len(one) >= FEW]
    if not models:
        return Evidence(Verdict.NOT_TESTED, "", 0, f"`chain_rule` and `forward_only` of one model, {FEW} seeds")
    together = pd.concat(models, axis=1).dropna()
    test = paired_test(together.mean(axis=1), study.margin)
    each = "; ".join(f"{one.name} {number(paired_test(one, study.margin))}" for one in models)
    said = f"mean over {', '.join(str(one.name) for one in models)}: {number(test)}" + (
        f"; {each}" if len(models) > 1 else ""
    )
    if test.n < FEW or math.isnan(test.low):
        return Evidence(Verdict.OPEN, said, test.n)
    if not test.low <= PAPER_COST <= test.high:
        return Evidence(Verdict.NOT_HELD, said, test.n)
    small = -study.margin < test.low and test.high < 0
    return Evidence(Verdict.HELD if small else Verdict.OPEN, said, test.n)


def _rows(study: Study, metric: str, model: str, recipes: list[str]) -> list[pd.Series]:
    return [row for recipe in recipes if (row := study.test(metric, model, recipe)) is not None]


def _turned(test: PairedTest) -> PairedTest:
    return replace(test, mean=-test.mean, low=-test.high, high=-test.low)


def _shape(part: BalancedPart) -> str:
    words = {"arch": "architecture", "scale": "scale", "recipe": "recipe"}
    return " x ".join(f"{len(n)} {words[factor]}{'s' if len(n) != 1 else ''}" for factor, n in part.levels.items())


def _without(part: BalancedPart, seed: int) -> float:
    fewer = replace(
        part,
        seeds=[s for at, s in enumerate(part.seeds) if at != seed],
        values=np.delete(part.values, seed, axis=-1),
    )
    shares = beyond_chance(fewer)
    return shares["arch"] - shares["recipe"]
