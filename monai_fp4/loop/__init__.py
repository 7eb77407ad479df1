"""Handlers that turn MONAI's trainer into a run that can be stopped at any time.

MONAI's own CheckpointSaver and CheckpointLoader keep the trainer's counters but not its best metric, and a trainer
cannot stand in the ``save_dict`` of its own handlers, because a config may not refer to itself. :class:`Recorder` gets
the trainer when it is attached, so nothing has to refer back.

Where to read on: `schedule` says what happens when (seeds, precision, validation), `recorder` what is written and how
a run resumes.
"""

from monai_fp4.loop.memory import peak_memory
from monai_fp4.loop.recorder import Recorder
from monai_fp4.loop.schedule import EpochSeeder, PrecisionSchedule, Validation

__all__ = ["EpochSeeder", "PrecisionSchedule", "Recorder", "Validation", "peak_memory"]
