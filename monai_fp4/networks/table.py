"""The table of networks: every architecture at every scale, as data.

A *scale* is a parameter count that the architectures are matched at, so that a comparison of recipes compares
architectures and not sizes. Each entry below gives a network within 3 % of its scale at the default arguments (2D,
3 -> 1 channels, 256 x 256); the paper's own networks, `paper_*`, have the sizes that they have, up to a tenth off. The
command line, the bundles, the docs and the tests all read this table; nothing else knows which cells exist.

Channel widths are multiples of 32 wherever the parameter budget allows, because NVFP4 scales blocks of 16 channels and
Transformer Engine's GEMMs want multiples of 32; no width is off the 16 grid, so no layer pads a block in the middle of
its channels. Only the UNet of 500k has layers of 16 channels.

>>> [f"{cell.arch}_{cell.scale}" for cell in network_table() if cell.arch == "vit"]
['vit_500k', 'vit_4m', 'vit_15m']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from monai_fp4.errors import ConfigError, unknown_name
from monai_fp4.networks.configs import (
    NetworkConfig,
    PaperCNNConfig,
    PaperTransformerConfig,
    SwinConfig,
    SwinUNETRConfig,
    UNetConfig,
    ViTConfig,
)

__all__ = [
    "ARCHITECTURES",
    "SCALES",
    "SCALE_TOLERANCE",
    "Architecture",
    "NetworkCell",
    "find_cell",
    "network_table",
]

SCALES: Mapping[str, int] = MappingProxyType({"500k": 500_000, "4m": 4_000_000, "15m": 15_000_000})
"""Scale name -> the parameter count that its networks are matched at."""

SCALE_TOLERANCE = 0.03
"""Largest relative distance of a network from its scale, at the default arguments, if it is not `of_the_paper`."""


@dataclass(frozen=True)
class Architecture:
    """One line of the registry: what the architecture is, and its config at each scale where it exists."""

    summary: str
    configs: Mapping[str, NetworkConfig]


_REGISTRY: Mapping[str, Architecture] = {
    "unet": Architecture(
        "MONAI UNet with batch norm",
        {
            "500k": UNetConfig((16, 32, 64, 128, 160), 0),
            "4m": UNetConfig((48, 96, 144, 192, 288), 2),
            "15m": UNetConfig((48, 96, 192, 384, 768), 2),
        },
    ),
    "swin": Architecture(
        "MONAI SwinTransformer encoder with a light top-down decoder",
        {
            "500k": SwinConfig(32, (2, 2, 1), (2, 4, 8), 64, 32),
            "4m": SwinConfig(32, (2, 2, 8, 2), (2, 4, 8, 16), 128, 32),
            "15m": SwinConfig(64, (2, 2, 8, 2), (2, 4, 8, 16), 192, 64),
        },
    ),
    "vit": Architecture(
        "MONAI ViT encoder with a light top-down decoder",
        {
            "500k": ViTConfig(96, (1, 2, 3), 3, 96, 32),
            "4m": ViTConfig(192, (2, 4, 6, 8), 6, 128, 32),
            "15m": ViTConfig(384, (2, 4, 6, 8), 12, 160, 64),
        },
    ),
    "swinunetr": Architecture(
        "MONAI SwinUNETR as it is, at 15m only", {"15m": SwinUNETRConfig(36, (2, 2, 6, 2), (3, 6, 12, 24))}
    ),
    "paper_cnn": Architecture(
        "the paper's CNN, layer by layer; 2D",
        {"500k": PaperCNNConfig(4, 64), "4m": PaperCNNConfig(6, 128), "15m": PaperCNNConfig(7, 224)},
    ),
    "paper_swin": Architecture(
        "the paper's Swin-ViT, layer by layer; 2D",
        {
            "500k": PaperTransformerConfig(64, 10, 4, 192, 4),
            "4m": PaperTransformerConfig(192, 9, 6, 576, 8),
            "15m": PaperTransformerConfig(448, 8, 14, 896, 16),
        },
    ),
    "paper_vit": Architecture(
        "the paper's ViT, layer by layer; 2D",
        {
            "500k": PaperTransformerConfig(64, 10, 2, 192),
            "4m": PaperTransformerConfig(192, 9, 6, 576),
            "15m": PaperTransformerConfig(448, 8, 14, 896),
        },
    ),
}

ARCHITECTURES: Mapping[str, str] = MappingProxyType({name: item.summary for name, item in _REGISTRY.items()})
"""Architecture name -> one line on what it is."""


@dataclass(frozen=True)
class NetworkCell:
    """One row of the table: architecture, scale and the sizes that give the scale's parameter count."""

    arch: str
    scale: str
    config: NetworkConfig


_TABLE = tuple(
    NetworkCell(arch, scale, config) for arch, item in _REGISTRY.items() for scale, config in item.configs.items()
)


def network_table() -> tuple[NetworkCell, ...]:
    """Every network that can be built, in the order of the docs: architecture by architecture, small to large."""
    return _TABLE


def find_cell(arch: str, scale: str) -> NetworkCell:
    """Look a network up.

    Args:
        arch: one of ``ARCHITECTURES``.
        scale: one of ``SCALES``.

    Returns:
        The row of the table.

    Raises:
        ConfigError: the architecture or the scale is unknown (the nearest names are given), or the architecture does
            not exist at that scale.
    """
    if arch not in ARCHITECTURES:
        raise unknown_name("architecture", arch, ARCHITECTURES)
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    for cell in _TABLE:
        if (cell.arch, cell.scale) == (arch, scale):
            return cell
    offered = ", ".join(repr(cell.scale) for cell in _TABLE if cell.arch == arch)
    raise ConfigError(
        f"architecture {arch!r} exists at scale {offered} only, found scale {scale!r}; choose that scale or one of "
        f"{', '.join(repr(name) for name in ARCHITECTURES if name != arch)}"
    )
