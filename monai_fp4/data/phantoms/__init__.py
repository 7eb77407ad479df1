"""Synthetic data, bit for bit the same on every machine: brain MRI (`phantom`) and chest CT with nodules (`nodules`).

Both are drawn from arithmetic that IEEE 754 rounds in one way only, so that their manifests can hold hashes.
"""

from monai_fp4.data.phantoms.nodules import write_nodules
from monai_fp4.data.phantoms.phantom import write_phantom

__all__ = ["write_nodules", "write_phantom"]
