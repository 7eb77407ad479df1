"""The report of a study: ``monai-fp4 report study/`` reads what a sweep left and writes pages that open offline.

==============  ====================================================================
`tables`        the study folder as tables, one row a cell
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
