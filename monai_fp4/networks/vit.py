"""ViT: MONAI's ViT as the encoder, the light decoder behind it.

Positions are the fixed sine-cosine ones (of MONAI's ViT too), for learned ones would grow with the image: at 256 x 256
they would be a fifth of the 500k network, and the scales would match at one image size only. They are a buffer outside
the ``state_dict``, since they follow from the size.

MONAI's transformer blocks hold a ``norm_cross_attn`` that self-attention never runs. Its parameters get no gradient,
which DistributedDataParallel refuses, so it is taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch.nn.functional as F
from monai.networks.nets import ViT
from torch import Tensor, nn

from monai_fp4.networks.decoder import LightDecoder
from monai_fp4.networks.token_attention import TokenAttention

if TYPE_CHECKING:
    from monai_fp4.networks.configs import ViTConfig

__all__ = ["ViTEncoder", "ViTSegmenter"]


class ViTEncoder(ViT):
    """MONAI's ViT, giving the features after several of its blocks, channels last."""

    def __init__(self, *, config: ViTConfig, in_channels: int, image_size: Sequence[int]) -> None:
        super().__init__(
            in_channels=in_channels,
            img_size=tuple(image_size),
            patch_size=config.patch_size,
            hidden_size=config.width,
            mlp_dim=int(config.width * config.mlp_ratio),
            num_layers=config.taps[-1],
            num_heads=config.num_heads,
            pos_embed_type="sincos",
            spatial_dims=len(image_size),
            qkv_bias=True,
        )
        self.taps = config.taps
        self.grid = tuple(side // config.patch_size for side in image_size)
        positions = self.patch_embedding.position_embeddings.detach()
        del self.patch_embedding.position_embeddings
        self.patch_embedding.register_buffer("position_embeddings", positions, persistent=False)
        for block in self.blocks:
            del block.norm_cross_attn
            # Not built anew, which would draw other weights from the seed: the class adds a forward pass, no state.
            block.attn.__class__ = TokenAttention
            block.attn.use_flash_attention = True

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode ``[B, C, *size]`` into a ``[B, *size / patch_size, width]`` for each tap, layer-normalised."""
        x = self.patch_embedding(x)
        outputs = []
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number == self.taps[-1]:
                outputs.append(self.norm(x))
            elif number in self.taps:
                outputs.append(F.layer_norm(x, x.shape[-1:]))
        return [output.unflatten(1, self.grid) for output in outputs]


class ViTSegmenter(nn.Module):
    """ViT encoder and light decoder: image ``[B, C, *size]`` to logits ``[B, out, *size]``."""

    stem_names = ("encoder.patch_embedding", "decoder.detail")

    def __init__(self, config: ViTConfig, *, in_channels: int, out_channels: int, image_size: Sequence[int]) -> None:
        super().__init__()
        self.encoder = ViTEncoder(config=config, in_channels=in_channels, image_size=image_size)
        self.decoder = LightDecoder(
            spatial_dims=len(image_size),
            in_channels=in_channels,
            out_channels=out_channels,
            feature_channels=[config.width] * len(config.taps),
            feature_strides=[config.patch_size] * len(config.taps),
            width=config.decoder_width,
            detail_width=config.detail_width,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Segment ``[B, C, *size]`` into logits ``[B, out, *size]``."""
        return self.decoder(x, self.encoder(x))
