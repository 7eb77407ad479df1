"""Metrics of a cohort's scores: exact areas, counts and intervals, from pixels that need not fit into memory.

===========  =====================================================================================
module       concept
===========  =====================================================================================
`auprc`      AUPRC as a function, and as a MONAI metric that is merged over ranks
`keys`       a score as an integer of the same order, to be sorted and counted
`native`     the counting in compiled code, on CPUs
`device`     the sorting where the scores are, on GPUs
`sources`    the streams of scores and labels that are read once or twice
`cells`      neighbouring keys together, finer where the curve bends
`histogram`  a stream of any length in bounded memory, and the area under its curve
`confusion`  counts at a threshold: Dice, recall, precision, F2
`lesions`    lesions one by one, and which of them were missed
`cohort`     patients: pooled values, and values a patient
`bootstrap`  intervals by drawing patients anew
`soft`       the soft scores of arXiv 2605.27616, which are not the usual ones
===========  =====================================================================================
"""

from monai_fp4.metrics.auprc import AUPRCMetric, compute_auprc
from monai_fp4.metrics.cohort import Cohort
from monai_fp4.metrics.confusion import Confusion, PRCurve
from monai_fp4.metrics.histogram import NoPositivesWarning, ScoreHistogram
from monai_fp4.metrics.soft import SOFT_SCORES, SoftScores

__all__ = [
    "SOFT_SCORES", "AUPRCMetric", "Cohort", "Confusion", "NoPositivesWarning", "PRCurve", "ScoreHistogram",
    "SoftScores", "compute_auprc",
]  # fmt: skip
