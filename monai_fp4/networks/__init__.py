"""The networks of the study, from MONAI's parts, matched in size: see :mod:`monai_fp4.networks.table`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from monai_fp4.networks.sizes import SizeRule, check_image_size, size_rule
from monai_fp4.networks.table import (
    ARCHITECTURES,
    SCALE_TOLERANCE,
    SCALES,
    NetworkCell,
    find_cell,
    network_table,
)

if TYPE_CHECKING:
    from monai_fp4.networks.build import build_network

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


def __getattr__(name: str) -> Any:
    """Load torch and MONAI only for who builds a network: the table is read by commands that build none."""
    if name != "build_network":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from monai_fp4.networks.build import build_network

    return build_network
