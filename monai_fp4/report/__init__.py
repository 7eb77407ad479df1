"""The report of a study: ``monai-fp4 report study/`` reads what a sweep left and writes pages that open offline.

========================  ==========================================================================
`events`                  reads a run's TensorBoard file: curves, histograms, health of the layers
`collect`                 the study folder as tables, one row a cell
`calibration`             reliability and expected calibration error from counts of scores
`statistics`              intervals, paired tests, correction for many comparisons
`variance`                how much of the variance architecture, scale, recipe and seed explain
`comparisons`             those statistics applied to the study's cells, as tables
`verdicts`                what the evidence supports for each model, in sentences
`style`                   colours, markers, order and captions of every figure
`quality_figures` ...     the figures
`pages`                   the HTML, the CSV and the Parquet
========================  ==========================================================================

Needs the extra ``report`` (``pip install monai-fp4[report]``).
"""

from __future__ import annotations
