"""The report of a study: ``monai-fp4 report study/`` reads what a sweep left and writes pages that open offline.

========================  ==========================================================================
`collect`, `cell_files`   the study folder as tables, one row a cell
`events`                  what a run left in TensorBoard: curves, histograms, health of the layers
`calibration`             reliability and expected calibration error from counts of scores
`statistics`, `variance`  intervals, paired tests, correction for many comparisons; variance explained
`comparisons`             those statistics applied to the study's cells, as tables
`verdicts`, `limits`      what the evidence supports for each model, and what it does not cover
`claims`, `claim_rules`   what a study says of each claim of the paper; `claim_evidence` and `claims_page` beside them
`style`                   colours, markers, order and captions of every figure
`quality_figures` ...     the figures
`analysis`, `content`     what is computed, and what stands on which page
`blocks`, `pages`         the HTML, the CSV and the Parquet
========================  ==========================================================================

Needs the extra ``report`` (``pip install monai-fp4[report]``).
"""

from __future__ import annotations
