"""Intervals, paired tests, correction for many comparisons, variance explained, and those of a study's cells."""

from monai_fp4.report.statistics.comparisons import (
    FEW,
    MARGIN,
    TESTED,
    against_baseline,
    between_recipes,
    between_variants,
    by_patient,
    calibration,
    cost,
    numbered_folds,
    paired,
)
from monai_fp4.report.statistics.intervals import (
    MeanInterval,
    PairedTest,
    holm,
    mean_interval,
    paired_test,
    patient_bootstrap,
    sign_flip,
)
from monai_fp4.report.statistics.paper import PairTest, agreement, as_the_paper_tests, kendall_w, pair_tests, smallest_p
from monai_fp4.report.statistics.published import (
    PUBLISHED,
    beside_published,
    published_differences,
    published_findings,
)
from monai_fp4.report.statistics.variance import BalancedPart, analyse_variance, balanced_part, beyond_chance

__all__ = [
    "numbered_folds", "as_the_paper_tests", "agreement", "published_findings", "published_differences",
    "beside_published", "FEW", "MARGIN", "PUBLISHED", "TESTED", "BalancedPart", "MeanInterval", "PairTest",
    "PairedTest", "against_baseline", "analyse_variance", "balanced_part", "between_recipes", "between_variants",
    "beyond_chance", "by_patient", "calibration", "cost", "holm", "kendall_w", "mean_interval", "pair_tests",
    "paired", "paired_test", "patient_bootstrap", "sign_flip", "smallest_p",
]  # fmt: skip
