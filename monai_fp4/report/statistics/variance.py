"""Analyse the variance of a metric: the shares of architecture, scale, recipe, their interactions and the seed.

Shares of variance (eta squared) are unambiguous where the design is balanced: every combination of the levels has the
same seeds. A study rarely is, at first; so the largest balanced part is found and analysed, and what had to be left
out is named.

The design is a split plot. A seed of one model (architecture and scale) is a plot, on which every recipe is tried once:
that is what pairs the recipes. So the effects without the recipe are tested against the variation of seeds within
models, and those with it against what then remains. In a balanced design all these parts are orthogonal and add up to
the whole.

With one seed there is no variation to test against: the shares are given, with the highest interaction as the
remainder, and no p.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

__all__ = ["BalancedPart", "analyse_variance", "balanced_part", "beyond_chance"]

PLOT_ERROR, RESIDUAL = "seed within model", "remainder (recipe x seed)"
_MOST_SUBSETS = 20_000


@dataclass(frozen=True)
class BalancedPart:
    """The largest balanced part of a table.

    Attributes:
        levels: factor -> its levels in the part, in order; only factors with two levels or more vary.
        seeds: seeds that every combination has.
        values: the metric, one axis a factor in the order of `levels`, seeds last.
        left_out: factor -> levels that the table holds and the part does not; the same under `seed`.
    """

    levels: dict[str, list[str]]
    seeds: list[int]
    values: NDArray[np.float64]
    left_out: dict[str, list[str]]


def balanced_part(table: pd.DataFrame, factors: Sequence[str], value: str) -> BalancedPart | None:
    """Find the largest part in which every combination of levels has the same seeds.

    Args:
        table: one row a cell, with `factors`, `seed` and the value; rows without a value are ignored.
        factors: columns, `recipe` the last.
        value: column.

    Returns:
        The part with the most cells, that with more levels among equal ones; None where no two factors have two levels.
    """
    known = table.dropna(subset=[value])
    *others, last = factors
    seeds: dict[tuple[tuple[str, ...], str], frozenset[int]] = {}
    for key, group in known.groupby([*others, last], sort=False):
        seeds[key[:-1], key[-1]] = frozenset(int(s) for s in group["seed"])
    levels = {factor: list(dict.fromkeys(known[factor])) for factor in factors}
    best: tuple[tuple[int, int], list[list[str]], frozenset[int]] | None = None
    for chosen in itertools.islice(itertools.product(*(_subsets(levels[f]) for f in others)), _MOST_SUBSETS):
        plots = list(itertools.product(*chosen))
        common = {r: frozenset.intersection(*(seeds.get((p, r), frozenset()) for p in plots)) for r in levels[last]}
        sets = {s for s in common.values() if s}
        # Any optimum shares the intersection of some recipes' seeds; those of one or two recipes are tried.
        for wanted in {a & b for a in sets for b in sets} - {frozenset()}:
            recipes = [r for r in levels[last] if wanted <= common[r]]
            part = [*(list(c) for c in chosen), recipes]
            score = (len(plots) * len(recipes) * len(wanted), sum(len(c) > 1 for c in part))
            if score[1] >= 2 and (best is None or score > best[0]):
                best = (score, part, wanted)
    if best is None:
        return None
    found, common_seeds = dict(zip(factors, best[1], strict=True)), sorted(best[2])
    at = known.set_index([*factors, "seed"])[value].to_dict()
    shape = [len(found[f]) for f in factors]
    values = np.array([at[*key, s] for key in itertools.product(*found.values()) for s in common_seeds], np.float64)
    left = {f: [v for v in levels[f] if v not in found[f]] for f in factors}
    left["seed"] = [str(s) for s in sorted({int(s) for s in known["seed"]} - set(common_seeds))]
    return BalancedPart(found, common_seeds, values.reshape(*shape, len(common_seeds)), left)


def analyse_variance(part: BalancedPart) -> pd.DataFrame:
    """Split the variance of a balanced part.

    Returns:
        One row a source: `source`, `df`, `sum_of_squares`, `eta_squared` (its share of the whole, the shares add up to
        1), `f` and `p` (NaN where there is nothing to test against).
    """
    factors = [f for f, levels in part.levels.items() if len(levels) > 1]
    keep = tuple(i for i, levels in enumerate(part.levels.values()) if len(levels) > 1)
    drop = tuple(i for i in range(len(part.levels)) if i not in keep)
    values = part.values.squeeze(axis=drop) if drop else part.values
    n = len(factors)
    squares = {subset: _square(values, subset) for k in range(n + 1) for subset in itertools.combinations(range(n), k)}
    rows: list[dict[str, object]] = []
    for size in range(1, n + 1):
        for subset in itertools.combinations(range(n), size):
            # Inclusion and exclusion: the sum of squares of the means, less that of every smaller effect within.
            parts = (c for k in range(size + 1) for c in itertools.combinations(subset, k))
            effect = sum((-1) ** (size - len(c)) * squares[c] for c in parts)
            df = math.prod(values.shape[i] - 1 for i in subset)
            rows.append(
                {"source": " x ".join(factors[i] for i in subset), "df": df, "sum_of_squares": max(effect, 0.0)}
            )
    seeds = values.shape[-1]
    total = float(((values - values.mean()) ** 2).sum())
    if seeds > 1:
        split = "recipe" in factors
        plots = values.mean(axis=n - 1) if split else values
        recipes = values.shape[n - 1] if split else 1
        plot_error = float(((plots - plots.mean(axis=-1, keepdims=True)) ** 2).sum()) * recipes
        plot_df = (plots.size // seeds) * (seeds - 1)
        rows.append({"source": PLOT_ERROR, "df": plot_df, "sum_of_squares": plot_error})
        if split:
            explained = sum(float(str(row["sum_of_squares"])) for row in rows)
            rows.append(
                {"source": RESIDUAL, "df": plot_df * (recipes - 1), "sum_of_squares": max(total - explained, 0.0)}
            )
    table = pd.DataFrame(rows)
    table["eta_squared"] = table["sum_of_squares"] / total if total else math.nan
    table["f"], table["p"] = math.nan, math.nan
    if seeds > 1:
        known, error = table.set_index("source"), table["source"].map(_error_of)
        mean_squares = known["sum_of_squares"] / known["df"]
        against = error.map(mean_squares)
        tested = ~table["source"].isin([PLOT_ERROR, RESIDUAL]) & (against > 0)
        table["f"] = (mean_squares.to_numpy() / against).where(tested)
        table["p"] = stats.f.sf(table["f"], table["df"], error.map(known["df"]))
    return table


def beyond_chance(part: BalancedPart) -> dict[str, float]:
    """Share of the variance of each source beyond what chance alone would give it: omega squared.

    Eta squared grows with a factor's degrees of freedom even where the factor does nothing, so a factor of ten levels
    looks larger than one of three. Here ``df`` times the mean square that the source is tested against is taken off
    first; the share of a source without effect is around 0, on either side.

    Args:
        part: with two seeds or more.

    Returns:
        Source -> share, without the two sources of error.
    """
    table = analyse_variance(part).set_index("source")
    effects = table.drop(index=[PLOT_ERROR, RESIDUAL], errors="ignore")
    error = table.loc[effects.index.map(_error_of)].set_axis(effects.index)
    chance = effects["df"] * error["sum_of_squares"] / error["df"]
    shares = (effects["sum_of_squares"] - chance) / table["sum_of_squares"].sum()  # NaN where nothing varies
    return {str(source): float(share) for source, share in shares.items()}


def _error_of(source: str) -> str:
    """The source of error that an effect is tested against."""
    return RESIDUAL if "recipe" in source.split(" x ") else PLOT_ERROR


def _square(values: NDArray[np.float64], subset: tuple[int, ...]) -> float:
    """Sum over all values of the squared mean over what is not in the subset, about the grand mean."""
    axes = tuple(i for i in range(values.ndim) if i not in subset)
    means = values.mean(axis=axes) - values.mean()
    return float((np.asarray(means) ** 2).sum()) * math.prod(values.shape[i] for i in axes)


def _subsets(levels: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty subset, the largest first, each in the given order."""
    return [c for k in range(len(levels), 0, -1) for c in itertools.combinations(levels, k)]
