"""The product of two activations in FP4, forward and backward: queries with keys, probabilities with values.

It is the contract's linear layer, ``C = A B^T``, with ``B`` in the weight's place:

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

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from monai_fp4.quantization.formats.philox import key_source, keys_from
from monai_fp4.quantization.layers.base import PLAIN
from monai_fp4.quantization.layers.custom_operator import Gradients, Operator, observed
from monai_fp4.quantization.layers.guards import without_autocast
from monai_fp4.quantization.layers.history import LayerHistory
from monai_fp4.quantization.layers.linear_products import matrix_product
from monai_fp4.quantization.layers.operands import quantized, rotated_product
from monai_fp4.quantization.layers.separate import maxima
from monai_fp4.quantization.numerics import Scheme, decode
from monai_fp4.quantization.recipes import Backward, Operand, Recipe

__all__ = ["fp4_product"]


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
        qa, qb = (quantized(x, recipe.encodings.input) for x in (a, b))
        if recipe.backward is Backward.DEQUANTIZED:
            ctx.save_for_backward(decode(qa, a.dtype), decode(qb, b.dtype))
        else:
            ctx.save_for_backward(a, b)
        return matrix_product(qa, qb, a.dtype)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dc: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        return *_gradients(dc, a, b, ctx.recipe, ctx.needs_input_grad[:2]), None


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
    how = recipe.encodings
    if needed[0]:
        da = matrix_product(quantized(dc, how.gradient), quantized(b.mT, how.input), a.dtype)
    if not needed[1]:
        return da, None
    columns = quantized(dc.mT, how.gradient_columns)
    return da, matrix_product(columns, quantized(a.mT, how.input_columns), b.dtype)


class AttentionProduct(Operator):
    """The operator ``monai_fp4::attention_product``."""

    operands = ("a", "b")

    def forward(self, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any) -> Tensor:
        return _multiply(a, b, recipe).contiguous()

    def gradients(
        self, dc: Tensor, a: Tensor, b: Tensor, recipe: Recipe, *arguments: Any, needed: tuple[bool, bool]
    ) -> Gradients:
        if recipe.backward is Backward.DEQUANTIZED:
            a, b = (decode(quantized(x, recipe.encodings.input), x.dtype) for x in (a, b))
        return _gradients(dc, a, b, recipe, needed)

    def shape(self, a: Tensor, b: Tensor, *arguments: Any) -> tuple[int, ...]:
        return (*a.shape[:-1], b.shape[-2])

    def flops(self, a: Sequence[int], b: Sequence[int], c: Sequence[int], *arguments: Any) -> int:
        return 2 * torch.Size(c).numel() * a[-1]


ATTENTION_PRODUCT = AttentionProduct("attention_product")
