"""The table of networks: every architecture at every scale, as data.

A *scale* is a parameter count that the architectures are matched at, so that a comparison of recipes compares
architectures and not sizes. Each entry below gives a network within 3 % of its scale at the default arguments (2D,
3 -> 1 channels, 256 x 256). The command line, the bundles, the docs and the tests all read this table; nothing else
knows which cells exist.

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

__all__ = [
    "ARCHITECTURES",
    "SCALES",
    "SCALE_TOLERANCE",
    "NetworkCell",
    "SwinConfig",
    "SwinUNETRConfig",
    "UNetConfig",
    "ViTConfig",
    "find_cell",
    "network_table",
]

SCALES: Mapping[str, int] = MappingProxyType({"500k": 500_000, "4m": 4_000_000, "15m": 15_000_000})
"""Scale name -> the parameter count that its networks are matched at."""

SCALE_TOLERANCE = 0.03
"""Largest relative distance of a network from its scale, at the default arguments."""

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "unet": "MONAI UNet with batch norm, the paper's CNN",
        "swin": "MONAI SwinTransformer encoder with a light top-down decoder",
        "vit": "MONAI ViT encoder with a light top-down decoder",
        "swinunetr": "MONAI SwinUNETR as it is, at 15m only",
    }
)
"""Architecture name -> one line on what it is."""


@dataclass(frozen=True)
class UNetConfig:
    """MONAI UNet: ``channels`` a level (each level halves the resolution) and residual units a level."""

    channels: tuple[int, ...]
    num_res_units: int


@dataclass(frozen=True)
class SwinConfig:
    """Swin encoder (``width`` doubles a stage) and its decoder.

    ``decoder_width`` counts the channels of the decoder's levels at the encoder's strides, ``detail_width`` those at
    stride 2.
    """

    width: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    decoder_width: int
    detail_width: int
    patch_size: int = 4
    window_size: int = 8
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class ViTConfig:
    """ViT encoder (``width`` channels on patches of ``patch_size`` pixels) and its decoder.

    ``taps`` are the numbers of blocks after which the decoder reads the features; the last is the number of blocks.
    """

    width: int
    taps: tuple[int, ...]
    num_heads: int
    decoder_width: int
    detail_width: int
    patch_size: int = 8
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class SwinUNETRConfig:
    """MONAI SwinUNETR's own arguments; the patch size is its default of 2."""

    feature_size: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int = 8


NetworkConfig = UNetConfig | SwinConfig | ViTConfig | SwinUNETRConfig


@dataclass(frozen=True)
class NetworkCell:
    """One row of the table: architecture, scale and the sizes that give the scale's parameter count."""

    arch: str
    scale: str
    config: NetworkConfig

    @property
    def parameters(self) -> int:
        """The parameter count of the scale (the network itself is within ``SCALE_TOLERANCE`` of it)."""
        return SCALES[self.scale]


_TABLE: tuple[NetworkCell, ...] = (
    NetworkCell("unet", "500k", UNetConfig((16, 32, 64, 128, 160), 0)),
    NetworkCell("unet", "4m", UNetConfig((48, 96, 144, 192, 288), 2)),
    NetworkCell("unet", "15m", UNetConfig((48, 96, 192, 384, 768), 2)),
    NetworkCell("swin", "500k", SwinConfig(32, (2, 2, 1), (2, 4, 8), 64, 32)),
    NetworkCell("swin", "4m", SwinConfig(32, (2, 2, 8, 2), (2, 4, 8, 16), 128, 32)),
    NetworkCell("swin", "15m", SwinConfig(64, (2, 2, 8, 2), (2, 4, 8, 16), 192, 64)),
    NetworkCell("vit", "500k", ViTConfig(96, (1, 2, 3), 3, 96, 32)),
    NetworkCell("vit", "4m", ViTConfig(192, (2, 4, 6, 8), 6, 128, 32)),
    NetworkCell("vit", "15m", ViTConfig(384, (2, 4, 6, 8), 12, 160, 64)),
    NetworkCell("swinunetr", "15m", SwinUNETRConfig(36, (2, 2, 6, 2), (3, 6, 12, 24))),
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
