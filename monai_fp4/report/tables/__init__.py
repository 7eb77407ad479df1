"""The study folder as tables, one row a cell: what a sweep left, and nothing computed from it.

`collect` reads every cell (`cell_files`), `run_health` what a run measured of its layers, `calibration` reliability
from counts of scores.
"""

from monai_fp4.report.tables.calibration import COARSE, Reliability, reliability
from monai_fp4.report.tables.collect import KEYS, METRICS, STATUSES, StudyTables, collect, metric_name
from monai_fp4.report.tables.run_health import read_health

__all__ = [
    "COARSE", "KEYS", "METRICS", "STATUSES", "Reliability", "StudyTables", "collect", "metric_name", "read_health",
    "reliability",
]  # fmt: skip
