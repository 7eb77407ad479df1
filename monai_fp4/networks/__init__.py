"""The networks of the study, from MONAI's parts, matched in size: see :mod:`monai_fp4.networks.table`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from monai_fp4.networks.build import build_network
    from monai_fp4.networks.memory_format import channels_last, match_layouts, to_channels_last
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
    "channels_last",
    "check_image_size",
    "find_cell",
    "match_layouts",
    "network_table",
    "size_rule",
    "to_channels_last",
]

# Torch and MONAI only for who builds a network: the table is read by commands that build none.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "build": ["build_network"],
        "memory_format": ["channels_last", "match_layouts", "to_channels_last"],
        "sizes": ["SizeRule", "check_image_size", "size_rule"],
        "table": ["ARCHITECTURES", "SCALES", "SCALE_TOLERANCE", "NetworkCell", "find_cell", "network_table"],
    },
)
