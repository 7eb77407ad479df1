"""``build_network``: from the names of an architecture and a scale to a module, its image size checked before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monai_fp4.errors import ConfigError
from monai_fp4.networks.table import find_cell

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_network", "check_image_size"]


def build_network(
    arch: str,
    scale: str,
    in_channels: int = 3,
    out_channels: int = 1,
    image_size: Sequence[int] = (256, 256),
    spatial_dims: int = 2,
) -> nn.Module:
    """Build one network of the table.

    In 2D, with 3 -> 1 channels, the network is within 3 % of its scale. The same widths in 3D give more parameters,
    since kernels, patches and merged tokens have a third axis:

    =========  ======  =====  =====
    in 3D        500k     4m    15m
    =========  ======  =====  =====
    unet        1.48M  11.9M  43.2M
    swin        0.80M   5.5M  18.5M
    vit         0.87M   4.5M  16.1M
    swinunetr                 36.3M
    =========  ======  =====  =====

    Args:
        arch: a name of `ARCHITECTURES`, such as ``"unet"``.
        scale: ``"500k"``, ``"4m"`` or ``"15m"``.
        in_channels: channels of the image, any number from 1.
        out_channels: channels of the logits, any number from 1.
        image_size: pixels (voxels) of each axis; see :func:`check_image_size`.
        spatial_dims: 2 or 3.

    Returns:
        A module that takes ``[B, in_channels, *image_size]`` to logits ``[B, out_channels, *image_size]``.

    Raises:
        ConfigError: an unknown name, a network that does not exist at that scale, a channel count below 1 or an image
            size that the network cannot take.

    >>> import torch
    >>> build_network("swin", "500k", image_size=(64, 64))(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1, 64, 64])
    """
    size = check_image_size(arch, scale, image_size, spatial_dims)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if not isinstance(channels, int) or channels < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, found {channels!r}; set it to the data's")
    return find_cell(arch, scale).config.build(in_channels, out_channels, size)


def check_image_size(arch: str, scale: str, image_size: Sequence[int], spatial_dims: int = 2) -> tuple[int, ...]:
    """Check that a network can take images of this size.

    Args:
        arch: architecture name.
        scale: scale name.
        image_size: pixels (voxels) of each of the ``spatial_dims`` axes.
        spatial_dims: 2 or 3.

    Returns:
        The size as a tuple of plain integers.

    Raises:
        ConfigError: unknown network, ``spatial_dims`` other than 2 or 3, a size of another length, or a side that the
            network cannot take; the nearest size that it can take is named.
    """
    return find_cell(arch, scale).config.size_rule.check(f"{arch}_{scale}", image_size, spatial_dims)
