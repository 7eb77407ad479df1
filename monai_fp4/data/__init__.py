"""Data: manifests, readers, synthetic data, transforms and data sets.

>>> from monai_fp4.data import load_manifest, select_patients
>>> [patient.id for patient in select_patients(load_manifest("phantom"), fold=0, part="test")][0]
'PHANTOM_NA_0021'
"""

import lazy_loader

# Names are listed once, in the stub beside this file, and loaded when first asked for (PEP 562): torch and MONAI take
# seconds, which commands that compute nothing do not need.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
