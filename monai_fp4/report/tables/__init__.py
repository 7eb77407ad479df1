"""The study folder as tables, one row a cell: what a sweep left, and nothing computed from it.

`collect` reads every cell (`cell_files`), `run_health` what a run measured of its layers, `calibration` reliability
from counts of scores.
"""
