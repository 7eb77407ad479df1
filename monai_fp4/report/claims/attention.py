"""The rules on networks with attention that collapse to few distinct probabilities in FP4, and on what prevents it.

What is counted are the distinct probabilities that a network gives out over all validation voxels, as a share of those
of the BF16 run of the same seed. In the paper the products inside attention are never in FP4, so its claims are judged
on recipes that leave them in high precision: `full` and `forward_only`, whose linear layers around attention are in FP4
and nothing is done against it. The same is asked of recipes with ``attention: fp4``, which is a harder case of our own.
"""

from __future__ import annotations

import math

from monai_fp4.quantization.recipes import Backward
from monai_fp4.report.claims.evidence import LEVEL, Evidence, Study, Verdict
from monai_fp4.report.statistics import FEW, PairedTest

__all__ = [
    "advanced_prevent_collapse", "advanced_prevent_fp4_collapse", "attention_is_discretized",
    "fp4_attention_is_discretized",
]  # fmt: skip

SMALL = ("500k",)
COLLAPSE, INTACT = 0.1, 0.5
"""Shares of BF16's distinct probabilities: at most a tenth is a collapse, more than half is none."""
LISTED = 4
"""Tests up to which each is told."""


def attention_is_discretized(study: Study, metric: str) -> Evidence:
    """`full` or `forward_only` leaves at most a tenth of BF16's distinct probabilities at 500k."""
    return _discretized(study, fp4=False)


def fp4_attention_is_discretized(study: Study, metric: str) -> Evidence:
    """The same with attention products in FP4, which no run of the paper has."""
    return _discretized(study, fp4=True)


def advanced_prevent_collapse(study: Study, metric: str) -> Evidence:
    """Where a plain recipe collapses, every advanced one keeps more than half of the levels."""
    return _prevented(study, fp4=False)


def advanced_prevent_fp4_collapse(study: Study, metric: str) -> Evidence:
    """The same with attention products in FP4, which no run of the paper has."""
    return _prevented(study, fp4=True)


def _discretized(study: Study, *, fp4: bool) -> Evidence:
    plain, wanted, archs = _plain(study, fp4), _wanted(fp4), study.networks.attention
    pairs = [(model, recipe) for model in study.models(archs, SMALL) for recipe in plain]
    tested = {pair: test for pair in pairs if (test := study.log_ratio(*pair)).n >= FEW}
    if not tested:
        missing = f"{' or '.join(wanted)} and BF16 of {' or '.join(archs)} at 500k, {FEW} seeds"
        return Evidence(Verdict.NOT_TESTED, "", 0, missing)
    said, n = _said(tested), min(test.n for test in tested.values())
    few = [pair for pair in pairs if pair not in tested]
    absent = [] if len(plain) == len(wanted) else [f"{' and '.join(wanted)} both"]
    absent += [f"{arch} at 500k" for arch in archs if not study.models([arch], SMALL)]
    absent += [f"fewer than {FEW} pairs of {study.listed(few)}"] if few else []
    missing = "; ".join(absent)
    if any(_collapsed(study, pairs)):
        return Evidence(Verdict.HELD, said, n, missing)
    # All of them have to be, so each is tested at its own level: an intersection-union test needs no correction.
    intact = all(test.low > math.log10(INTACT) for test in tested.values())
    return Evidence(Verdict.NOT_HELD if intact and not missing else Verdict.OPEN, said, n, missing)


def _prevented(study: Study, *, fp4: bool) -> Evidence:
    plain, advanced = _plain(study, fp4), study.recipes(gradients=True, advanced=True, attention=fp4)
    models = study.models(study.networks.attention, SMALL)
    pairs = [(model, recipe) for model in models for recipe in plain]
    tests = {(m, r): study.log_ratio(m, r) for m in models for r in advanced}
    tested = {pair: test for pair, test in tests.items() if test.n >= FEW}
    if not tested or not any(study.log_ratio(*pair).n >= FEW for pair in pairs):
        some = f"an advanced recipe{' `+attention`' if fp4 else ''}"
        missing = f"{' or '.join(_wanted(fp4))}, {some} and BF16 of {' or '.join(study.networks.attention)} at 500k"
        return Evidence(Verdict.NOT_TESTED, "", 0, f"{missing}, {FEW} seeds")
    said, n = _said(tested), min(test.n for test in tested.values())
    collapsed = {model for model, _ in _collapsed(study, pairs)}
    there = [pair for pair in tests if pair[0] in collapsed]
    if not collapsed:
        return Evidence(Verdict.OPEN, f"no collapse to prevent is shown; {said}", n)
    if _collapsed(study, there):
        return Evidence(Verdict.NOT_HELD, said, n)
    kept = all(tests[pair].n >= FEW and tests[pair].low > math.log10(INTACT) for pair in there)
    return Evidence(Verdict.HELD if kept and there else Verdict.OPEN, said, n)


def _wanted(fp4: bool) -> list[str]:
    return ["`full+attention`"] if fp4 else ["`full`", "`forward_only`"]


def _plain(study: Study, fp4: bool) -> list[str]:
    """The recipes with nothing against the collapse: `full` and, in the paper's case, `forward_only`."""
    found = study.recipes(gradients=True if fp4 else None, advanced=False, attention=fp4)
    return [name for name in found if study.roles[name].backward is not Backward.DEQUANTIZED]


def _collapsed(study: Study, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that are shown to collapse: any one decides, so the chance of an error is shared among them."""
    level = 1 - LEVEL / max(len(pairs), 1)
    tests = {pair: study.log_ratio(*pair, level=level) for pair in pairs}
    return [pair for pair, test in tests.items() if test.n >= FEW and test.high < math.log10(COLLAPSE)]


def _said(tests: dict[tuple[str, str], PairedTest]) -> str:
    """Each test in words; of many, the lowest."""
    lowest = min(tests, key=lambda pair: tests[pair].mean)
    few = tests if len(tests) <= LISTED else {lowest: tests[lowest]}
    words = "; ".join(f"{model} {recipe} {_share(test)}" for (model, recipe), test in few.items())
    return words if few is tests else f"lowest of {len(tests)}: {words}"


def _share(test: PairedTest) -> str:
    values = [f"{100 * 10**value:.3g} %" for value in (test.mean, test.low, test.high) if not math.isnan(value)]
    interval = f" (from {values[1]} to {values[2]})" if len(values) == 3 else ""
    return f"has {values[0]} of BF16's distinct probabilities{interval}"
