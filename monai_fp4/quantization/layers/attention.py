"""Attention blocks with their two products in FP4, for recipes that say ``attention="fp4"``.

The projections of an attention block are linear layers, which `convert` swaps like any other. Its products, queries
with keys and probabilities with values, have no weights, and the study keeps them in high precision. These blocks
compute them by `monai_fp4.quantization.layers.attention_product`; the softmax between them stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from monai_fp4.quantization.layers.attention_product import fp4_product
from monai_fp4.quantization.layers.custom_operator import observed
from monai_fp4.quantization.layers.history import LayerHistory
from monai_fp4.quantization.recipes import Recipe

__all__ = [
    "ATTENTION_TYPES",
    "FP4Attention",
    "FP4SABlock",
    "FP4WindowAttention",
    "fp4_attention",
    "self_scores",
    "window_scores",
]

Product = Callable[[Tensor, Tensor], Tensor]
"""``a @ b.mT`` of two activations."""


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

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return fp4_product(a, b, self.recipe, self.history)

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
        scores, v = self_scores(self, x, attn_mask, self._product)
        probabilities = scores.softmax(dim=-1)
        if self.save_attn:
            self.att_mat = probabilities.detach()
        merged = self.out_rearrange(self._product(self.drop_weights(probabilities), v.mT).to(v.dtype))
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
        scores, v = window_scores(self, x, mask, self._product)
        probabilities = self.attn_drop(self.softmax(scores)).to(v.dtype)
        attended = self._product(probabilities, v.mT).transpose(1, 2).reshape(x.shape)
        result: Tensor = self.proj_drop(self.proj(attended))
        return result


def self_scores(block: Any, x: Tensor, mask: Tensor | None, product: Product) -> tuple[Tensor, Tensor]:
    """The scores ``[B, heads, tokens, tokens]`` of an ``SABlock`` before the softmax, and its values.

    ``x`` is ``[B, tokens, C]``, ``mask`` ``[B, tokens]``, 0 where a token is left out.
    """
    if block.use_combined_linear:
        q, k, v = block.input_rearrange(block.qkv(x))
    else:
        q, k, v = (block.input_rearrange(project(x)) for project in (block.to_q, block.to_k, block.to_v))
    if block.attention_dtype is not None:
        q, k = q.to(block.attention_dtype), k.to(block.attention_dtype)
    scores = product(q, k) * block.scale
    if block.rel_positional_embedding is not None:
        scores = block.rel_positional_embedding(x, scores, q)
    tokens = x.shape[1]
    if block.causal:
        if mask is not None:
            raise ValueError("Causal attention does not support attention masks.")  # as MONAI's block
        scores = scores.masked_fill(block.causal_mask[:, :, :tokens, :tokens] == 0, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
    return scores, v


def window_scores(block: Any, x: Tensor, mask: Tensor | None, product: Product) -> tuple[Tensor, Tensor]:
    """`self_scores` of a ``WindowAttention``, ``x`` being windows and ``mask`` ``[windows, tokens, tokens]``."""
    tokens = x.shape[1]
    q, k, v = block.qkv(x).unflatten(-1, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    scores = product(q * block.scale, k)
    index = block.relative_position_index[:tokens, :tokens].reshape(-1)
    scores = scores + block.relative_position_bias_table[index].reshape(tokens, tokens, -1).permute(2, 0, 1)
    if mask is not None:
        scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    return scores, v


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
