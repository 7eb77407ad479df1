"""The rules on the paper's claims about attention in FP4: whether it leaves few distinct probabilities, and what helps.

What is counted are the distinct probabilities that a network gives out over all validation voxels, as a share of those
of the BF16 run of the same seed. The products inside attention are in high precision unless a recipe says otherwise, so
only recipes with ``attention: fp4`` put the claim to a test.
"""

from __future__ import annotations

import math

from monai_fp4.report.claims.evidence import ATTENTION, LEVEL, Evidence, Study, Verdict
from monai_fp4.report.statistics import FEW, PairedTest

__all__ = ["advanced_prevent_collapse", "attention_is_discretized"]

SMALL = ("500k",)
COLLAPSE, INTACT = 0.1, 0.5
"""Shares of BF16's distinct probabilities: at most a tenth is a collapse, more than half is none."""


def attention_is_discretized(study: Study, metric: str) -> Evidence:
    """The plain recipe with FP4 attention leaves at most a tenth of BF16's distinct probabilities at 500k."""
    plain = study.recipes(gradients=True, advanced=False, attention=True)
    pairs = [(model, recipe) for model in study.models(ATTENTION, SMALL) for recipe in plain]
    tests = {pair: study.log_ratio(*pair, level=1 - LEVEL / max(len(pairs), 1)) for pair in pairs}
    tested = {pair: test for pair, test in tests.items() if test.n >= FEW}
    if not tested:
        usual = study.recipes(gradients=True, advanced=False)
        near = [(m, r, study.log_ratio(m, r)) for m in study.models(ATTENTION, SMALL) for r in usual]
        said = "; ".join(f"{m} {r} {_share(test)}" for m, r, test in near if test.n)
        wanted = f"`full+attention` and BF16 of {' or '.join(ATTENTION)} at 500k, {FEW} seeds"
        note = f"not about it, with attention products in high precision: {said}" if said else ""
        return Evidence(Verdict.NOT_TESTED, note, 0, wanted)
    said = "; ".join(f"{model} {recipe} {_share(test)}" for (model, recipe), test in tested.items())
    n = min(test.n for test in tested.values())
    few = [pair for pair in pairs if pair not in tested]
    missing = f"fewer than {FEW} pairs of {study.listed(few)}" if few else ""
    if any(test.high < math.log10(COLLAPSE) for test in tested.values()):
        return Evidence(Verdict.HELD, said, n, missing)
    intact = all(test.low > math.log10(INTACT) for test in tested.values())
    every = intact and len({model for model, _ in tested}) >= len(ATTENTION)
    return Evidence(Verdict.NOT_HELD if every else Verdict.OPEN, said, n, missing)


def advanced_prevent_collapse(study: Study, metric: str) -> Evidence:
    """Where the plain recipe collapses, every advanced one with FP4 attention keeps more than half of the levels."""
    plain = study.recipes(gradients=True, advanced=False, attention=True)
    advanced = study.recipes(advanced=True, attention=True)
    models = study.models(ATTENTION, SMALL)
    tests = {(m, r): study.log_ratio(m, r) for m in models for r in advanced}
    tested = {pair: test for pair, test in tests.items() if test.n >= FEW}
    if not tested or attention_is_discretized(study, metric).verdict is Verdict.NOT_TESTED:
        wanted = f"`full+attention`, an advanced recipe `+attention` and BF16 of {' or '.join(ATTENTION)} at 500k"
        return Evidence(Verdict.NOT_TESTED, "", 0, f"{wanted}, {FEW} seeds")
    said = "; ".join(f"{model} {recipe} {_share(test)}" for (model, recipe), test in tested.items())
    n = min(test.n for test in tested.values())
    plain_tests = [
        (m, study.log_ratio(m, r, 1 - LEVEL / max(len(models) * len(plain), 1))) for m in models for r in plain
    ]
    collapsed = [m for m, test in plain_tests if test.n >= FEW and test.high < math.log10(COLLAPSE)]
    there = {pair: test for pair, test in tests.items() if pair[0] in collapsed}
    if not collapsed:
        return Evidence(Verdict.OPEN, f"no collapse to prevent is shown; {said}", n)
    # Any one of them refutes the claim, so the chance of an error is shared among them; holding it takes all of them.
    level = 1 - LEVEL / max(len(there), 1)
    strict = [study.log_ratio(model, recipe, level) for model, recipe in there]
    if any(test.n >= FEW and test.high < math.log10(COLLAPSE) for test in strict):
        return Evidence(Verdict.NOT_HELD, said, n)
    kept = all(test.n >= FEW and test.low > math.log10(INTACT) for test in there.values())
    return Evidence(Verdict.HELD if kept and there else Verdict.OPEN, said, n)


def _share(test: PairedTest) -> str:
    values = [f"{100 * 10**value:.3g} %" for value in (test.mean, test.low, test.high) if not math.isnan(value)]
    interval = f" (from {values[1]} to {values[2]})" if len(values) == 3 else ""
    return f"has {values[0]} of BF16's distinct probabilities{interval}"
