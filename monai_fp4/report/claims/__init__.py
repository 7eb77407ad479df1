"""Judge each claim of the paper by a study: `paper` has the claims, `rules` decide, `evidence` is what they see."""

from monai_fp4.report.claims.evidence import Evidence, State, Study, Verdict
from monai_fp4.report.claims.paper import CLAIMS, Claim, judge_claims

__all__ = [
    "CLAIMS", "Claim", "Evidence", "State", "Study", "Verdict", "judge_claims",
]  # fmt: skip
