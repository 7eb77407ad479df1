"""The advice: what follows from which numbers, and that nothing follows from one seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic_study import definition, write_study

from monai_fp4.report.statistics import against_baseline, between_recipes, paired
from monai_fp4.report.tables import StudyTables, collect
from monai_fp4.report.verdicts import Advice, Judgement, ModelAdvice, advise, judge, limits_of, seeds_needed
from monai_fp4.study.layout import Cell, CellStatus

nan = math.nan


@pytest.mark.parametrize(
    ("n", "mean", "high", "p", "p_margin", "expected"),
    [
        (5, -0.030, -0.02, 0.001, 1.00, Judgement.LOSES),
        (5, -0.004, -0.003, 0.001, 0.01, Judgement.SMALL_LOSS),
        (5, 0.020, 0.03, 0.001, 0.001, Judgement.GAINS),
        (5, -0.001, 0.002, 0.800, 0.01, Judgement.HOLDS),
        (5, -0.001, 0.020, 0.800, 0.30, Judgement.OPEN),
        (5, -0.030, -0.01, 0.060, 0.90, Judgement.HINT),
        (5, -0.003, -0.001, 0.060, 0.01, Judgement.HOLDS),
        (2, -0.300, -0.20, 0.001, 1.00, Judgement.TOO_FEW),
        (1, 0.300, nan, nan, nan, Judgement.TOO_FEW),
        (5, 0.000, nan, nan, nan, Judgement.TOO_FEW),
    ],
)
def test_the_rules(n: int, mean: float, high: float, p: float, p_margin: float, expected: Judgement) -> None:
    assert judge({"n": n, "mean": mean, "high": high, "p_holm": p, "p_margin_holm": p_margin}) is expected


def test_just_at_the_level_is_not_shown() -> None:
    row = {"n": 9, "mean": -0.1, "high": -0.01, "p_holm": 0.05, "p_margin_holm": 0.05}
    assert judge(row) is Judgement.HINT
    assert judge(row | {"high": 0.0}) is Judgement.OPEN, "the interval must lie below 0"
    assert judge(row | {"n": 3, "p_holm": 0.049}) is Judgement.LOSES, "three pairs are enough"
    assert judge(row | {"n": 2, "p_holm": 0.049}) is Judgement.TOO_FEW


def advice(path: Path, study: Any = None, **kwargs: Any) -> tuple[StudyTables, dict[str, ModelAdvice]]:
    write_study(path, study, health=False, **kwargs)
    tables = collect(path)
    given = advise(tables, against_baseline(tables, paired(tables)), between_recipes(tables), 0.01)
    return tables, {entry.model: entry for entry in given}


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyTables, dict[str, ModelAdvice]]:
    return advice(tmp_path_factory.mktemp("study"), definition(seeds=tuple(range(8))))


def test_the_effects_that_were_put_in_become_the_advice(eight: tuple[StudyTables, dict[str, ModelAdvice]]) -> None:
    entries = eight[1]
    assert entries["unet 500k"].recipes == {
        "full": Advice.AGAINST,
        "chain_rule": Advice.SUPPORTED,
        "sr": Advice.AGAINST,
    }
    assert set(entries["swin 500k"].recipes.values()) == {Advice.SUPPORTED}
    assert "no difference in AUPRC is shown" in entries["swin 500k"].ranking
    assert entries["unet 500k"].ranking == "", "one supported recipe needs no order"


def test_recall_comes_first_in_every_reason(eight: tuple[StudyTables, dict[str, ModelAdvice]]) -> None:
    for entry in eight[1].values():
        for reason in entry.reasons.values():
            assert reason.startswith("Recall") and "AUPRC" in reason and reason.endswith(".")
            assert "n = 8 seeds" in reason


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_one_or_two_seeds_rank_nothing(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    tables, entries = advice(tmp_path, definition(seeds=seeds))
    for entry in entries.values():
        assert set(entry.recipes.values()) == {Advice.TOO_FEW}
        assert entry.ranking == ""
        assert all("nothing follows" in reason for reason in entry.reasons.values())
    assert any("have fewer than 3 seeds" in words for words in limits_of(tables))


def test_noise_leaves_it_open_and_says_how_many_seeds_it_would_take(tmp_path: Path) -> None:
    _, entries = advice(tmp_path, noise=0.02)
    swin = entries["swin 500k"]
    assert Advice.OPEN in swin.recipes.values()
    opened = next(name for name, given in swin.recipes.items() if given is Advice.OPEN)
    assert "neither a difference nor its absence within 0.01 is shown" in swin.reasons[opened]
    assert "pairs would be needed" in swin.reasons[opened]


def test_pairs_needed_grow_with_the_square_of_the_spread() -> None:
    one, two = seeds_needed(5, -0.02, 0.02, 0.01), seeds_needed(5, -0.04, 0.04, 0.01)
    assert one is not None and two is not None and two == pytest.approx(4 * one, abs=4)
    assert seeds_needed(2, -0.02, 0.02, 0.01) is None and seeds_needed(5, nan, nan, 0.01) is None


def test_what_is_not_finished_is_not_judged(tmp_path: Path) -> None:
    def state(cell: Cell) -> CellStatus:
        gone = cell.recipe == "sr" or (cell.arch, cell.recipe) == ("swin", "bf16")
        return CellStatus.WAITING if gone else CellStatus.DONE

    tables, entries = advice(tmp_path, status=state)
    assert entries["unet 500k"].recipes["sr"] is Advice.NO_DATA
    assert set(entries["swin 500k"].recipes.values()) == {Advice.NO_DATA}
    assert "No BF16 cell is finished" in entries["swin 500k"].summary
    assert any("the grid is partial" in words for words in limits_of(tables))


def test_a_reason_begins_with_a_capital_and_names_both_metrics(
    eight: tuple[StudyTables, dict[str, ModelAdvice]],
) -> None:
    reasons = eight[1]["unet 500k"].reasons
    assert reasons["full"].startswith("Recall and AUPRC: lower than with BF16 (recall -0.0")
    assert "n = 8 seeds, corrected p < 0.001" in reasons["full"]
    assert reasons["chain_rule"].startswith("Recall and AUPRC: shown to lose less than 0.01 (recall ")


@pytest.mark.parametrize(
    ("mean", "p_holm", "p_margin", "said"),
    [
        (
            0.02,
            0.02,
            1e-9,
            "higher than with BF16 (recall +0.0200, 95 % interval +0.0100 to +0.0300, n = 3 seeds, p 0.020",
        ),
        (
            -0.02,
            0.02,
            1.0,
            "lower than with BF16 (recall -0.0200, 95 % interval -0.0300 to -0.0100, n = 3 seeds, p 0.020",
        ),
        (
            -0.002,
            0.02,
            0.03,
            "lower than with BF16, by less than 0.1 (recall -0.0020, 95 % interval -0.0120 to +0.0080, n",
        ),
        (
            0.0,
            1.0,
            0.0002,
            "shown to lose less than 0.1 (recall +0.0000, 95 % interval -0.0100 to +0.0100, n = 3 seeds, p <",
        ),
        (
            0.0,
            1.0,
            0.3,
            "neither a difference nor its absence within 0.1 is shown (recall +0.0000, 95 % interval -0.0100",
        ),
    ],
)
def test_a_reason_gives_the_p_that_it_rests_on(
    eight: tuple[StudyTables, dict[str, ModelAdvice]], mean: float, p_holm: float, p_margin: float, said: str
) -> None:
    tables = eight[0]
    row = {"model": "unet 500k", "recipe": "full", "unit": "seeds of fold 0", "n": 3, "mean": mean}
    row |= {"low": mean - 0.01, "high": mean + 0.01, "p_holm": p_holm, "p_margin_holm": p_margin}
    comparisons = pd.DataFrame([row | {"metric": metric} for metric in ("recall", "auprc")])
    pairs = pd.DataFrame(columns=["model", "recipe", "other", "n", "mean", "p_holm"])
    reason = advise(tables, comparisons, pairs, 0.1)[0].reasons["full"]
    assert reason.replace("corrected p", "p").startswith(f"Recall and AUPRC: {said}")


@pytest.mark.parametrize(
    ("n", "mean", "p", "said"),
    [
        (3, 0.02, 0.049, "sr over chain_rule (0.0200, corrected p 0.049)"),
        (3, -0.02, 0.049, "chain_rule over sr (0.0200, corrected p 0.049)"),
        (3, 0.02, 0.05, "no difference in AUPRC is shown"),
        (2, 0.02, 0.001, "no difference in AUPRC is shown"),
    ],
)
def test_supported_recipes_are_ordered_where_a_test_shows_it(
    eight: tuple[StudyTables, dict[str, ModelAdvice]], n: int, mean: float, p: float, said: str
) -> None:
    held = {"model": "unet 500k", "unit": "seeds of fold 0", "n": 8, "mean": 0.0, "low": -0.01, "high": 0.01}
    held |= {"p_holm": 1.0, "p_margin_holm": 0.01}
    both = [held | {"recipe": r, "metric": m} for r in ("chain_rule", "sr") for m in ("recall", "auprc")]
    pair = {"model": "unet 500k", "recipe": "chain_rule", "other": "sr", "n": n, "mean": mean, "p_holm": p}
    entry = advise(eight[0], pd.DataFrame(both), pd.DataFrame([pair]), 0.1)[0]
    assert said in entry.ranking
    one = advise(eight[0], pd.DataFrame(both[:2]), pd.DataFrame([pair]), 0.1)[0]
    assert one.ranking == "", "one supported recipe has no order"


def test_limits_name_what_was_not_tried(tmp_path: Path) -> None:
    tables, _ = advice(tmp_path, version=lambda cell: f"0.1.{cell.seed}")
    said = " ".join(limits_of(tables))
    for words in ("one data set (phantom)", "fold 0", "epochs = 4 and image size = 64x64", "FP4 was emulated"):
        assert words in said, words
    assert "3 versions of the code (0.1.0, 0.1.1, 0.1.2)" in said


def test_a_study_without_bf16_says_so(tmp_path: Path) -> None:
    _, entries = advice(tmp_path, definition(recipes={"sr": "sr", "full": "full"}))
    assert "no BF16 recipe" in entries["unet 500k"].summary
    assert set(entries["unet 500k"].recipes.values()) == {Advice.NO_DATA}


def test_a_difference_between_supported_recipes_is_said(
    eight: tuple[StudyTables, dict[str, ModelAdvice]],
) -> None:
    tables = eight[0]
    # With a margin of 0.1 every recipe is supported; sr and full still lose 0.02 against chain_rule.
    entries = advise(tables, against_baseline(tables, paired(tables), 0.1), between_recipes(tables), 0.1)
    unet = next(entry for entry in entries if entry.model == "unet 500k")
    assert set(unet.recipes.values()) == {Advice.SUPPORTED}
    assert "chain_rule over full" in unet.ranking and "chain_rule over sr" in unet.ranking
    assert "full over" not in unet.ranking


def test_numbers_of_patients_that_were_trained_on_are_called_so(tmp_path: Path) -> None:
    tables, _ = advice(tmp_path, definition(archs=("unet",), folds=("all",)))
    said = " ".join(limits_of(tables))
    assert "the very patients that were trained on" in said and "validated on the patients of fold all" not in said
