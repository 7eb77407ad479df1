"""The networks of the study, from MONAI's parts, matched in size: see :mod:`monai_fp4.networks.table`."""

import lazy_loader

# Names are listed once, in the stub beside this file, and loaded when first asked for (PEP 562): torch and MONAI take
# seconds, which commands that compute nothing do not need.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
