"""MONAI's window attention with fewer passes over its largest tensor.

The logits, ``[B * windows, heads, tokens, tokens]``, are the largest tensor of a Swin network. MONAI adds the position
bias to them and then the mask; under autocast the first addition also promotes them to FP32. Here bias and mask, which
are small, are added to each other first: one pass over the logits instead of two, and the same results, since the mask
is 0 where it does not exclude.
"""

from __future__ import annotations

from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor

from monai_fp4.quantization.layers.attention import FP4WindowAttention

__all__ = ["BiasedWindowAttention", "FP4BiasedWindowAttention"]


class BiasedWindowAttention(WindowAttention):
    """MONAI's window attention with one addition to the logits; same parameters and results."""

    @staticmethod
    def fp4_type() -> type[FP4WindowAttention]:
        """Return the class that `convert` swaps in where a recipe wants the products of attention in FP4."""
        return FP4BiasedWindowAttention

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend inside each window.

        Args:
            x: ``[B * windows, tokens, C]``.
            mask: ``[windows, tokens, tokens]``, 0 or -100 between tokens that are not neighbours, or None.

        Returns:
            ``[B * windows, tokens, C]``.
        """
        tokens = x.shape[1]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        index = self.relative_position_index[:tokens, :tokens].reshape(-1)
        bias = self.relative_position_bias_table[index].t().reshape(-1, tokens, tokens)
        if mask is None:
            logits = logits + bias
        else:
            logits = (logits.unflatten(0, (-1, len(mask))) + (bias + mask.unsqueeze(1))).flatten(0, 1)
        weights = self.attn_drop(self.softmax(logits)).to(v.dtype)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        result: Tensor = self.proj_drop(self.proj(attended))
        return result


class FP4BiasedWindowAttention(FP4WindowAttention, BiasedWindowAttention):
    """The same with its two products in FP4, for recipes that say ``attention="fp4"``."""

    float_type = BiasedWindowAttention
