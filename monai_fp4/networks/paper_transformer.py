"""The two transformers of arXiv 2605.27616, ViT and Swin, with the decoder that they share.

Both keep one resolution, a token for each 16 x 16 patch, through all their blocks; there is no merging of patches. They
differ in the attention (global, or in windows of which every second block shifts the grid), in a class token that only
the ViT has, in the initial weights (the ViT keeps torch's, Swin draws a truncated normal of 0.02) and, at 500k, in the
number of heads. So "Swin against ViT" compares more than windows.

The windows are shifted even where one window is the whole grid, as at 15m: there every second block attends inside four
quadrants. Dropout of 0.1 stands behind the positions, on the attention weights and behind every linear layer of a
block but the projection to queries, keys and values; whole branches are dropped at rates that rise from 0 to 0.1.

The four linear layers of every block are quantized. The patch embedding, the whole decoder and the products inside
attention stay in high precision under every recipe.

Weights are drawn in the order in which the paper's code draws them, so one seed gives the paper's initial network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from monai.networks.blocks import MLPBlock
from monai.networks.layers import DropPath
from monai.networks.nets.swin_unetr import compute_mask, window_partition, window_reverse
from torch import Tensor, nn

from monai_fp4.networks.token_attention import TokenAttention
from monai_fp4.networks.window_attention import BiasedWindowAttention

if TYPE_CHECKING:
    from monai_fp4.networks.configs import PaperTransformerConfig

__all__ = ["PaperTransformer"]

_DROPOUT = 0.1


class PaperTransformer(nn.Module):
    """Patches, blocks at one resolution and a decoder without skips: ``[B, C, H, W]`` to logits ``[B, out, H, W]``."""

    stem_names = ("patch",)
    head_names = ("decoder",)

    def __init__(
        self, config: PaperTransformerConfig, *, in_channels: int, out_channels: int, image_size: tuple[int, ...]
    ) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        self.grid = tuple(side // patch for side in image_size)
        tokens = self.grid[0] * self.grid[1]
        rates = torch.linspace(0, _DROPOUT, config.depth).tolist()
        with torch.random.fork_rng(devices=[]):  # what MONAI's parts draw in their order is drawn again below
            self.patch = nn.Conv2d(in_channels, width, patch, stride=patch)
            self.patch_norm = nn.LayerNorm(width)
            self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if config.window_size is None else None
            self.positions = nn.Parameter(torch.zeros(1, tokens + (config.window_size is None), width))
            self.dropout = nn.Dropout(_DROPOUT)
            self.blocks = nn.ModuleList(
                GlobalBlock(config, rate)
                if config.window_size is None
                else WindowBlock(config, rate, self.grid, shift=config.window_size // 2 * (number % 2))
                for number, rate in enumerate(rates)
            )
            self.norm = nn.LayerNorm(width)
            self.decoder = _decoder(width, out_channels, patch)
        self._draw_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Segment ``[B, C, H, W]`` into logits ``[B, out, H, W]``."""
        x = self.patch_norm(self.patch(x).flatten(2).mT)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = self.dropout(x + self.positions)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.class_token is not None:
            x = x[:, 1:]
        logits: Tensor = self.decoder(x.mT.unflatten(2, self.grid))
        return logits

    def _draw_weights(self) -> None:
        swin = self.class_token is None
        self.patch.reset_parameters()
        if swin:
            nn.init.trunc_normal_(self.positions, std=0.02)
        linears = []
        for block in self.blocks:
            assert isinstance(block, GlobalBlock | WindowBlock)
            linears += block.linear_layers()
            qkv, projection, *mlp = block.linear_layers()
            qkv.reset_parameters()
            projection.reset_parameters()
            if isinstance(block, WindowBlock):
                nn.init.trunc_normal_(block.attention.relative_position_bias_table, std=0.02)
            for linear in mlp:
                linear.reset_parameters()
        for module in self.decoder:
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d):
                module.reset_parameters()
        if swin:
            for linear in linears:
                nn.init.trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)
        else:
            nn.init.trunc_normal_(self.positions, std=0.02)
            nn.init.trunc_normal_(self.class_token, std=0.02)  # type: ignore[arg-type]


class _Block(nn.Module):
    """A pre-norm block: ``x + drop(attend(norm(x)))``, then ``x + drop(mlp(norm(x)))``; tokens ``[B, N, C]``."""

    def __init__(self, config: PaperTransformerConfig, attention: nn.Module, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = MLPBlock(config.width, config.hidden, _DROPOUT)
        self.drop_path = BranchDropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``[B, N, C]``."""
        x = x + self.drop_path(self.attend(self.norm1(x)))
        output: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return output

    def attend(self, x: Tensor) -> Tensor:
        """Attend between all tokens, ``[B, N, C]``."""
        output: Tensor = self.attention(x)
        return output


class GlobalBlock(_Block):
    """Attention between all tokens (ViT)."""

    attention: TokenAttention

    def __init__(self, config: PaperTransformerConfig, drop_rate: float) -> None:
        attention = TokenAttention(config.width, config.num_heads, dropout_rate=_DROPOUT, qkv_bias=True)
        super().__init__(config, attention, drop_rate)

    def linear_layers(self) -> list[nn.Linear]:
        """Projections and MLP, in the order of the forward pass."""
        return [self.attention.qkv, self.attention.out_proj, self.mlp.linear1, self.mlp.linear2]


class WindowBlock(_Block):
    """Attention inside windows of the token grid, rolled by ``shift`` rows and columns (Swin)."""

    attention: BiasedWindowAttention

    def __init__(self, config: PaperTransformerConfig, drop_rate: float, grid: tuple[int, ...], shift: int) -> None:
        window = (config.window_size,) * 2
        attention = BiasedWindowAttention(
            config.width, config.num_heads, window, qkv_bias=True, attn_drop=_DROPOUT, proj_drop=_DROPOUT
        )
        super().__init__(config, attention, drop_rate)
        self.grid, self.window, self.shift = grid, window, shift
        mask = compute_mask(grid, window, (shift, shift), torch.device("cpu")) if shift else None
        self.register_buffer("mask", mask, persistent=False)

    def attend(self, x: Tensor) -> Tensor:
        """Attend inside each window, ``[B, N, C]``."""
        batch, tokens, width = x.shape
        image = x.view(batch, *self.grid, width)
        if self.shift:
            image = image.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attention(window_partition(image, self.window), self.mask)
        image = window_reverse(windows.view(-1, *self.window, width), self.window, (batch, *self.grid))
        if self.shift:
            image = image.roll((self.shift, self.shift), dims=(1, 2))
        return image.reshape(batch, tokens, width)

    def linear_layers(self) -> list[nn.Linear]:
        """Projections and MLP, in the order of the forward pass."""
        return [self.attention.qkv, self.attention.proj, self.mlp.linear1, self.mlp.linear2]


class BranchDropout(DropPath):
    """MONAI's ``DropPath`` with the paper's draw: uniform numbers of the branch's dtype, not Bernoulli ones.

    In FP16 and BF16 the uniform numbers are coarse, so branches are kept slightly less often than asked.
    """

    def drop_path(
        self, x: Tensor, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True
    ) -> Tensor:
        """Drop the branch of each sample of ``[B, ...]`` with a probability."""
        if drop_prob == 0.0 or not training:
            return x
        keep = 1 - drop_prob
        kept = (keep + torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)).floor_()
        return x / keep * kept


def _decoder(width: int, out_channels: int, patch: int) -> nn.Sequential:
    """Double the resolution until patches are pixels, halving the channels; then one logit a pixel and class."""
    modules: list[nn.Module] = []
    channels, stages = width, patch.bit_length() - 1
    for stage in range(stages):
        narrower = max(8, width // 2 ** (stage + 1))
        groups = next(count for count in range(8, 0, -1) if narrower % count == 0)
        modules += [nn.ConvTranspose2d(channels, narrower, 2, stride=2), nn.GroupNorm(groups, narrower), nn.GELU()]
        channels = narrower
    return nn.Sequential(*modules, nn.Conv2d(channels, out_channels, 1))
