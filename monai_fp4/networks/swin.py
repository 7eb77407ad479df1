"""Swin: MONAI's SwinTransformer as the encoder, the light decoder behind it.

MONAI's own forward hands out each stage after its patch merging, so the finest map that a decoder gets is the bare
patch embedding. Here each stage hands out what its attention blocks computed, before the merging, as in the Swin paper
(Liu et al., arXiv 2103.14030), and the merging after the last stage, which nothing reads, is left out.

MONAI computes the mask of the shifted windows in every stage of every forward pass, by a few dozen small operations; it
depends on the size only, so it is kept here. The attention is :class:`BiasedWindowAttention`. Neither changes a result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    SwinTransformer,
    compute_mask,
    get_window_size,
)
from torch import Tensor, nn

from monai_fp4.networks.decoder import LightDecoder
from monai_fp4.networks.window_attention import BiasedWindowAttention

if TYPE_CHECKING:
    from monai_fp4.networks.configs import SwinConfig

__all__ = ["SwinEncoder", "SwinSegmenter"]


@functools.lru_cache(maxsize=32)
def _shift_mask(size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], device: torch.device) -> Tensor:
    # Not in inference mode, even if validation comes first: training could not use the tensor later.
    with torch.inference_mode(False):
        return compute_mask(size, window, shift, device)


class SwinEncoder(SwinTransformer):
    """MONAI's SwinTransformer, with the stages' own outputs, channels last."""

    def __init__(self, *, config: SwinConfig, in_channels: int, spatial_dims: int) -> None:
        super().__init__(
            in_chans=in_channels,
            embed_dim=config.width,
            window_size=(config.window_size,) * spatial_dims,
            patch_size=(config.patch_size,) * spatial_dims,
            depths=config.depths,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            spatial_dims=spatial_dims,
            downsample="mergingv2",
        )
        self.stages[-1].downsample = None
        for stage, heads in zip(self.stages, config.num_heads, strict=True):
            for block in stage.blocks:
                block.attn = BiasedWindowAttention(block.dim, heads, block.window_size, qkv_bias=True)

    @property
    def stages(self) -> list[BasicLayer]:
        """The stages, finest first."""
        lists = (self.layers1, self.layers2, self.layers3, self.layers4)
        return [stage for layers in lists for stage in layers]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode.

        Args:
            x: ``[B, C, *size]``.

        Returns:
            For each stage ``[B, *size / stride, width]``, channels last and layer-normalised, finest first.
        """
        x = self.patch_embed(x).movedim(1, -1).contiguous()
        outputs = []
        for stage in self.stages:
            size = tuple(x.shape[1:-1])
            window, shift = get_window_size(size, stage.window_size, stage.shift_size)
            padded = tuple(-(-side // w) * w for side, w in zip(size, window, strict=True))
            mask = _shift_mask(padded, window, shift, x.device)
            for block in stage.blocks:
                x = block(x, mask)
            outputs.append(F.layer_norm(x, x.shape[-1:]))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return outputs


class SwinSegmenter(nn.Module):
    """Swin encoder and light decoder: image ``[B, C, *size]`` to logits ``[B, out, *size]``."""

    stem_names = ("encoder.patch_embed.proj", "decoder.detail")

    def __init__(self, config: SwinConfig, *, in_channels: int, out_channels: int, spatial_dims: int) -> None:
        super().__init__()
        stages: Sequence[int] = range(len(config.depths))
        self.encoder = SwinEncoder(config=config, in_channels=in_channels, spatial_dims=spatial_dims)
        self.decoder = LightDecoder(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            feature_channels=[config.width * 2**stage for stage in stages],
            feature_strides=[config.patch_size * 2**stage for stage in stages],
            width=config.decoder_width,
            detail_width=config.detail_width,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Segment ``[B, C, *size]`` into logits ``[B, out, *size]``."""
        return self.decoder(x, self.encoder(x))
