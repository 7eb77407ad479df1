"""Scans without masks in, masks in the scans' own geometry and format out: what ``inference.json`` runs.

================  ================================================================================
`tree`            folder by folder through a tree of files
`study`           what gets one result
`studies`         which studies a file or a tree of files holds
`examinations`    which series of DICOM examinations are studies
`ensemble`        one trained network or several, applied to a scan piece by piece
`segmented`       what they answer
`acquired`        how scans were acquired, and what is to be warned of
`results`         the files of a study: mask, probability, preview and report
`formats`         masks and maps in the format of the scan: NIfTI, NRRD, PNG
`segmentation`    DICOM-SEG objects that refer to their series
`privacy`         messages without the names that files and headers hold
`evaluated`       the masks behind an evaluation's numbers
`output`          the folder that all of it goes to
`predictor`       study after study, with progress, summary and resume
================  ================================================================================
"""

import lazy_loader

# As in the other packages: listed in the stub beside this file, loaded when first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
