"""Train, compare and ship medical segmentation models in NVFP4, through MONAI bundles.

>>> import torch
>>> from monai_fp4 import build_network, convert
>>> network = build_network("unet", "500k", image_size=(64, 64))
>>> network, report = convert(network, "sr")
>>> network(torch.zeros(1, 3, 64, 64)).shape
torch.Size([1, 1, 64, 64])
"""

import lazy_loader

__version__ = "0.1.0"

# Names are listed once, in the stub beside this file, and loaded when first asked for (PEP 562): torch and MONAI take
# seconds, which commands that compute nothing do not need.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
