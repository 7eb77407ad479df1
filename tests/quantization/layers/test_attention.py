"""FP4 attention products: against an explicit reference, and against MONAI's own blocks where nothing is quantized."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import te_oracle
import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from monai_fp4.networks.token_attention import FP4TokenAttention, TokenAttention
from monai_fp4.networks.window_attention import BiasedWindowAttention, FP4BiasedWindowAttention
from monai_fp4.quantization import convert, unconvert
from monai_fp4.quantization.layers import attention
from monai_fp4.quantization.layers.attention import (
    ATTENTION_TYPES,
    FP4SABlock,
    FP4WindowAttention,
    fp4_attention,
)
from monai_fp4.quantization.layers.attention_product import fp4_product
from monai_fp4.quantization.recipes import RECIPES, Recipe

RECIPE = Recipe.from_config({"base": "full", "attention": "fp4"})


def window_block(**options: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    block = WindowAttention(32, 2, (7, 7), qkv_bias=True, **options)
    nn.init.normal_(block.relative_position_bias_table)
    return block, (torch.randn(8, 49, 32), None)


def shifted_window_block() -> tuple[nn.Module, tuple[Any, ...]]:
    block, (x, _) = window_block()
    mask = torch.zeros(4, 49, 49)
    mask[1, :20, 20:] = -100.0
    return block, (x, mask)


def vit_block(masked: bool = False, **options: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    x = torch.randn(2, 20, 32)
    mask = torch.ones(2, 20)
    mask[0, 15:] = 0
    return SABlock(32, 2, qkv_bias=True, **options), ((x, mask) if masked else (x,))


BLOCKS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "window": window_block,
    "window-shifted": shifted_window_block,
    "vit": vit_block,
    "vit-separate": lambda: vit_block(use_combined_linear=False),
    "vit-masked": lambda: vit_block(masked=True),
    "vit-causal": lambda: vit_block(causal=True, sequence_length=20),
    "vit-positions": lambda: vit_block(rel_pos_embedding="decomposed", input_size=(4, 5)),
    "vit-without-projection": lambda: vit_block(include_fc=False),
    "vit-saved": lambda: vit_block(save_attn=True),
    "vit-in-fp32": lambda: vit_block(attention_dtype=torch.float32),
}


def wrap(block: nn.Module) -> FP4SABlock | FP4WindowAttention:
    return (FP4SABlock if isinstance(block, SABlock) else FP4WindowAttention).from_float(block, RECIPE)


@pytest.mark.parametrize("name", BLOCKS)
def test_with_plain_products_it_is_monais_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The forward passes here follow MONAI's; this is what fails if a new MONAI computes something else.
    block, inputs = BLOCKS[name]()
    wrapped = wrap(block)
    monkeypatch.setattr(attention, "fp4_product", lambda a, b, *_: a @ b.mT)
    torch.testing.assert_close(wrapped(*inputs), block(*inputs), rtol=1e-5, atol=1e-6)
    if name == "vit-saved":
        torch.testing.assert_close(wrapped.att_mat, block.att_mat)


@pytest.mark.parametrize("name", BLOCKS)
def test_it_quantizes_while_active_and_not_otherwise(name: str) -> None:
    block, inputs = BLOCKS[name]()
    wrapped = wrap(block)
    expected = block(*inputs)
    error = (wrapped(*inputs) - expected).norm() / expected.norm()
    assert 0.005 < error < 0.5
    wrapped.active = False
    assert torch.equal(wrapped(*inputs), expected)


def test_flash_attention_gives_way_to_fp4_products() -> None:
    block, inputs = vit_block(use_flash_attention=True)
    plain, _ = vit_block()
    assert torch.equal(wrap(block)(*inputs), wrap(plain)(*inputs))


@pytest.mark.parametrize("block", [window_block, vit_block])
def test_it_shares_state_copies_and_pickles(block: Callable[[], tuple[nn.Module, tuple[Any, ...]]]) -> None:
    plain, inputs = block()
    wrapped = wrap(plain)
    assert list(wrapped.state_dict()) == list(plain.state_dict())
    assert all(a is b for a, b in zip(wrapped.parameters(), plain.parameters(), strict=True))
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(twin(*inputs), wrapped(*inputs))


# The reference: every operand goes through Transformer Engine's own quantizer and is multiplied in FP64.

GRID = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)


def decoded(x: Tensor, *, rht: bool = False) -> Tensor:
    """Quantize ``[..., R, K]`` along K as one tensor with one maximum, and decode; K stays padded to 16s."""
    padded = nn.functional.pad(x, (0, -x.shape[-1] % 16))
    codes, scales, amax = te_oracle.quantize(padded, rht=rht)
    nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2).long()
    values = GRID[nibbles & 7] * torch.where(nibbles >= 8, -1.0, 1.0).double()
    return (values * scales.double().repeat_interleave(16, dim=-1) * amax.double() / 2688).reshape(padded.shape)


@pytest.mark.parametrize("name", [name for name, r in RECIPES.items() if r.quantizes and not r.stochastic_rounding])
@pytest.mark.parametrize("sizes", [((2, 3), 32, 48, 16), ((4,), 49, 49, 24)])
def test_products_and_gradients_equal_the_reference(name: str, sizes: tuple[tuple[int, ...], int, int, int]) -> None:
    recipe = RECIPES[name]
    batch, rows, columns, inner = sizes
    torch.manual_seed(0)
    a = torch.randn(*batch, rows, inner, requires_grad=True)
    b = (3 * torch.randn(*batch, columns, inner)).requires_grad_()
    dc = torch.randn(*batch, rows, columns)
    c = fp4_product(a, b, recipe)
    c.backward(dc)
    with torch.no_grad():
        qa, qb = decoded(a), decoded(b)
        expected = {"c": qa @ qb.mT}
        if recipe.backward == "fp4":
            expected["da"] = decoded(dc) @ decoded(b.mT).mT
            rht = recipe.hadamard
            expected["db"] = decoded(dc.mT, rht=rht) @ decoded(a.mT, rht=rht).mT
        else:
            dequantized = recipe.backward == "dequantized"
            expected["da"] = dc.double() @ (qb[..., :inner] if dequantized else b.double())
            expected["db"] = dc.double().mT @ (qa[..., :inner] if dequantized else a.double())
    found = {"c": c.detach(), "da": a.grad, "db": b.grad}
    for key, value in expected.items():
        scale = value.abs().max()
        error = (found[key].double() - value).abs().max() / scale
        assert error < 1e-6, f"{key} is off by {error}"


def test_stochastic_rounding_is_right_on_average_and_only_in_the_gradients() -> None:
    torch.manual_seed(0)
    a, b, dc = torch.randn(16, 32, requires_grad=True), torch.randn(16, 32), torch.rand(16, 16) * 0.5
    dc[:, 0] = 1.0  # every block's maximum is the tensor's, so that nothing clips
    assert torch.equal(fp4_product(a, b, RECIPES["sr"]), fp4_product(a, b, RECIPES["full"]))

    def gradient(recipe: str) -> Tensor:
        return torch.autograd.grad(fp4_product(a, b, RECIPES[recipe]), a, dc)[0].double()

    exact = dc.double() @ decoded(b.mT).mT
    draws = torch.stack([gradient("sr") for _ in range(100)])
    assert (draws.std(dim=0) > 0).all()
    error = (draws.mean(dim=0) - exact).norm() / exact.norm()
    assert error < 0.5 * (gradient("full") - exact).norm() / exact.norm()


def test_under_autocast_the_operands_are_cast_as_matmul_would() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(16, 32), torch.randn(16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fp4_product(a, b, RECIPES["full"])
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, fp4_product(a.bfloat16(), b.bfloat16(), RECIPES["full"]))


def test_gradients_are_computed_only_where_they_are_needed() -> None:
    a, b = torch.randn(16, 32, requires_grad=True), torch.randn(16, 32)
    fp4_product(a, b, RECIPES["full"]).sum().backward()
    assert a.grad is not None
    assert b.grad is None


def test_the_gradient_in_high_precision_may_be_rotated() -> None:
    a, b = (torch.randn(2, 20, 24, requires_grad=True) for _ in range(2))
    dc = torch.randn(2, 20, 20)
    gradients = [
        torch.autograd.grad(fp4_product(a, b, Recipe.from_config(name)), (a, b), dc)
        for name in ("forward_only", "forward_rht")
    ]
    assert torch.equal(gradients[0][0], gradients[1][0]) and not torch.equal(gradients[0][1], gradients[1][1])
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=0, atol=0.1)


def test_nan_stays_nan() -> None:
    a, b = torch.randn(16, 32), torch.randn(16, 32)
    a[3, 5] = float("nan")
    assert fp4_product(a, b, RECIPES["full"])[3].isnan().all()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (SABlock, FP4SABlock),
        (WindowAttention, FP4WindowAttention),
        (TokenAttention, FP4TokenAttention),
        (BiasedWindowAttention, FP4BiasedWindowAttention),
        (FP4TokenAttention, None),
        (nn.MultiheadAttention, None),
    ],
)
def test_a_class_says_what_computes_its_products(kind: type[nn.Module], expected: type | None) -> None:
    assert fp4_attention(kind) is expected
    if expected is not None:
        assert expected.float_type is kind  # type: ignore[attr-defined]


@pytest.mark.parametrize("base", [SABlock, TokenAttention])
def test_a_subclass_that_declares_nothing_is_left_alone(base: type[nn.Module]) -> None:
    """It may attend in another way, which an FP4 block would silently undo."""
    block = type("Halved", (base,), {"forward": lambda self, x: base.forward(self, x) / 2})(32, 2)
    _, report = convert(nn.Sequential(block), RECIPE)
    assert all(layer.kind != "Halved" for layer in report.layers if layer.quantized)
    assert "classes that declare `fp4_type`" in " ".join(report.notes)


def test_a_block_that_declares_is_swapped_and_back() -> None:
    class Mine(SABlock):
        fp4_type = staticmethod(lambda: FP4Mine)

    class FP4Mine(FP4SABlock, Mine):
        float_type = Mine

    model, report = convert(nn.Sequential(Mine(32, 2)), RECIPE)
    assert type(model[0]) is FP4Mine and "no block was swapped" not in " ".join(report.notes)
    assert type(unconvert(model)[0]) is Mine


def test_the_table_is_read_only() -> None:
    with pytest.raises(TypeError):
        ATTENTION_TYPES[nn.Linear] = FP4SABlock  # type: ignore[index]
