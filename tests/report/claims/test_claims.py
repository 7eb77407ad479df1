"""The paper's claims: studies in which each is true, false, too noisy to tell, or not there to be tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_study import definition, tables_of

from monai_fp4.quantization import RECIPES
from monai_fp4.report.claims import CLAIMS, State, Study, Verdict, judge_claims
from monai_fp4.report.statistics import against_baseline, analyse_variance, balanced_part, beyond_chance, paired
from monai_fp4.report.tables import StudyTables
from monai_fp4.study.layout import Cell, StudyDefinition

HELD, NOT_HELD, OPEN, NOT_TESTED = Verdict.HELD, Verdict.NOT_HELD, Verdict.OPEN, Verdict.NOT_TESTED
SMALL = ("bf16", "full", "forward_only", "chain_rule", "sr", "sr_rht_2d")
ADVANCED = {name for name, r in RECIPES.items() if r.stochastic_rounding or r.hadamard or r.two_d_weights}
QUIET, NOISY = 0.0005, 0.05


def study(recipes: Mapping[str, Any] | None = None, **changes: Any) -> StudyDefinition:
    """Three architectures at 500k, six recipes, five seeds, unless changed."""
    given = recipes or {name: name for name in SMALL}
    return definition(**{"archs": ("unet", "swin", "vit"), "recipes": given, "seeds": tuple(range(5))} | changes)


def with_attention(**changes: Any) -> StudyDefinition:
    names = ("full", "forward_only", "sr", "sr_rht_2d")
    fp4: dict[str, Any] = {f"{name}+attention": {"base": name, "attention": "fp4"} for name in names}
    return study(**{"archs": ("swin", "vit"), "recipes": {"bf16": "bf16"} | fp4} | changes)


def judged(tables: StudyTables, *names: str) -> dict[str, pd.Series]:
    """Claim -> its row; recall and AUPRC have the same effects here, so they must be judged alike."""
    pairs = paired(tables, ("recall", "auprc"))
    comparisons = against_baseline(tables, pairs)
    rows = judge_claims(
        tables, pairs, comparisons, 0.01, [claim for claim in CLAIMS if not names or claim.name in names]
    )
    found = {}
    for name, own in rows.groupby("claim"):
        assert own["verdict"].nunique() == 1, f"{name}: {list(own['verdict'])}"
        found[str(name)] = own.iloc[-1]
    return found


def verdict(name: str, tables: StudyTables) -> Verdict:
    return Verdict(judged(tables, name)[name]["verdict"])


def nothing(cell: Cell) -> float:
    return 0.0


def of_arch(cell: Cell) -> float:
    return 0.0 if cell.recipe == "bf16" else {"unet": -0.05, "swin": 0.0, "vit": -0.02}[cell.arch]


def of_recipe(cell: Cell) -> float:
    return -0.01 * SMALL.index(cell.recipe)


@pytest.mark.parametrize(
    ("effect", "noise", "expected"),
    [(of_arch, QUIET, HELD), (of_recipe, QUIET, NOT_HELD), (nothing, QUIET, OPEN), (of_arch, NOISY, OPEN)],
)
def test_architecture_over_recipe(effect: Callable[[Cell], float], noise: float, expected: Verdict) -> None:
    assert verdict("architecture over recipe", tables_of(study(), effect, noise=noise)) is expected


def test_each_metric_is_judged_by_its_own_numbers() -> None:
    """The architecture decides AUPRC here, and the recipe recall."""
    tables, other = (tables_of(study(), effect, noise=QUIET) for effect in (of_arch, of_recipe))
    tables = replace(tables, cells=tables.cells.assign(recall=other.cells["recall"]))
    pairs = paired(tables, ("recall", "auprc"))
    rows = judge_claims(tables, pairs, against_baseline(tables, pairs), 0.01, CLAIMS[:1]).set_index("metric")
    assert (rows.loc["recall", "verdict"], rows.loc["auprc", "verdict"]) == (NOT_HELD, HELD)
    part = balanced_part(pairs[pairs["metric"] == "auprc"].query("recipe != 'bf16'"), ["arch", "recipe"], "difference")
    assert part is not None
    shares = beyond_chance(part)
    percent = {name: f"{100 * share:.0f} %" for name, share in shares.items()}
    said = f"architecture {percent['arch']} of the variance (p < 0.001), recipe {percent['recipe']}"
    assert rows.loc["auprc", "numbers"].startswith(said)


@pytest.mark.parametrize(
    "changes",
    [
        {"archs": ("unet",)}, {"seeds": (0, 1)}, {"recipes": {"sr": "sr"}},
        {"archs": ("unet",), "scales": ("500k", "4m")},
        {"recipes": {"bf16": "bf16", "sr": "sr"}, "scales": ("500k", "4m")},
    ],
)  # fmt: skip
def test_architecture_over_recipe_needs_both_and_three_seeds(changes: dict[str, Any]) -> None:
    found = judged(tables_of(study(**changes), of_arch, noise=QUIET), "architecture over recipe")[
        "architecture over recipe"
    ]
    assert (found["verdict"], found["n"], found["numbers"]) == (NOT_TESTED, 0, "") and found["missing"]


def test_a_factor_of_many_levels_gets_no_share_from_chance() -> None:
    """Eta squared of ten levels of nothing is large, its share beyond chance is 0 on average."""
    random, eta, omega = np.random.default_rng(0), [], []
    for _ in range(40):
        rows = [
            {"arch": a, "recipe": str(r), "seed": s, "v": random.normal()}
            for a in "ab"
            for r in range(10)
            for s in range(3)
        ]
        part = balanced_part(pd.DataFrame(rows), ["arch", "recipe"], "v")
        assert part is not None
        eta.append(analyse_variance(part).set_index("source").loc["recipe", "eta_squared"])
        omega.append(beyond_chance(part)["recipe"])
    assert np.mean(eta) > 0.12 and abs(np.mean(omega)) < 0.03


def loss_of(arch: str, recipe: str, size: float, scale: str | None = None) -> Callable[[Cell], float]:
    def effect(cell: Cell) -> float:
        return -size if (cell.arch, cell.recipe) == (arch, recipe) and scale in (None, cell.scale) else 0.0

    return effect


@pytest.mark.parametrize(
    ("effect", "noise", "expected"),
    [
        (nothing, QUIET, HELD),
        (loss_of("vit", "sr", 0.05), QUIET, NOT_HELD),
        (loss_of("unet", "sr", 0.05), QUIET, HELD),  # not a network with attention
        (loss_of("swin", "full", 0.004), QUIET, HELD),  # lost, and less than the margin
        (nothing, NOISY, OPEN),  # no difference, and no power
    ],
)
def test_attention_is_resilient(effect: Callable[[Cell], float], noise: float, expected: Verdict) -> None:
    assert verdict("attention is resilient", tables_of(study(), effect, noise=noise)) is expected


def test_the_numbers_count_and_name_the_lowest() -> None:
    row = judged(tables_of(study(), loss_of("vit", "sr", 0.05), noise=QUIET))["attention is resilient"]
    assert row["numbers"].startswith(
        "9 of 10 exclude a loss of 0.01, 1 lose; lowest vit 500k sr -0.0498 (95 % from -0.0510 "
    )
    few = judged(tables_of(study(), nothing, done=lambda c: c.arch == "swin" or c.seed < 2))["attention is resilient"]
    assert few["missing"] == "fewer than 3 pairs of " + ", ".join(f"vit 500k {name}" for name in SMALL[1:])
    both = judged(tables_of(study(), nothing, done=lambda c: c.arch == "unet" or c.seed < 2))["attention is resilient"]
    assert both["missing"].endswith("vit 500k full and 4 more")


def test_resilience_needs_both_networks_but_one_loss_refutes_it() -> None:
    name, only_swin = "attention is resilient", study(archs=("swin", "unet"))
    found = judged(tables_of(only_swin, nothing, noise=QUIET))[name]
    assert found["verdict"] == NOT_TESTED and "vit" in found["missing"] and found["n"] == 5
    assert verdict(name, tables_of(only_swin, loss_of("swin", "sr", 0.05), noise=QUIET)) is NOT_HELD


def test_a_partial_grid_leaves_resilience_open_and_says_what_is_missing() -> None:
    def done(cell: Cell) -> bool:
        return (cell.arch, cell.recipe) != ("vit", "sr") or cell.seed < 2

    found = judged(tables_of(study(), nothing, noise=QUIET, done=done))["attention is resilient"]
    assert found["verdict"] == OPEN and found["missing"] == "fewer than 3 pairs of vit 500k sr"


def test_one_recipe_is_no_choice_of_recipes() -> None:
    tables = tables_of(study(recipes={"bf16": "bf16", "sr": "sr"}), nothing, noise=QUIET)
    assert verdict("attention is resilient", tables) is NOT_TESTED


def test_two_seeds_test_nothing() -> None:
    rows = judged(tables_of(study(seeds=(0, 1)), nothing, noise=QUIET))
    assert {row["verdict"] for row in rows.values()} == {NOT_TESTED}


@pytest.mark.parametrize(
    ("effect", "noise", "expected"),
    [
        (loss_of("unet", "full", 0.05, "15m"), QUIET, HELD),
        (loss_of("unet", "full", 0.05, "500k"), QUIET, NOT_HELD),  # only where the claim does not look
        (nothing, QUIET, NOT_HELD),
        (loss_of("unet", "sr", 0.05), QUIET, OPEN),  # the plain recipe holds, another one loses
        (loss_of("unet", "forward_only", 0.05), QUIET, NOT_HELD),  # whose gradients are not quantized
        (nothing, NOISY, OPEN),
    ],
)
def test_cnn_loses_at_scale(effect: Callable[[Cell], float], noise: float, expected: Verdict) -> None:
    grid = study(archs=("unet",), scales=("500k", "4m", "15m"))
    assert verdict("CNN loses at scale", tables_of(grid, effect, noise=noise)) is expected


def test_claims_about_larger_scales_are_not_tested_at_one() -> None:
    rows = judged(tables_of(study(), loss_of("unet", "full", 0.05), noise=QUIET))
    for name in ("CNN loses at scale", "advanced recipes reduce the loss", "Swin at every scale"):
        assert rows[name]["verdict"] == NOT_TESTED, name
    assert rows["CNN loses at scale"]["missing"] == "unet at 4m; unet at 15m"
    assert rows["CNN loses at scale"]["numbers"].startswith("not about it: unet 500k full -0.05")


def test_pairs_that_are_too_few_are_not_mistaken_for_the_small_network() -> None:
    grid = study(archs=("unet",), scales=("500k", "4m"))
    tables = tables_of(grid, nothing, done=lambda cell: cell.scale == "500k" or cell.seed < 2)
    row = judged(tables, "CNN loses at scale")["CNN loses at scale"]
    assert row["verdict"] == NOT_TESTED and "unet 500k full" in row["numbers"] and "4m" not in row["numbers"]


def test_one_larger_scale_can_show_the_loss_but_not_refute_it() -> None:
    grid = study(archs=("unet",), scales=("500k", "4m"))
    assert verdict("CNN loses at scale", tables_of(grid, loss_of("unet", "full", 0.05), noise=QUIET)) is HELD
    assert verdict("CNN loses at scale", tables_of(grid, nothing, noise=QUIET)) is OPEN


def mended(share: float) -> Callable[[Cell], float]:
    """`full` loses 0.06 at 15m; advanced recipes get a share of it back."""

    def effect(cell: Cell) -> float:
        if cell.scale != "15m" or not (cell.recipe == "full" or cell.recipe in ADVANCED):
            return 0.0
        return -0.06 * (1 - (share if cell.recipe in ADVANCED else 0.0))

    return effect


@pytest.mark.parametrize(
    ("effect", "noise", "expected"),
    [
        (mended(0.8), QUIET, HELD),
        (mended(0.0), QUIET, NOT_HELD),
        (mended(-0.5), QUIET, NOT_HELD),  # they lose more than the plain recipe
        (mended(0.0), 0.012, OPEN),
        (nothing, QUIET, OPEN),  # no loss, so nothing to reduce
    ],
)
def test_advanced_recipes_reduce_the_loss(effect: Callable[[Cell], float], noise: float, expected: Verdict) -> None:
    grid = study(archs=("unet",), scales=("500k", "15m"))
    assert verdict("advanced recipes reduce the loss", tables_of(grid, effect, noise=noise)) is expected


PLAIN = ("full", "forward_only")


def levels(plain: float, advanced: float, spread: float = 0.02, fp4: bool = False) -> Callable[[Cell], float]:
    """Distinct probabilities under FP4, inside attention or around it alone."""

    def count(cell: Cell) -> float:
        share, name = 1.0, cell.recipe.removesuffix("+attention")
        if cell.recipe.endswith("+attention") is fp4 and name not in ("bf16", "chain_rule"):
            share = plain if name in PLAIN else advanced
        seed = list(repr(cell.id).encode())
        return float(round(100_000 * share * np.exp(np.random.default_rng(seed).normal(0, spread))))

    return count


@pytest.mark.parametrize("fp4", [False, True])
@pytest.mark.parametrize(
    ("count", "discretized", "prevented"),
    [
        ((0.003, 0.9), HELD, HELD),
        ((0.003, 0.004), HELD, NOT_HELD),
        ((0.003, 0.3), HELD, OPEN),
        ((0.95, 0.95), NOT_HELD, OPEN),  # no collapse, so nothing to prevent
        ((0.2, 0.9), OPEN, OPEN),
        ((0.03, 0.9, 2.0), OPEN, OPEN),
    ],
)
def test_the_collapse_of_small_networks_with_attention(
    count: tuple[float, ...], discretized: Verdict, prevented: Verdict, fp4: bool
) -> None:
    """With attention products in high precision, as the paper has them; in FP4 the same question is ours."""
    asked = ("attention collapses", "advanced recipes prevent it")
    ours = ("FP4 inside attention (ours)", "advanced recipes prevent that (ours)")
    rows = judged(tables_of(with_attention() if fp4 else study(), nothing, levels=levels(*count, fp4=fp4)))
    assert [rows[name]["verdict"] for name in (ours if fp4 else asked)] == [discretized, prevented]
    assert {rows[name]["verdict"] for name in (asked if fp4 else ours)} == {NOT_TESTED}


def test_consistent_gradients_are_not_a_plain_recipe() -> None:
    count = lambda c: 300.0 if c.recipe == "chain_rule" else 9e4  # noqa: E731
    assert verdict("attention collapses", tables_of(study(), nothing, levels=count)) is NOT_HELD


def test_the_paper_s_own_networks_are_judged_where_a_study_has_them() -> None:
    grid = study(archs=("paper_cnn", "paper_swin", "paper_vit", "swin"))
    rows = judged(tables_of(grid, nothing, levels=levels(0.003, 0.9), noise=QUIET))
    assert rows["attention collapses"]["numbers"].startswith("paper_swin 500k full has")
    assert "; swin 500k" not in rows["attention collapses"]["numbers"]
    assert rows["attention is resilient"]["verdict"] == HELD and "paper_" in rows["attention is resilient"]["numbers"]
    assert rows["CNN loses at scale"]["missing"] == "paper_cnn at 4m; paper_cnn at 15m"


def test_the_paper_s_seventh_recipe_is_one_that_attention_may_take() -> None:
    given = {name: name for name in (*SMALL, "forward_rht")}
    lost = loss_of("swin", "forward_rht", 0.05)
    assert verdict("attention is resilient", tables_of(study(recipes=given), lost, noise=QUIET)) is NOT_HELD


def test_the_same_count_every_time_is_a_result() -> None:
    tables = tables_of(study(), nothing, levels=lambda c: 100.0 if c.recipe in PLAIN else 1e5)
    assert verdict("attention collapses", tables) is HELD


def test_one_network_or_recipe_can_show_the_collapse_but_not_refute_it() -> None:
    swin, full = study(archs=("swin",)), study(recipes={name: name for name in ("bf16", "full", "sr")})
    for grid, missing in ((swin, "vit at 500k"), (full, "`full` and `forward_only` both")):
        assert verdict("attention collapses", tables_of(grid, nothing, levels=levels(0.01, 0.9))) is HELD
        row = judged(tables_of(grid, nothing, levels=levels(0.9, 0.9)), "attention collapses")["attention collapses"]
        assert (row["verdict"], row["missing"]) == (OPEN, missing)


@pytest.mark.parametrize(
    ("effect", "noise", "expected"),
    [
        (loss_of("unet", "full", 0.05), QUIET, HELD),
        (nothing, QUIET, NOT_HELD),  # the CNN does not lose at 4m and 15m
        (nothing, NOISY, OPEN),
    ],
)
def test_five_folds_confirm(effect: Callable[[Cell], float], noise: float, expected: Verdict) -> None:
    grid = study(scales=("4m", "15m"), folds=(0, 1, 2, 3, 4), seeds=(0,))
    assert verdict("five folds confirm", tables_of(grid, effect, noise=noise)) is expected


@pytest.mark.parametrize("folds", [(0, 1, 2, 3), (0, 1, 2, 3, "holdout")])
def test_four_folds_confirm_nothing(folds: tuple[int | str, ...]) -> None:
    grid = study(scales=("4m",), folds=folds, seeds=(0,))
    found = judged(tables_of(grid, nothing, noise=QUIET))["five folds confirm"]
    assert found["verdict"] == NOT_TESTED and found["missing"] == "5 folds; finished cells are of 4"


@pytest.mark.parametrize(
    ("effect", "noise", "expected"),
    [
        (nothing, QUIET, HELD),
        (loss_of("swin", "2d", 0.05), QUIET, HELD),  # not in the study
        (loss_of("swin", "sr", 0.05, "15m"), QUIET, NOT_HELD),
        (nothing, NOISY, OPEN),
    ],
)
def test_swin_at_every_scale(effect: Callable[[Cell], float], noise: float, expected: Verdict) -> None:
    grid = study(archs=("swin",), scales=("500k", "4m", "15m"))
    assert verdict("Swin at every scale", tables_of(grid, effect, noise=noise)) is expected


@pytest.mark.parametrize(
    ("cost", "noise", "expected"),
    [
        (0.003, 0.0003, HELD),
        (0.03, 0.0003, NOT_HELD),
        (0.0, 0.0003, NOT_HELD),  # no cost: 0.003 is excluded from above
        (0.003, 0.02, OPEN),
    ],
)
def test_consistency_costs_little(cost: float, noise: float, expected: Verdict) -> None:
    def effect(cell: Cell) -> float:
        return -cost if cell.recipe == "chain_rule" else 0.0

    assert verdict("consistency costs little", tables_of(study(), effect, noise=noise)) is expected


def test_a_cost_that_is_not_told_from_nothing_is_open() -> None:
    """Its interval holds -0.003 and 0 alike."""
    differences = iter((-0.004, 0.001, -0.001, 0.0005, -0.0025))
    values = {seed: next(differences) for seed in range(5)}
    tables = tables_of(
        study(archs=("unet",)), lambda c: values[c.seed] if c.recipe == "chain_rule" else 0.0, noise=1e-6
    )
    assert verdict("consistency costs little", tables) is OPEN


def two_optimizers(**changes: Any) -> StudyDefinition:
    return study({"bf16": "bf16"}, further={"optimizer": ("adamw", "sgd")}, **changes)


def of_optimizer(vit: float) -> Callable[[Cell], float]:
    """The ViT, 0.06 behind by itself, catches up under the second optimizer by so much."""
    return lambda cell: vit if cell.arch == "vit" and dict(cell.further)["optimizer"] == "sgd" else 0.0


@pytest.mark.parametrize(("catches_up", "expected"), [(0.0, HELD), (-0.1, HELD), (0.04, OPEN), (0.2, NOT_HELD)])
def test_vit_trails(catches_up: float, expected: Verdict) -> None:
    """0.76 beside 0.80 and 0.84, each +- 0.01 a seed."""
    tables = tables_of(two_optimizers(seeds=tuple(range(8))), of_optimizer(catches_up), noise=QUIET)
    assert verdict("ViT trails", tables) is expected


def test_three_seeds_show_that_vit_trails_and_cells_that_are_missing_leave_it_open() -> None:
    def done(cell: Cell) -> bool:
        return cell.arch != "vit" or dict(cell.further)["optimizer"] == "adamw" or cell.seed < 2

    three, behind = two_optimizers(seeds=(0, 1, 2)), lambda cell: -0.3 * (cell.arch == "vit")
    whole = judged(tables_of(three, behind, noise=QUIET), "ViT trails")["ViT trails"]
    assert (whole["verdict"], whole["n"], whole["missing"]) == (HELD, 3, "")
    partial = judged(tables_of(three, behind, noise=QUIET, done=done), "ViT trails")["ViT trails"]
    assert (partial["verdict"], partial["n"]) == (OPEN, 3) and "two optimizers or more" in partial["missing"]


def test_one_optimizer_does_not_test_whether_vit_trails_under_each() -> None:
    found = judged(tables_of(study(), nothing, noise=QUIET), "ViT trails")["ViT trails"]
    assert found["verdict"] == NOT_TESTED and found["n"] == 5
    assert found["numbers"].startswith("one optimizer only: vit 500k less swin -0.0") and found["missing"]


def test_roles_are_read_from_fields_and_not_from_names() -> None:
    own = {"base": {"base": "bf16"}, "everything": {"base": "full", "name": "everything"}, "late": "sr"}
    own |= {"tail": {"base": "sr", "bf16_last_share": 0.1}, "seen": {"base": "full", "attention": "fp4"}}
    tables = tables_of(study(recipes=own), nothing)
    found = Study(tables, pd.DataFrame(), pd.DataFrame(), 0.01)
    assert found.recipes() == ["everything", "late"], "neither the tail in BF16 nor attention in FP4"
    assert found.recipes(gradients=True, advanced=False) == ["everything"]
    assert found.recipes(attention=True) == ["seen"]


def test_no_difference_is_never_taken_for_equality() -> None:
    found = Study(tables_of(study(), nothing), pd.DataFrame(), pd.DataFrame(), 0.01)
    row = {"n": 3, "mean": 0.0, "p": 1.0, "p_holm": 1.0, "p_margin": 0.3}
    assert found.state(row) is State.OPEN
    assert found.state(row | {"p_margin": 0.049}) is State.HOLDS
    assert found.state(row | {"n": 2, "p_margin": 0.001}) is State.MISSING
    assert found.state(row | {"p_holm": 0.01, "mean": -0.009}) is State.OPEN


def test_just_at_the_level_is_not_shown_and_just_the_margin_is_a_loss() -> None:
    found = Study(tables_of(study(), nothing), pd.DataFrame(), pd.DataFrame(), 0.01)
    row = {"n": 3, "mean": -0.01, "p": 0.01, "p_holm": 0.049, "p_margin": 0.5}
    assert found.state(row) is State.LOSES, "three pairs, and the margin itself"
    assert found.state(row | {"p_holm": 0.05}) is State.OPEN
    assert found.state(row | {"mean": 0.0, "p_margin": 0.05}) is State.OPEN
    assert found.state(row | {"mean": 0.02}) is State.OPEN, "a gain is no loss"
    assert found.state(row | {"p": float("nan")}) is State.MISSING and found.state(None) is State.MISSING


def test_every_claim_says_what_it_is_what_it_needs_and_what_decides() -> None:
    tables = tables_of(study(), nothing)
    pairs = paired(tables)
    rows = judge_claims(tables, pairs, against_baseline(tables, pairs), 0.01)
    assert list(dict.fromkeys(rows["claim"])) == [claim.name for claim in CLAIMS]
    for row in rows.itertuples():
        assert row.verdict in list(Verdict) and len(row.rule) > 40 and len(row.says) > 30 and len(row.needs) > 20
        assert row.numbers or row.missing
        assert bool(row.missing) or row.verdict != NOT_TESTED
        assert row.n == 0 or row.numbers
    quality = rows[rows["claim"] == "attention is resilient"]
    assert list(quality["metric"]) == ["recall", "auprc"], "recall first"


def test_a_study_without_bf16_tests_nothing() -> None:
    tables = tables_of(study(recipes={"full": "full", "sr": "sr"}), nothing, noise=QUIET)
    assert {row["verdict"] for row in judged(tables).values()} == {NOT_TESTED}
