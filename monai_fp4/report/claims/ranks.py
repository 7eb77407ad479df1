"""The rule on the paper's claim that the ViT stays behind, whichever optimizer trains it.

Architectures share no initial weights, so that a seed pairs nothing between them: their BF16 runs are compared as
independent samples, by Welch's t-test.
"""

from __future__ import annotations

import itertools

from scipy import stats

from monai_fp4.report.claims.evidence import LEVEL, Evidence, Study, Verdict, p_value
from monai_fp4.report.statistics import FEW, holm

__all__ = ["vit_trails"]


def vit_trails(study: Study, metric: str) -> Evidence:
    """The ViT's BF16 runs beside those of the other two, at each scale and under each optimizer."""
    tables, vit, others = study.tables, study.networks.vit, (study.networks.swin, study.networks.cnn)
    done = tables.in_main_fold(tables.done).dropna(subset=[metric])
    done = done[done["recipe"] == tables.baseline]
    values = {key: rows[metric] for key, rows in done.groupby(["arch", "scale", "variant"], sort=False)}
    named = tables.cells[["scale", "variant"]].drop_duplicates().itertuples(index=False)
    wanted = [(other, scale, variant) for (scale, variant), other in itertools.product(named, others)]
    tests = {}
    for other, scale, variant in wanted:
        one, two = values.get((vit, scale, variant)), values.get((other, scale, variant))
        if one is not None and two is not None and min(len(one), len(two)) >= FEW:
            tests[other, scale, variant] = stats.ttest_ind(one, two, equal_var=False), one.mean() - two.mean()
    said = "; ".join(
        f"{vit} {scale} less {other}{f' ({variant})' if variant else ''} {mean:+.4f}, {p_value(float(test.pvalue))}"
        for (other, scale, variant), (test, mean) in tests.items()
    )
    n = min((min(len(values[vit, s, v]), len(values[o, s, v])) for o, s, v in tests), default=0)
    further = tables.definition.further
    optimizers = further.get("optimizer", further.get("optimizer_name", ()))
    absent = f"BF16 of {vit}, {' and '.join(others)} under two optimizers or more, {FEW} seeds"
    if not tests or len(optimizers) < 2:
        return Evidence(Verdict.NOT_TESTED, f"one optimizer only: {said}" if said else "", n, absent)
    corrected = holm([float(test.pvalue) for test, _ in tests.values()])
    if any(p < LEVEL and mean > 0 for p, (_, mean) in zip(corrected, tests.values(), strict=True)):
        return Evidence(Verdict.NOT_HELD, said, n)
    behind = all(test.pvalue < LEVEL and mean < 0 for test, mean in tests.values())
    whole = len(tests) == len(wanted)
    return Evidence(Verdict.HELD if behind and whole else Verdict.OPEN, said, n, "" if whole else absent)
