"""The CNN of arXiv 2605.27616: an encoder-decoder with skips and the same channels at every level.

Every stage of the encoder halves the resolution by a 4 x 4 convolution of stride 2, every stage of the decoder doubles
it by a transposed one; between two decoder stages stands the concatenation with the encoder's features of that
resolution. Three peculiarities are kept, since the published numbers come from a network that has them: dropout of one
half behind every stage, so that a skip is dropped twice and dropout stands right before the last layer; no pooling and
no skip from the image; and a last layer that is initialised ten times as wide as the others (torch counts the fan-in of
a transposed convolution on its output side), which gives first logits of a standard deviation of about 8, and more
under dropout.

The first stage, the innermost stage of the encoder and the last layer stay in high precision under every recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

if TYPE_CHECKING:
    from monai_fp4.networks.configs import PaperCNNConfig

__all__ = ["PaperCNN"]


class PaperCNN(nn.Module):
    """Encoder and decoder with skips: image ``[B, C, H, W]`` to logits ``[B, out, H, W]``."""

    head_names = ("last",)

    def __init__(self, config: PaperCNNConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        stages, width = config.stages, config.width
        self.stem_names = ("encoders.0", f"encoders.{stages - 1}")
        self.encoders = nn.ModuleList(
            _stage(width if i else in_channels, width, act="relu" if i else ("leakyrelu", {"negative_slope": 0.2}))
            for i in range(stages)
        )
        self.decoders = nn.ModuleList(_stage(2 * width if i else width, width, up=True) for i in range(stages - 1))
        self.dropout = nn.Dropout(0.5)
        self.last = nn.ConvTranspose2d(2 * width, out_channels, kernel_size=4, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Segment ``[B, C, H, W]`` into logits ``[B, out, H, W]``."""
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        skips.pop()
        for decoder in self.decoders:
            x = self.dropout(torch.cat([decoder(x), skips.pop()], dim=1))
        logits: Tensor = self.last(x)
        return logits


def _stage(
    in_channels: int, width: int, act: str | tuple[str, dict[str, float]] = "relu", up: bool = False
) -> nn.Module:
    return Convolution(
        2,
        in_channels,
        width,
        strides=2,
        kernel_size=4,
        padding=1,
        output_padding=0 if up else None,
        is_transposed=up,
        adn_ordering="NA" if up else "NAD",
        act=act,
        norm="batch",
        dropout=0.5,
    )
