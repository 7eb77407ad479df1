"""The light decoder that turns an encoder's features into logits at the full resolution.

Where the time of a segmentation network goes is decided at its finest level: a 3 x 3 convolution at full resolution
costs as much as the same one with twice the channels at half of it, and on a CPU it is bound by memory. A feature
pyramid whose smoothing convolutions run at full resolution therefore spends most of its step there. This decoder never
does. It walks from the coarsest level to stride 2 and leaves the last doubling to a sub-pixel head (Shi et al.,
arXiv 1609.05158): a 1 x 1 convolution gives ``2**spatial_dims`` logits for every output channel, which are interleaved.

What the patches of a transformer lose is brought back by one thin skip: a strided 3 x 3 convolution of the image at
stride 2 (``detail``), added before the last smoothing convolution.

The laterals are ``nn.Linear`` on channels-last features: a 1 x 1 convolution is one, and Transformer Engine has a
module for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers import Conv
from monai.networks.utils import pixelshuffle
from torch import Tensor, nn

__all__ = ["LightDecoder"]

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class LightDecoder(nn.Module):
    """Top-down decoder: laterals, one 3 x 3 convolution a level, a detail skip at stride 2 and a sub-pixel head.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        feature_channels: channels of the encoder's features, finest first.
        feature_strides: their strides, powers of two, finest first, none below 4; features of one stride are added up.
        width: channels of the levels at stride 4 and above.
        detail_width: channels of the level at stride 2.
    """

    head_names = ("head",)  # what `convert` leaves in high precision

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        feature_channels: Sequence[int],
        feature_strides: Sequence[int],
        width: int,
        detail_width: int,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.feature_strides = tuple(feature_strides)
        self.strides = [2**power for power in range(2, feature_strides[-1].bit_length())]
        self.laterals = nn.ModuleList(nn.Linear(channels, width) for channels in feature_channels)
        self.smooth = nn.ModuleList(
            _conv_norm_act(spatial_dims, width, width if stride > 4 else detail_width) for stride in self.strides
        )
        self.detail = _conv_norm_act(spatial_dims, in_channels, detail_width, strides=2)
        self.fuse = _conv_norm_act(spatial_dims, detail_width, detail_width)
        self.head = Conv[Conv.CONV, spatial_dims](detail_width, out_channels * 2**spatial_dims, kernel_size=1)

    def forward(self, image: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Decode.

        Args:
            image: ``[B, in_channels, *size]``.
            features: channels last, ``[B, *size / stride, channels]``, finest first.

        Returns:
            Logits, ``[B, out_channels, *size]``.
        """
        x: Tensor | None = None
        # The laterals are channels last in memory; mixing layouts would make every addition a strided one.
        image = image.contiguous(memory_format=_CHANNELS_LAST[self.spatial_dims])
        for stride, smooth in zip(reversed(self.strides), reversed(self.smooth), strict=True):
            for feature_stride, lateral, feature in zip(self.feature_strides, self.laterals, features, strict=True):
                if feature_stride == stride:
                    added = lateral(feature).movedim(-1, 1)
                    x = added if x is None else x + added
            x = F.interpolate(smooth(x), scale_factor=2.0, mode="nearest")
        x = self.fuse(x + self.detail(image))
        return pixelshuffle(self.head(x), self.spatial_dims, 2)


def _conv_norm_act(spatial_dims: int, in_channels: int, out_channels: int, strides: int = 1) -> nn.Module:
    # The norm subtracts the mean, so a bias before it would get no gradient.
    return Convolution(
        spatial_dims, in_channels, out_channels, strides=strides, kernel_size=3, act="relu", norm="batch", bias=False
    )
