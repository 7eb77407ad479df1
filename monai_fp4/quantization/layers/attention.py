"""Attention blocks with their two products in FP4, for recipes that say ``attention="fp4"``.

The projections of an attention block are linear layers, which `convert` swaps like any other. Its products, queries
with keys and probabilities with values, have no weights, and the study keeps them in high precision. These blocks
compute them by `monai_fp4.quantization.layers.attention_product`; the softmax between them stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from monai_fp4.quantization.layers.attention_product import fp4_product
from monai_fp4.quantization.layers.custom_operator import observed
from monai_fp4.quantization.layers.history import LayerHistory
from monai_fp4.quantization.recipes import Recipe

__all__ = ["ATTENTION_TYPES", "FP4Attention", "FP4SABlock", "FP4WindowAttention", "fp4_attention"]


class FP4Attention:
    """Mixin over an attention block: same children, parameters and ``state_dict`` keys, its two products in FP4.

    Attributes:
        float_type: the block's class.
        recipe: how the products are quantized.
        active: False runs the block as its class would; the precision schedule sets it.
        history: how often it ran in FP4, and its stream of random bits.
    """

    float_type: ClassVar[type[nn.Module]]
    recipe: Recipe
    active: bool
    history: LayerHistory

    @classmethod
    def from_float(cls, block: nn.Module, recipe: Recipe) -> Any:
        """Wrap an existing block: same children, parameters and buffers."""
        new: Any = cls.__new__(cls)
        for key, value in block.__dict__.items():
            new.__dict__[key] = value.copy() if isinstance(value, dict) else value
        new.recipe, new.active, new.history = recipe, True, LayerHistory()
        return new

    def _record(self) -> None:
        if not observed():  # operators count when they run
            self.history.record()


class FP4SABlock(FP4Attention, SABlock):
    """MONAI's ``SABlock`` (ViT) with FP4 products; flash attention is not used while it is active."""

    float_type = SABlock

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend; ``x`` is ``[B, tokens, C]``, as is the result."""
        if not self.active:
            output: Tensor = super().forward(x, attn_mask)
            return output
        self._record()
        if self.use_combined_linear:
            q, k, v = self.input_rearrange(self.qkv(x))
        else:
            q, k, v = (self.input_rearrange(project(x)) for project in (self.to_q, self.to_k, self.to_v))
        if self.attention_dtype is not None:
            q, k = q.to(self.attention_dtype), k.to(self.attention_dtype)
        scores = fp4_product(q, k, self.recipe, self.history) * self.scale
        if self.rel_positional_embedding is not None:
            scores = self.rel_positional_embedding(x, scores, q)
        tokens = x.shape[-2]
        if self.causal:
            if attn_mask is not None:
                raise ValueError("Causal attention does not support attention masks.")  # as MONAI's block
            scores = scores.masked_fill(self.causal_mask[:, :, :tokens, :tokens] == 0, float("-inf"))
        if attn_mask is not None:
            scores = scores.masked_fill(attn_mask[:, None, None, :] == 0, float("-inf"))
        probabilities = scores.softmax(dim=-1)
        if self.save_attn:
            self.att_mat = probabilities.detach()
        attended = fp4_product(self.drop_weights(probabilities), v.mT, self.recipe, self.history).to(v.dtype)
        merged = self.out_rearrange(attended)
        result: Tensor = self.drop_output(self.out_proj(merged) if self.include_fc else merged)
        return result


class FP4WindowAttention(FP4Attention, WindowAttention):
    """MONAI's ``WindowAttention`` (SwinTransformer, SwinUNETR) with FP4 products."""

    float_type = WindowAttention

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend in windows; ``x``: ``[windows * B, tokens, C]``, ``mask``: ``[windows, tokens, tokens]`` or None."""
        if not self.active:
            output: Tensor = super().forward(x, mask)
            return output
        self._record()
        windows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = fp4_product(q * self.scale, k, self.recipe, self.history)
        index = self.relative_position_index[:tokens, :tokens].reshape(-1)
        scores = scores + self.relative_position_bias_table[index].reshape(tokens, tokens, -1).permute(2, 0, 1)
        if mask is not None:
            shifted = scores.unflatten(0, (-1, mask.shape[0])) + mask[:, None]
            scores = shifted.flatten(0, 1)
        probabilities = self.attn_drop(self.softmax(scores)).to(v.dtype)
        attended = (
            fp4_product(probabilities, v.mT, self.recipe, self.history).transpose(1, 2).reshape(windows, tokens, width)
        )
        result: Tensor = self.proj_drop(self.proj(attended))
        return result


ATTENTION_TYPES: Mapping[type[nn.Module], type[FP4Attention]] = MappingProxyType(
    {SABlock: FP4SABlock, WindowAttention: FP4WindowAttention}
)
"""Attention blocks of MONAI, each with the class that computes its products in FP4."""


def fp4_attention(kind: type[nn.Module]) -> type[FP4Attention] | None:
    """Find the class that computes the products of an attention block in FP4.

    Args:
        kind: the exact class of the block: one of `ATTENTION_TYPES`, or one that declares it in a static method
            ``fp4_type()``. A subclass inherits neither, since it may attend in another way.

    Returns:
        The class to swap in, or None for what is no such block.
    """
    if "fp4_type" in vars(kind):
        declared: type[FP4Attention] = kind.fp4_type()  # type: ignore[attr-defined]
        return declared
    return ATTENTION_TYPES.get(kind)
