"""The two products inside attention in FP4, for recipes that say ``attention="fp4"``; the softmax stays as it is.

The projections of an attention block are linear layers, which `convert` swaps like any other. Its products, queries
with keys and probabilities with values, have no weights, and the study keeps them in high precision. With
``attention="fp4"`` each product ``C = A B^T`` becomes the contract's linear layer with ``B`` in the weight's place:

======  =====================================  ==================================
GEMM    first operand                          second operand
======  =====================================  ==================================
C       A along K                              B along K
dA      dC along N, stochastic rounding        B^T along N
dB      dC^T along M, rotated and stochastic   A^T along M, rotated
======  =====================================  ==================================

with ``A`` of shape ``[..., M, K]`` and ``B`` of ``[..., N, K]``: each technique where the recipe has it, blocks
always 1 x 16 (``B`` is an activation, so nothing is gained by 2D blocks), one maximum for a whole tensor (all images,
heads and windows). Lengths that are no multiple of 16, such as the 49 tokens of a 7 x 7 window, are padded with zeros
inside. Transformer Engine has no such products; this definition is ours. Where a recipe's format distinguishes tensors
(``four_over_six``), A and B are activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from monai_fp4.quantization.formats.philox import key_source, keys_from
from monai_fp4.quantization.layers.base import PLAIN
from monai_fp4.quantization.layers.history import LayerHistory
from monai_fp4.quantization.layers.linear_products import matrix_product
from monai_fp4.quantization.layers.operands import rotated_product, without_autocast
from monai_fp4.quantization.layers.operators import Gradients, Operator, observed
from monai_fp4.quantization.layers.separate import maxima
from monai_fp4.quantization.numerics import Scheme, decode, scaled_values
from monai_fp4.quantization.recipes import Backward, Operand, Recipe

__all__ = ["ATTENTION_TYPES", "FP4Attention", "FP4SABlock", "FP4WindowAttention", "fp4_attention", "fp4_product"]


def fp4_product(a: Tensor, b: Tensor, recipe: Recipe, history: LayerHistory | None = None) -> Tensor:
    """Multiply ``a @ b.mT``, quantized forward and backward as the recipe says.

    Args:
        a: ``[..., M, K]``, FP32, BF16 or FP16. Under autocast it is cast to the autocast dtype, as ``torch.matmul``
            would.
        b: ``[..., N, K]``, with the same leading axes.
        recipe: its forward must be FP4.
        history: of the block, where stochastic rounding draws its keys from; by default
            `monai_fp4.quantization.formats.philox.draw_key` decides.

    Returns:
        ``[..., M, N]`` in the operands' dtype.
    """
    if torch.compiler.is_dynamo_compiling() and not (type(a) in PLAIN and type(b) in PLAIN):
        product: Tensor = torch.compiler.disable(_fp4_product)(a, b, recipe, history)
        return product
    return _fp4_product(a, b, recipe, history)


def _fp4_product(a: Tensor, b: Tensor, recipe: Recipe, history: LayerHistory | None) -> Tensor:
    device = a.device.type
    dtype = (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.promote_types(a.dtype, b.dtype)
    )
    a, b = a.to(dtype), b.to(dtype)
    if observed():
        return ATTENTION_PRODUCT(a, b, history, recipe)
    with keys_from(key_source() if history is None else history.next_key):
        return _multiply(a, b, recipe)


def _multiply(a: Tensor, b: Tensor, recipe: Recipe) -> Tensor:
    own = [maxima(a), maxima(b)] if recipe.scheme_of(Operand.INPUT) is not Scheme.MXFP4 else [None, None]
    scaled = [x if scale is None else x / scale for x, scale in zip((a, b), own, strict=True)]
    product: Tensor = _Product.apply(*scaled, recipe)
    for scale in own:
        product = product if scale is None else product * scale
    return product.to(a.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, a: Tensor, b: Tensor, recipe: Recipe) -> Tensor:
        ctx.recipe = recipe
        scheme = recipe.scheme_of(Operand.INPUT)
        qa, qb = scaled_values(a, scheme=scheme), scaled_values(b, scheme=scheme)
        if recipe.backward is Backward.DEQUANTIZED:
            ctx.save_for_backward(decode(qa, a.dtype), decode(qb, b.dtype))
        else:
            ctx.save_for_backward(a, b)
        return matrix_product(qa, qb, a.dtype)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dc: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return *_gradients(dc, *ctx.saved_tensors, ctx.recipe, ctx.needs_input_grad[:2]), None


def _gradients(
    dc: Tensor, a: Tensor, b: Tensor, recipe: Recipe, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of both operands, of which ``needed`` are asked for; decoded ones under `Backward.DEQUANTIZED`."""
    da = None
    if recipe.backward is not Backward.FP4:
        da = dc @ b if needed[0] else None
        if not needed[1]:
            return da, None
        return da, rotated_product(dc.mT, a.mT, b.dtype) if recipe.hadamard else dc.mT @ a
    stochastic, rht = recipe.stochastic_rounding, recipe.hadamard
    scheme, dc_scheme = recipe.scheme_of(Operand.INPUT), recipe.scheme_of(Operand.GRADIENT)
    if needed[0]:
        rows = scaled_values(dc, stochastic=stochastic, scheme=dc_scheme)
        da = matrix_product(rows, scaled_values(b.mT, scheme=scheme), a.dtype)
    if not needed[1]:
        return da, None
    rotated = scaled_values(dc.mT, stochastic=stochastic, rht=rht, scheme=dc_scheme)
    return da, matrix_product(rotated, scaled_values(a.mT, rht=rht, scheme=scheme), b.dtype)


class _AttentionProduct(Operator):
    operands = ("a", "b")

    def forward(self, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any) -> Tensor:
        return _multiply(a, b, recipe).contiguous()

    def gradients(
        self, dc: Tensor, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any, needed: tuple[bool, bool]
    ) -> Gradients:
        if recipe.backward is Backward.DEQUANTIZED:
            scheme = recipe.scheme_of(Operand.INPUT)
            a, b = (decode(scaled_values(x, scheme=scheme), x.dtype) for x in (a, b))
        return _gradients(dc, a, b, recipe, needed)

    def shape(self, a: Tensor, b: Tensor, *arguments: Any) -> tuple[int, ...]:
        return (*a.shape[:-1], b.shape[-2])

    def flops(self, a: Sequence[int], b: Sequence[int], c: Sequence[int], *arguments: Any) -> int:
        return 2 * torch.Size(c).numel() * a[-1]


ATTENTION_PRODUCT = _AttentionProduct("attention_product")


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
            fp4_product(probabilities, v.mT, self.recipe, self.history)
            .transpose(1, 2)
            .reshape(windows, tokens, width)
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
