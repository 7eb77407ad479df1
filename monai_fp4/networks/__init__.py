"""The networks of the study, from MONAI's parts, matched in size: see :mod:`monai_fp4.networks.table`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from monai_fp4.networks.activations import quicken_prelu
    from monai_fp4.networks.build import build_network, check_image_size
    from monai_fp4.networks.configs import NetworkConfig, SwinConfig, SwinUNETRConfig, UNetConfig, ViTConfig
    from monai_fp4.networks.decoder import LightDecoder
    from monai_fp4.networks.memory_format import channels_last, match_layouts, to_channels_last
    from monai_fp4.networks.sizes import SizeRule
    from monai_fp4.networks.swin import SwinEncoder
    from monai_fp4.networks.table import (
        ARCHITECTURES,
        SCALE_TOLERANCE,
        SCALES,
        NetworkCell,
        find_cell,
        network_table,
    )
    from monai_fp4.networks.window_attention import BiasedWindowAttention

__all__ = [
    "ARCHITECTURES",
    "SCALES",
    "SCALE_TOLERANCE",
    "BiasedWindowAttention",
    "LightDecoder",
    "NetworkCell",
    "NetworkConfig",
    "SizeRule",
    "SwinConfig",
    "SwinEncoder",
    "SwinUNETRConfig",
    "UNetConfig",
    "ViTConfig",
    "build_network",
    "channels_last",
    "check_image_size",
    "find_cell",
    "match_layouts",
    "network_table",
    "quicken_prelu",
    "to_channels_last",
]

# Torch and MONAI only for who builds a network: the table is read by commands that build none.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "activations": ["quicken_prelu"],
        "build": ["build_network", "check_image_size"],
        "configs": ["NetworkConfig", "SwinConfig", "SwinUNETRConfig", "UNetConfig", "ViTConfig"],
        "decoder": ["LightDecoder"],
        "memory_format": ["channels_last", "match_layouts", "to_channels_last"],
        "sizes": ["SizeRule"],
        "swin": ["SwinEncoder"],
        "table": ["ARCHITECTURES", "SCALES", "SCALE_TOLERANCE", "NetworkCell", "find_cell", "network_table"],
        "window_attention": ["BiasedWindowAttention"],
    },
)
