"""The study folder as tables, one row a cell: what a sweep left, and nothing computed from it.

`collect` reads every cell (`cell_files`), `events` what a run left in TensorBoard, `calibration` reliability from
counts of scores.
"""
