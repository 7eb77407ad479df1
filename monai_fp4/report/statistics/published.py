"""Every result number that arXiv 2605.27616 published, what those numbers support, and a study's own beside them.

They are the test AUPRC of five folds of patients: two networks of about four million parameters, each without FP4 and
under the recipe with all techniques, one seed. Nothing else was published with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from monai_fp4.report.statistics.intervals import paired_test
from monai_fp4.report.statistics.paper import pair_tests, smallest_p
from monai_fp4.report.tables import StudyTables

__all__ = ["DIFFERENCES", "FOLDS", "PUBLISHED", "beside_published", "published_differences", "published_findings"]

PUBLISHED: Mapping[tuple[str, str], tuple[float, ...]] = MappingProxyType(
    {
        ("paper_swin", "bf16"): (0.7038, 0.8509, 0.7241, 0.8880, 0.7956),
        ("paper_swin", "sr_rht_2d"): (0.7671, 0.8347, 0.7055, 0.8855, 0.8047),
        ("paper_cnn", "bf16"): (0.6973, 0.8293, 0.7211, 0.6855, 0.8013),
        ("paper_cnn", "sr_rht_2d"): (0.5800, 0.7998, 0.7554, 0.6871, 0.8039),
    }
)
"""Architecture and recipe -> test AUPRC of folds 0 to 4 at 4m, one seed; the baseline in FP16."""

FOLDS = tuple(range(5))
"""The folds of the published experiment."""
_SCALE = "4m"
_NAMES = {"paper_swin": "Swin", "paper_cnn": "CNN", "bf16": "baseline", "sr_rht_2d": "2D+RHT+SR"}

DIFFERENCES: Mapping[str, tuple[tuple[str, str], tuple[str, str]]] = MappingProxyType(
    {
        "Swin: 2D+RHT+SR less baseline": (("paper_swin", "sr_rht_2d"), ("paper_swin", "bf16")),
        "CNN: 2D+RHT+SR less baseline": (("paper_cnn", "sr_rht_2d"), ("paper_cnn", "bf16")),
        "Swin less CNN: baseline": (("paper_swin", "bf16"), ("paper_cnn", "bf16")),
        "Swin less CNN: 2D+RHT+SR": (("paper_swin", "sr_rht_2d"), ("paper_cnn", "sr_rht_2d")),
    }
)
"""The paired differences that the published folds allow, fold by fold."""


def beside_published(tables: StudyTables) -> pd.DataFrame:
    """The paper's table and the study's own, cell by cell.

    Returns:
        One row a network, recipe and source (``published``, ``this study``): the test AUPRC of each fold, the study's
        as the mean over its finished seeds, with `mean` and `sd` over the folds, and `missing`: in words, which folds
        the study has not got and how far they are.
    """
    cells = tables.cells
    rows = []
    for (arch, recipe), published in PUBLISHED.items():
        own = cells[(cells["arch"] == arch) & (cells["scale"] == _SCALE) & (cells["recipe"] == recipe)]
        tested = own[own["status"] == "done"].groupby("fold")["test_auprc"].mean().to_dict()
        values = [float(tested.get(str(fold), math.nan)) for fold in FOLDS]
        absent = [fold for fold, value in zip(FOLDS, values, strict=True) if math.isnan(value)]
        planned = [fold for fold in absent if str(fold) in set(own["fold"])]
        words = [f"fold{'s' if len(some) > 1 else ''} {', '.join(map(str, some))} {why}"
                 for some, why in ((planned, "not finished"), ([f for f in absent if f not in planned], "not planned"))
                 if some]  # fmt: skip
        cell = f"{_NAMES[arch]}, {_NAMES[recipe]}"
        rows.append({"cell": cell, "arch": arch, "recipe": recipe, "source": "published"} | _row(published))
        rows.append(
            {"cell": cell, "arch": arch, "recipe": recipe, "source": "this study"}
            | _row(values)
            | {"missing": "; ".join(words)}
        )
    return pd.DataFrame(rows).assign(missing=lambda frame: frame["missing"].fillna(""))


def _row(values: Sequence[float]) -> dict[str, Any]:
    known = [value for value in values if not math.isnan(value)]
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
    named = {f"fold {fold}": value for fold, value in zip(FOLDS, values, strict=True)}
    return named | {"mean": float(np.mean(known)) if known else math.nan, "sd": spread}


def published_differences(table: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Paired differences over the folds, by the paper's statistics and by ours: published ones and the study's.

    Args:
        table: of `beside_published`.
        margin: of our test.

    Returns:
        One row a difference and source: `n` folds, `mean`, `sd`, `cohens_d`, Wilcoxon's `p` and its `floor`, the least
        that so many folds can give; and our 95 % t interval `low` to `high`, with the variance raised for the patients
        that the folds' trainings share (11 validated and tested over 88 trained on). NaN for what needs more folds.
    """
    folds = [f"fold {fold}" for fold in FOLDS]
    values = {(row["arch"], row["recipe"], row["source"]): row[folds].astype(float) for _, row in table.iterrows()}
    rows = []
    for name, (first, second) in DIFFERENCES.items():
        for source in ("published", "this study"):
            one, two = values[*first, source], values[*second, source]
            difference = (one - two).dropna()
            test = paired_test(difference, margin, overlap=_OVERLAP)
            both = {"second": two[difference.index].to_dict(), "first": one[difference.index].to_dict()}
            (found,) = pair_tests(both).values() or (None,)
            theirs = {"p": found.p, "cohens_d": found.cohens_d, "floor": found.floor} if found else {}
            rows.append(
                {"difference": name, "source": source, "n": test.n, "mean": test.mean, "sd": float(difference.std())}
                | theirs | {"low": test.low, "high": test.high}
            )  # fmt: skip
    columns = ["difference", "source", "n", "mean", "sd", "low", "high", "cohens_d", "p", "floor"]
    return pd.DataFrame(rows, columns=columns)


_OVERLAP = 11 / 88
"""Tested over trained patients of a fold, as Nadeau and Bengio's correction wants it."""


def published_findings() -> list[str]:
    """What the published figures themselves support, in sentences whose every number is computed from them.

    >>> for sentence in published_findings():
    ...     print(sentence[:64])
    None of the 4 paired differences is significant: the smallest p
    The mean gap of Swin over the CNN is 0.0456 without FP4 and 0.07
    Under 2D+RHT+SR the AUPRC changes by +0.0070 for Swin and -0.007
    In 2 of the 10 pairs the CNN is ahead: fold 4 (baseline), fold 2
    """
    tests, gaps, behind = {}, {}, []
    for name, (first, second) in DIFFERENCES.items():
        one, two = PUBLISHED[first], PUBLISHED[second]
        (tests[name],) = pair_tests({"second": dict(enumerate(two)), "first": dict(enumerate(one))}).values()
        if first[1] == second[1]:
            gaps[first[1]] = np.subtract(one, two)
            behind += [f"fold {fold} ({_NAMES[first[1]]})" for fold in FOLDS if one[fold] < two[fold]]
    smallest = min(test.p for test in tests.values())
    changes = []
    for arch in dict.fromkeys(arch for arch, _ in PUBLISHED):
        change = np.subtract(PUBLISHED[arch, "sr_rht_2d"], PUBLISHED[arch, "bf16"])
        most = int(np.abs(change).argmax())
        others = f"{np.delete(change, most).mean():+.4f} without fold {most}"
        changes.append(f"{change.mean():+.4f} for {_NAMES[arch]} and {others}")
    shares = {recipe: 100 * gap / gap.sum() for recipe, gap in gaps.items()}
    fold, (most_of, next_of) = int(shares["bf16"].argmax()), map(int, np.argsort(-shares["sr_rht_2d"])[:2])
    rest = {recipe: float(np.delete(gap, gap.argmax()).mean()) for recipe, gap in gaps.items()}
    return [
        f"None of the {len(tests)} paired differences is significant: the smallest p of Wilcoxon's test, before any"
        f" correction, is {smallest:.3f}, and {len(FOLDS)} folds cannot give less than {smallest_p(len(FOLDS)):.4f}.",
        f"The mean gap of Swin over the CNN is {gaps['bf16'].mean():.4f} without FP4 and {gaps['sr_rht_2d'].mean():.4f}"
        f" under 2D+RHT+SR. Single folds carry most of it: fold {fold} has {shares['bf16'][fold]:.0f} % of the first;"
        f" folds {most_of} and {next_of} have {shares['sr_rht_2d'][most_of]:.0f} % and"
        f" {shares['sr_rht_2d'][next_of]:.0f} % of the second. Without the fold that has most, it is {rest['bf16']:.4f}"
        f" and {rest['sr_rht_2d']:.4f}.",
        f"Under 2D+RHT+SR the AUPRC changes by {'; by '.join(changes)}.",
        f"In {len(behind)} of the {len(gaps) * len(FOLDS)} pairs the CNN is ahead: {', '.join(behind)}.",
    ]
