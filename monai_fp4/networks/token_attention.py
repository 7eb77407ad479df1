"""Attention between all tokens of a ViT, with its scores in the processor's cache.

Between N tokens a head makes N x N scores. On a GPU torch's fused attention never writes them to memory, and it is
used there. On a CPU its BF16 kernel multiplies small tiles one by one, at a third of the speed of a matrix product.
Here the scores of one or a few heads at a time, a few megabytes that stay in cache, are made by one product, turned
into probabilities by one softmax and used by another product; the backward pass makes them again instead of keeping
them, so that memory grows with N, as with fused attention:

    S = c Q K^T,  P = softmax(S),  O = P V
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - sum(P dP)),  dQ = c dS K,  dK = c dS^T Q

The scores are BF16, as those of MONAI's own attention under autocast; sums are FP32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from monai.networks.blocks import SABlock
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.layers.attention import FP4SABlock

__all__ = ["FP4TokenAttention", "TokenAttention", "cached_attention"]

_SCORES = 2**20
"""Scores of one chunk for each thread: 2 MiB in BF16."""

_LONGEST = 2048
"""Above this many tokens the scores of one head leave the cache, and fused attention is the quicker one."""


class TokenAttention(SABlock):
    """MONAI's self-attention block, with :func:`cached_attention` where that is the quickest; same parameters."""

    @staticmethod
    def fp4_type() -> type[FP4SABlock]:
        """Return the class that `convert` swaps in where a recipe wants the products of attention in FP4."""
        return FP4TokenAttention

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend; ``x`` is ``[B, tokens, C]``, as is the result."""
        if torch.jit.is_scripting() or not self.use_combined_linear or self._is_special(attn_mask):
            output: Tensor = super().forward(x, attn_mask)
            return output
        projected = self.qkv(x)
        if _is_quick(projected):
            attended = cached_attention(projected, self.num_heads, self.scale)
        else:
            q, k, v = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
            attended = attended.transpose(1, 2).flatten(2)
        result: Tensor = self.out_proj(attended)
        return result

    def _is_special(self, attn_mask: Tensor | None) -> bool:
        return (
            attn_mask is not None
            or self.causal
            or self.save_attn
            or self.dropout_rate > 0
            or self.attention_dtype is not None
            or self.rel_positional_embedding is not None
        )


class FP4TokenAttention(FP4SABlock, TokenAttention):
    """The same with its two products in FP4, for recipes that say ``attention="fp4"``."""

    float_type = TokenAttention


def cached_attention(projected: Tensor, heads: int, scale: float) -> Tensor:
    """Softmax attention of every token to every other, a few heads at a time.

    Args:
        projected: queries, keys and values side by side, ``[B, tokens, 3 C]``; BF16 or FP32.
        heads: number of heads, which divides ``C``.
        scale: factor of the scores.

    Returns:
        ``[B, tokens, C]`` in the dtype of `projected`.

    >>> cached_attention(torch.zeros(1, 2, 6), heads=1, scale=1.0).shape
    torch.Size([1, 2, 2])
    """
    attended: Tensor = _CachedAttention.apply(projected, heads, scale)
    return attended


@functools.cache
def _cpu_multiplies_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_quick(projected: Tensor) -> bool:
    return (
        not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()  # which cannot trace what is asked below
        and projected.device.type == "cpu"
        and projected.dtype is torch.bfloat16
        and projected.shape[1] <= _LONGEST
        and _cpu_multiplies_bf16()
    )


class _CachedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected: Tensor, heads: int, scale: float) -> Tensor:
        with torch.autocast(projected.device.type, enabled=False):
            operands = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2)
            ctx.save_for_backward(operands)
            ctx.heads, ctx.scale = heads, scale
            attended = torch.empty_like(operands[0])
            for part, probabilities, _ in _chunks(operands, scale):
                torch.bmm(probabilities, operands[2, part], out=attended[part])
            return _side_by_side(attended[None], heads)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # torch's `once_differentiable` would answer a Hessian with zeros
            raise ConfigError(
                "the attention of this network expected a backward pass without create_graph, found one that is to be"
                " differentiated again (a gradient penalty, a Hessian): compute it in FP32, with autocast off"
            )
        (operands,) = ctx.saved_tensors
        q, k, v = operands
        scale = ctx.scale
        with torch.autocast(operands.device.type, enabled=False):
            upstream = gradients[0].unflatten(-1, (ctx.heads, -1)).transpose(1, 2).flatten(0, 1)
            result = torch.empty_like(operands)
            dq, dk, dv = result
            for part, p, scratch in _chunks(operands, scale):
                torch.bmm(p.mT, upstream[part], out=dv[part])
                torch.bmm(upstream[part], v[part].mT, out=scratch)
                ds = torch._softmax_backward_data(scratch, p, -1, p.dtype, grad_input=scratch)
                torch.baddbmm(dq[part], ds, k[part], beta=0, alpha=scale, out=dq[part])
                torch.baddbmm(dk[part], ds.mT, q[part], beta=0, alpha=scale, out=dk[part])
            return _side_by_side(result, ctx.heads), None, None


def _chunks(operands: Tensor, scale: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield some heads' place, their probabilities and a scratch tensor of that shape; the tensors are used again."""
    q, k, _ = operands
    heads, tokens, _ = q.shape
    size = min(heads, max(1, _SCORES * torch.get_num_threads() // tokens**2))
    scratch, probabilities = q.new_empty(2, size, tokens, tokens)
    for begin in range(0, heads, size):
        part = slice(begin, min(begin + size, heads))
        here = slice(part.stop - part.start)
        torch.baddbmm(scratch[here], q[part], k[part].mT, beta=0, alpha=scale, out=scratch[here])
        torch.softmax(scratch[here], dim=-1, out=probabilities[here])
        yield part, probabilities[here], scratch[here]


def _side_by_side(stacked: Tensor, heads: int) -> Tensor:
    """``[n, B * heads, tokens, D]`` to ``[B, tokens, n * heads * D]``."""
    return stacked.unflatten(1, (-1, heads)).permute(1, 3, 0, 2, 4).flatten(2)
