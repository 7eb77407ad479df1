"""What the files of a manifest hold: `measures` of each patient, `copies` across patients, `placement` of the masks."""

from monai_fp4.report.survey.copies import Copies
from monai_fp4.report.survey.manifest import Survey, survey_manifest
from monai_fp4.report.survey.measures import Measured
from monai_fp4.report.survey.placement import Placement, Verdict

__all__ = ["Copies", "Measured", "Placement", "Survey", "Verdict", "survey_manifest"]
