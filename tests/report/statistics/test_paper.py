"""The paper's statistics on its own published numbers, and their floor."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from synthetic_study import definition, tables_of

from monai_fp4.report.statistics import (
    PUBLISHED,
    against_baseline,
    agreement,
    as_the_paper_tests,
    kendall_w,
    pair_tests,
    paired,
    paired_test,
    smallest_p,
)


def folds(*names: tuple[str, str]) -> dict[str, dict[int, float]]:
    return {"/".join(name): dict(enumerate(PUBLISHED[name])) for name in names}


@pytest.mark.parametrize(
    ("first", "second", "mean", "sd", "p"),
    [
        (("paper_swin", "bf16"), ("paper_swin", "sr_rht_2d"), 0.0070, 0.0334, 1.0),
        (("paper_cnn", "bf16"), ("paper_cnn", "sr_rht_2d"), -0.0217, 0.0580, 1.0),
        (("paper_cnn", "bf16"), ("paper_swin", "bf16"), 0.0456, None, 0.19),
        (("paper_cnn", "sr_rht_2d"), ("paper_swin", "sr_rht_2d"), 0.0743, None, 0.31),
    ],
)
def test_published_folds(
    first: tuple[str, str], second: tuple[str, str], mean: float, sd: float | None, p: float
) -> None:
    (test,) = pair_tests(folds(first, second)).values()
    assert (test.n, test.floor) == (5, 0.0625)
    assert test.mean == pytest.approx(mean, abs=5e-5) and test.p == test.p_holm == pytest.approx(p, abs=5e-3)
    if sd is not None:
        assert test.cohens_d == pytest.approx(mean / sd, rel=1e-2)


def test_published_means_and_deviations() -> None:
    found = [(round(np.mean(v), 4), round(np.std(v, ddof=1), 4)) for v in PUBLISHED.values()]
    assert found == [(0.7925, 0.0792), (0.7995, 0.0681), (0.7469, 0.0645), (0.7252, 0.0938)]


def test_ten_seeds_and_eight_recipes_cannot_be_significant() -> None:
    # Every seed orders the recipes alike: the clearest study that there can be.
    scores = {f"r{k}": {seed: 0.1 * k + 0.001 * seed * (k + 1) for seed in range(10)} for k in range(8)}
    tests = pair_tests(scores)
    assert len(tests) == 28 and all(test.p == round(smallest_p(10), 6) for test in tests.values())
    assert min(test.p_holm for test in tests.values()) == pytest.approx(0.0547, abs=1e-4)
    assert {round(test.floor, 4) for test in tests.values()} == {0.0547}


def test_pairs_are_of_common_seeds_and_at_least_three() -> None:
    scores = {"a": {0: 0.1, 1: 0.2, 2: 0.3}, "b": {1: 0.5, 2: 0.7, 3: 0.1}, "c": {0: 0.1, 1: 0.2, 2: 0.3, 4: 9.0}}
    tests = pair_tests(scores)
    assert list(tests) == [("a", "c")]
    assert tests["a", "c"].p == 1.0 and math.isnan(tests["a", "c"].cohens_d), "no difference at all"


def test_corrected_values_are_holms() -> None:
    random = np.random.default_rng(0)
    scores = {name: dict(enumerate(random.normal(mean, 1, 8))) for name, mean in zip("abcd", (0, 1, 2, 3), strict=True)}
    tests = list(pair_tests(scores).values())
    ordered = sorted(tests, key=lambda test: test.p)
    expected, largest = [], 0.0
    for rank, test in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * test.p))
        expected.append(largest)
    assert [test.p_holm for test in ordered] == pytest.approx(expected)
    assert all(low <= high for low, high in pairwise(expected))


def test_concordance_is_the_friedman_statistic_scaled() -> None:
    scores = np.random.default_rng(1).normal(size=(6, 5)) + np.arange(5)
    friedman = stats.friedmanchisquare(*scores.T).statistic
    assert kendall_w(scores.tolist()) == pytest.approx(friedman / (6 * 4))
    assert math.isnan(kendall_w([[1.0]])) and math.isnan(kendall_w([]))


def test_a_study_is_tested_as_the_paper_does_beside_our_own_tests() -> None:
    grid = definition(archs=("unet",), recipes={name: name for name in ("bf16", "full", "sr")}, seeds=tuple(range(6)))
    tables = tables_of(grid, lambda cell: 0.0 if cell.recipe == "bf16" else -0.03)
    table = as_the_paper_tests(tables, 0.01).set_index(["recipe", "other"])
    assert set(table.index) == {("bf16", "full"), ("bf16", "sr"), ("full", "sr")} and set(table["n"]) == {6}
    row, wide = table.loc["bf16", "full"], tables.cells.pivot(index="seed", columns="recipe", values="auprc")
    difference = wide["full"] - wide["bf16"]
    assert row["p"] == pytest.approx(stats.wilcoxon(difference).pvalue, abs=1e-6)
    assert row["cohens_d"] == pytest.approx(difference.mean() / difference.std())
    assert row["floor"] == pytest.approx(3 * 2 / 2**6) and row["p_holm"] >= row["floor"]
    ours = paired_test(difference, 0.01)
    assert (row["low"], row["high"], row["p_t"]) == pytest.approx((ours.low, ours.high, ours.p))
    (w,) = agreement(tables).itertuples()
    assert (w.n, w.recipes, w.w) == (6, 3, pytest.approx(kendall_w(wide[["bf16", "full", "sr"]].to_numpy())))
    assert w.word == "strong" and w.w > 0.7


def test_folds_are_the_pairs_where_there_is_one_seed() -> None:
    grid = definition(archs=("unet",), recipes={"bf16": "bf16", "sr": "sr"}, seeds=(0,), folds=(0, 1, 2, 3))
    tables = tables_of(grid, lambda cell: 0.0)
    (row,) = as_the_paper_tests(tables, 0.01).itertuples()
    assert (row.unit, row.n) == ("folds", 4)
    wide = tables.cells.pivot(index="fold", columns="recipe", values="auprc")
    ours = paired_test(wide["sr"] - wide["bf16"], 0.01, overlap=18 / 70)
    assert (row.low, row.high) == pytest.approx((ours.low, ours.high)), "raised for the patients that folds share"
    assert as_the_paper_tests(tables_of(definition(seeds=(0, 1)), lambda cell: 0.0), 0.01).empty


def test_a_holdout_is_no_further_fold_since_it_shares_its_patients() -> None:
    grid = definition(archs=("unet",), recipes={"bf16": "bf16", "sr": "sr"}, seeds=(0,), folds=("holdout", 0, 1, 2))
    tables = tables_of(grid, lambda cell: 0.0)
    (row,) = as_the_paper_tests(tables, 0.01).itertuples()
    ours = against_baseline(tables, paired(tables, ("auprc",))).iloc[0]
    assert (row.unit, row.n) == (ours["unit"], ours["n"]) == ("folds", 3)
    alone = tables_of(definition(folds=("holdout",)), lambda cell: 0.0)
    assert set(against_baseline(alone, paired(alone, ("auprc",)))["unit"]) == {"seeds of fold holdout"}
