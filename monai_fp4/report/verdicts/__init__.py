"""Conclusions that the evidence supports for each model (`advice`), and what it does not cover (`limits`)."""

from monai_fp4.report.verdicts.advice import Advice, Judgement, ModelAdvice, advise, judge, seeds_needed
from monai_fp4.report.verdicts.limits import limits_of

__all__ = [
    "Advice", "Judgement", "ModelAdvice", "advise", "judge", "limits_of", "seeds_needed",
]  # fmt: skip
