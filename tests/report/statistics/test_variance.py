"""Shares of variance, against nested least-squares fits and against effects that were put in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from monai_fp4.report.statistics import analyse_variance, balanced_part
from monai_fp4.report.statistics.variance import PLOT_ERROR, RESIDUAL

FACTORS = ["arch", "scale", "recipe"]


def table(
    archs: Sequence[str] = "ab", scales: Sequence[str] = "xyz", recipes: Sequence[str] = "pqr", seeds: int = 4
) -> pd.DataFrame:
    """Numbers with an effect of architecture, one of recipe within the first architecture, seeds and noise."""
    random = np.random.default_rng(0)
    plots = {key: random.normal(0, 0.5) for key in itertools.product(archs, scales, range(seeds))}
    rows = []
    for arch, scale, recipe, seed in itertools.product(archs, scales, recipes, range(seeds)):
        value = 3 * archs.index(arch) - 2 * (arch == archs[0]) * recipes.index(recipe) + plots[arch, scale, seed]
        rows.append({"arch": arch, "scale": scale, "recipe": recipe, "seed": seed, "y": value + random.normal(0, 0.2)})
    return pd.DataFrame(rows)


def residual_squares(frame: pd.DataFrame, terms: Sequence[Sequence[str]]) -> float:
    """Of the least-squares fit with a column for every combination of levels of every term: no balance is needed."""
    columns = [np.ones(len(frame))]
    for term in terms:
        keys = frame[list(term)].astype(str).agg("|".join, axis=1)
        columns += [(keys == key).to_numpy(float) for key in keys.unique()]
    design = np.stack(columns, axis=1)
    fit = design @ np.linalg.lstsq(design, frame["y"].to_numpy(), rcond=None)[0]
    return float(((frame["y"] - fit) ** 2).sum())


def test_shares_are_those_of_nested_fits_and_add_up() -> None:
    frame = table()
    part = balanced_part(frame, FACTORS, "y")
    assert part is not None and not any(part.left_out.values())
    result = analyse_variance(part).set_index("source")
    assert result["eta_squared"].sum() == pytest.approx(1)
    terms: list[tuple[str, ...]] = []
    before = residual_squares(frame, [])
    for size in (1, 2, 3):
        for term in itertools.combinations(FACTORS, size):
            terms.append(term)
            after = residual_squares(frame, terms)
            assert result.loc[" x ".join(term), "sum_of_squares"] == pytest.approx(before - after, abs=1e-8)
            before = after
    after = residual_squares(frame, [*terms, ("arch", "scale", "seed")])
    assert result.loc[PLOT_ERROR, "sum_of_squares"] == pytest.approx(before - after, abs=1e-8)
    assert result.loc[RESIDUAL, "sum_of_squares"] == pytest.approx(after, abs=1e-8)
    assert result["df"].sum() == len(frame) - 1


def test_each_effect_is_tested_against_its_own_error() -> None:
    result = analyse_variance(balanced_part(table(), FACTORS, "y")).set_index("source")
    mean = result["sum_of_squares"] / result["df"]
    assert result.loc["arch", "f"] == pytest.approx(mean["arch"] / mean[PLOT_ERROR])
    assert result.loc["arch x recipe", "f"] == pytest.approx(mean["arch x recipe"] / mean[RESIDUAL])
    assert result.loc[["arch", "recipe", "arch x recipe"], "p"].max() < 1e-6
    assert result.loc[["scale x recipe", "arch x scale x recipe"], "p"].min() > 0.01
    assert result.loc[[PLOT_ERROR, RESIDUAL], "p"].isna().all()


def test_the_largest_balanced_part_is_found_and_the_rest_is_named() -> None:
    frame = table()
    gone = ((frame["arch"] == "b") & (frame["scale"] == "z")) | ((frame["recipe"] == "q") & (frame["seed"] == 3))
    part = balanced_part(frame.mask(gone).dropna(subset=["recipe"]).astype({"seed": int}), FACTORS, "y")
    assert part is not None
    # Without scale z: 2 x 2 x 3 recipes x 3 seeds = 36, or 2 recipes x 4 seeds = 32; without arch b: 1 x 3 x 3 x 3.
    assert part.levels == {"arch": ["a", "b"], "scale": ["x", "y"], "recipe": ["p", "q", "r"]}
    assert part.seeds == [0, 1, 2]
    assert part.left_out == {"arch": [], "scale": ["z"], "recipe": [], "seed": ["3"]}


def test_values_that_are_missing_do_not_count_as_cells() -> None:
    frame = table(seeds=2)
    frame.loc[frame["recipe"] == "r", "y"] = math.nan
    part = balanced_part(frame, FACTORS, "y")
    assert part is not None and part.levels["recipe"] == ["p", "q"]


def test_one_seed_gives_shares_and_no_p() -> None:
    part = balanced_part(table(seeds=1), FACTORS, "y")
    assert part is not None
    result = analyse_variance(part)
    assert result["eta_squared"].sum() == pytest.approx(1)
    assert result["p"].isna().all() and PLOT_ERROR not in set(result["source"])


def test_a_factor_with_one_level_is_left_out() -> None:
    part = balanced_part(table(scales="x"), FACTORS, "y")
    assert part is not None
    sources = list(analyse_variance(part)["source"])
    assert sources == ["arch", "recipe", "arch x recipe", PLOT_ERROR, RESIDUAL]


def test_one_recipe_alone_is_tested_against_seeds() -> None:
    part = balanced_part(table(recipes="p"), FACTORS, "y")
    assert part is not None
    result = analyse_variance(part).set_index("source")
    assert RESIDUAL not in result.index and result.loc["arch", "p"] < 1e-6
    assert result["eta_squared"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "frame", [table(archs="a", scales="x"), table().iloc[:0], table(archs="a", recipes="p").head(1)]
)
def test_nothing_to_cross_gives_nothing(frame: pd.DataFrame) -> None:
    assert balanced_part(frame, FACTORS, "y") is None
