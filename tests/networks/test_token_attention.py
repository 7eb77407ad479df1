"""Attention by heads that fit the cache computes softmax attention."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.blocks import SABlock
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.networks import token_attention


def attention_by_the_book(projected: Tensor, heads: int, scale: float) -> Tensor:
    q, k, v = projected.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(1, most) for most in (3, 5, 40, 9)]),
    scores=st.sampled_from([1, 500, 2**20]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_cached_attention_is_softmax_attention(
    shape: tuple[int, ...], scores: int, dtype: torch.dtype, seed: int
) -> None:
    batch, heads, tokens, width = shape
    torch.manual_seed(seed)
    given = torch.randn(batch, tokens, 3 * heads * width).to(dtype)
    upstream = torch.randn(batch, tokens, heads * width).to(dtype)
    ours, exact = given.clone().requires_grad_(), given.double().requires_grad_()
    with mock.patch.object(token_attention, "_SCORES", scores):
        attended = token_attention.cached_attention(ours, heads, 0.3)
        attended.backward(upstream)
    expected = attention_by_the_book(exact, heads, 0.3)
    expected.backward(upstream.double())
    assert attended.dtype == ours.grad.dtype == dtype
    for one, other in ((attended, expected), (ours.grad, exact.grad)):
        tolerance = (3e-2 if dtype is torch.bfloat16 else 1e-5) * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance)


def test_a_torch_without_onednn_has_no_bf16_products() -> None:
    """As on a Mac, where the operator that would be asked does not exist."""
    token_attention._cpu_multiplies_bf16.cache_clear()
    with mock.patch.object(torch.backends.mkldnn, "is_available", return_value=False):
        assert not token_attention._cpu_multiplies_bf16()
    token_attention._cpu_multiplies_bf16.cache_clear()


@pytest.mark.parametrize(("tokens", "quick"), [(64, True), (2049, False)])
@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
def test_token_attention_equals_monais_block(tokens: int, quick: bool, amp: bool) -> None:
    torch.manual_seed(0)
    theirs = SABlock(32, 2, qkv_bias=True)
    ours = copy.deepcopy(theirs)
    ours.__class__ = token_attention.TokenAttention
    x = torch.randn(1, tokens, 32)
    outputs, gradients = [], []
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with mock.patch.object(token_attention, "cached_attention", wraps=token_attention.cached_attention) as spy:
        for block in (theirs, ours):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                outputs.append(block(x))
            outputs[-1].float().square().sum().backward()
            gradients.append([parameter.grad for parameter in block.parameters()])
    assert spy.called == (quick and amp and supported)
    assert outputs[0].dtype == outputs[1].dtype
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-2 if amp else 1e-5, atol=1e-2 if amp else 1e-5)
    for one, other in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=other.abs().max().item() * (2e-2 if amp else 1e-4))


def test_cached_attention_refuses_a_second_derivative() -> None:
    projected = torch.randn(1, 4, 3 * 16)
    with pytest.raises(ConfigError, match="without create_graph"):
        torch.autograd.functional.hvp(
            lambda x: token_attention.cached_attention(x, 2, 0.3).square().sum(), projected, torch.ones_like(projected)
        )
