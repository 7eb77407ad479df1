"""Reports that open offline: of a study (``monai-fp4 report``), and of a data folder (``monai-fp4 manifest report``).

==============  ====================================================================
`tables`        the study folder as tables, one row a cell
`survey`        what the files of a manifest hold
`statistics`    intervals, paired tests, correction for many comparisons, variance
`figures`       the pictures, and their one style
`claims`        what the study says of each claim of the paper
`verdicts`      what the evidence supports for each model, and what it does not cover
`analyse`       all of it, computed once
`pages`         the HTML, the CSV and the Parquet
==============  ====================================================================

Needs the extra ``report`` (``pip install monai-fp4[report]``).
"""

from __future__ import annotations
