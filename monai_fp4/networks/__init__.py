"""The networks of the study, from MONAI's parts, matched in size: see :mod:`monai_fp4.networks.table`."""

from __future__ import annotations

from monai_fp4.networks.build import build_network
from monai_fp4.networks.sizes import SizeRule, check_image_size, size_rule
from monai_fp4.networks.table import (
    ARCHITECTURES,
    SCALE_TOLERANCE,
    SCALES,
    NetworkCell,
    find_cell,
    network_table,
)

__all__ = [
    "ARCHITECTURES",
    "SCALES",
    "SCALE_TOLERANCE",
    "NetworkCell",
    "SizeRule",
    "build_network",
    "check_image_size",
    "find_cell",
    "network_table",
    "size_rule",
]
