"""Ignite handlers that stand beside MONAI's own in a bundle's `handlers` list.

MONAI's own CheckpointSaver and CheckpointLoader keep the trainer's counters but not its best metric, and a trainer
cannot stand in the ``save_dict`` of its own handlers, because a config may not refer to itself. :class:`Recorder` gets
the trainer when it is attached, so nothing has to refer back.

===================  =========================================================================
`schedule`           what happens when: seeds, precision, validation
`recorder`           what a run writes as it goes, and how it resumes
`best_epoch`         which epoch is the best, and when a better one is no longer waited for
`early_end`          signals and full disks
`auprc`              the key metric
`tensorboard`        losses, metrics, curves and overlays
`health`             what four bits do to each layer: ``health.json``, and pictures of it
`progress`           one line an epoch, in the terminal
`input_wait`         the share of an epoch that was spent waiting for batches
`peak_memory`        the most memory that a run took
`held_out`           the test patients of a fold, when training ends
`soft`               the soft scores of arXiv 2605.27616
`evaluation_report`  numbers with intervals and pictures of a trained model
===================  =========================================================================
"""

from monai_fp4.handlers.auprc import AUPRC, cohort_of
from monai_fp4.handlers.evaluation_report import EvaluationReport
from monai_fp4.handlers.health import HealthRecorder
from monai_fp4.handlers.held_out import HeldOutTest
from monai_fp4.handlers.input_wait import InputWait
from monai_fp4.handlers.progress import Progress
from monai_fp4.handlers.recorder import Recorder
from monai_fp4.handlers.schedule import EpochSeeder, NegatedMetric, PrecisionSchedule, Validation
from monai_fp4.handlers.soft import SoftScoring
from monai_fp4.handlers.tensorboard import TensorBoard, TensorBoardValidation

__all__ = [
    "AUPRC", "EpochSeeder", "EvaluationReport", "HealthRecorder", "HeldOutTest", "InputWait", "NegatedMetric",
    "PrecisionSchedule", "Progress", "Recorder", "SoftScoring", "TensorBoard", "TensorBoardValidation",
    "Validation", "cohort_of",
]  # fmt: skip
