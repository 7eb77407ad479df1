"""Four over six and MXFP4: their scales and codes against Transformer Engine's reference, and on known blocks."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import te_oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats import tiles
from monai_fp4.quantization.numerics import (
    SUPPORTED_DTYPES,
    ScaledValues,
    Scheme,
    decode,
    gemm_alpha,
    pad_last,
    rotate,
    round_e2m1,
    scaled_values,
)

INF, NAN = float("inf"), float("nan")
SIX, MX = Scheme.FOUR_OVER_SIX, Scheme.MXFP4

# Magnitudes whose blocks meet every case: ordinary ones, far-apart ones, zeros, subnormal and the largest.
NUMBERS = st.one_of(
    st.floats(-6, 6, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -4.0, 6.0, 1e-45, 2.0**-127, 3.4e38]),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Matrices of up to 40 x 70 numbers: a few drawn ones, and pseudo-random ones around them."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-30, 30))
    x *= torch.logspace(0, draw(st.integers(-6, 6)), columns)
    few = torch.as_tensor(draw(hnp.arrays("float32", (8,), elements=NUMBERS)))
    x.view(-1)[torch.randint(0, x.numel(), (8,), generator=generator)] = few
    return x.to(draw(st.sampled_from(SUPPORTED_DTYPES)))


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def padded(x: Tensor, size: int) -> Tensor:
    """Both axes as multiples of a block: TE's files crop rows and columns of some results only."""
    return pad_last(pad_last(x, size).mT, size).mT.contiguous()


# ---------------------------------------------------------------------------------------------- four over six


@settings(deadline=None, max_examples=150)
@given(x=tensors(), two_d=st.booleans())
def test_four_over_six_is_te_s(x: Tensor, two_d: bool) -> None:
    oracle = te_oracle.quantize_four_over_six(padded(x, 16), two_d=two_d)
    found = scaled_values(x, two_d=two_d, scheme=SIX)
    rows, columns = x.shape
    assert found.scheme is SIX
    assert found.values.shape == x.shape
    assert same(found.amax, oracle.amax)
    assert same(found.scales, oracle.scales.float()[:rows])
    assert same(found.values, oracle.values[:rows, :columns])


@pytest.mark.parametrize("two_d", [False, True])
def test_four_over_six_is_te_s_where_both_scales_lose_nearly_the_same(two_d: bool) -> None:
    """In units of its scale, a 5 beside the 6 wants four as much as a 4 wants six: rounding and order decide."""
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(0)
    for amax in torch.rand(20, generator=generator) + 1:
        side, count = (16 if two_d else 1), (40 if two_d else 1000)
        blocks = torch.tensor([6.0, 5.0, 4.0, 5.0, 4.0, 0.1, 1.7, 3.2]).repeat(count, 2 * side)
        blocks = blocks.gather(1, torch.rand(blocks.shape, generator=generator).argsort(1))
        blocks = blocks * torch.tensor([8, 10, 12]).repeat(count)[:count, None] / 64
        blocks[0, 0] = 6 * 256
        x = (blocks * (amax / 1536)).unflatten(1, (side, 16)).transpose(0, 1).flatten(1).contiguous()
        ours, oracle = (
            quantize(x, two_d=two_d, **options)
            for quantize, options in ((scaled_values, {"scheme": SIX}), (te_oracle.quantize_four_over_six, {}))
        )
        assert torch.equal(ours.scales, oracle.scales.float())
        assert torch.equal(ours.values, oracle.values)
        found = torch.cat([found, ours.scales[0]])
    taken = {value: int((found == value / 64).sum()) for value in (8, 10, 12, 15, 18)}
    assert min(taken.values()) > 5, "both choices must be among them"


def test_four_over_six_rounds_its_scales_as_te_does() -> None:
    """Maxima within some last bits of those whose scale is a tie between two E4M3 numbers."""
    generator = torch.Generator().manual_seed(0)
    ties = (torch.arange(8, 16) + 0.5)[:, None] * 2.0 ** torch.arange(-4, 4)
    for amax in torch.rand(100, generator=generator) + 1:
        maxima = (ties.flatten() * 6 * (amax / 1536))[:, None].view(torch.int32) + torch.arange(
            -4, 5, dtype=torch.int32
        )
        x = torch.zeros(maxima.numel() + 1, 16)
        x[0, 0], x[1:, 0] = amax, maxima.view(torch.float32).flatten()
        assert torch.equal(scaled_values(x, scheme=SIX).scales, te_oracle.quantize_four_over_six(x).scales.float())


def test_four_over_six_of_infinity_is_te_s() -> None:
    x = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    x[3, 5] = INF
    for two_d in (False, True):
        found, oracle = scaled_values(x, two_d=two_d, scheme=SIX), te_oracle.quantize_four_over_six(x, two_d=two_d)
        assert same(found.values, oracle.values)
        assert not decode(found).isfinite().any()


def test_a_block_takes_four_where_that_loses_less() -> None:
    # 1536 makes the tensor's own scale 1. A maximum of 6 s beside one of 5 s: 5 rounds to 4. With the scale 1.5 s they
    # are 4 and 3.33, which rounds to 3: an error of 0.5 s instead of 1 s. With 3 s beside it, six has no error at all.
    x = torch.zeros(3, 16)
    x[0, 0], x[1, :2], x[2, :2] = 1536.0, torch.tensor([24.0, 20.0]), torch.tensor([24.0, 12.0])
    found = scaled_values(x, scheme=SIX)
    assert found.scales.flatten().tolist() == [256.0, 6.0, 4.0]
    assert decode(found)[:, :2].tolist() == [[1536.0, 0.0], [24.0, 18.0], [24.0, 12.0]]
    assert decode(scaled_values(x))[1, 0] == 24.0
    assert abs(decode(scaled_values(x))[1, 1] - 20.0) > 2.0


def test_a_tie_takes_six() -> None:
    x = torch.zeros(2, 16)
    x[0, 0], x[1, 0] = 1536.0, 24.0  # exact either way
    assert scaled_values(x, scheme=SIX).scales.flatten().tolist() == [256.0, 4.0]


def test_square_blocks_take_what_all_rows_together_lose_less_with() -> None:
    x = torch.zeros(16, 16)
    x[:, 0] = 24.0
    x[:15, 1], x[15, 1] = 12.0, 20.0  # fifteen rows want six and one wants four
    x[0, 0] = 1536.0
    x = torch.stack([x, torch.zeros(16, 16)]).flatten(0, 1)
    x[16:, 0], x[16:31, 1], x[31, 1] = 24.0, 20.0, 12.0  # the other way round
    square = scaled_values(x, two_d=True, scheme=SIX).scales.flatten()
    assert square[16:].tolist() == [6.0] * 16
    rows = scaled_values(x, scheme=SIX).scales.flatten()
    assert rows[16:].tolist() == [6.0] * 15 + [4.0]


def test_four_over_six_loses_no_more_than_either_scale_alone() -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    amax = x.abs().amax()
    tensor_scale = torch.full_like(amax, 1536.0) / amax
    best = (decode(scaled_values(x, scheme=SIX)) - x).abs().unflatten(-1, (-1, 16)).sum(-1)
    took = torch.zeros(2)
    for index, top in enumerate((6.0, 4.0)):
        blocks = x.unflatten(-1, (-1, 16))
        scale = (blocks.abs().amax(-1, keepdim=True) / top * tensor_scale).to(torch.float8_e4m3fn).float()
        loss = (round_e2m1(blocks * tensor_scale / scale) * scale / tensor_scale - blocks).abs().sum(-1)
        assert (best <= loss * (1 + 1e-5)).all()
        took[index] = (best >= loss * (1 - 1e-5)).sum()
    assert took.min() > 0.1 * best.numel()


def test_four_over_six_does_not_depend_on_tiles_or_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 40, 48, generator=torch.Generator().manual_seed(0))
    for scheme, two_d in itertools.product((SIX, MX), (False, True)):
        for view in (x, x.mT, x.movedim(0, -2), x[:, ::2]):
            whole = scaled_values(view.contiguous(), two_d=two_d, scheme=scheme)
            with monkeypatch.context() as patch:
                patch.setattr(tiles, "_TILE", 100)
                pieces = scaled_values(view, two_d=two_d, scheme=scheme)
            assert torch.equal(whole.values, pieces.values)
            assert torch.equal(whole.scales, pieces.scales)


# ---------------------------------------------------------------------------------------------- MXFP4


@settings(deadline=None, max_examples=150)
@given(x=tensors(), two_d=st.booleans())
def test_mxfp4_is_te_s(x: Tensor, two_d: bool) -> None:
    whole = padded(x, 32)
    oracle = te_oracle.quantize_mxfp4(whole, two_d=two_d)
    found = scaled_values(x, two_d=two_d, scheme=MX)
    rows, columns = x.shape
    # TE's FP32 logarithm may round a quotient barely above a power of two down to it; such blocks have a test below.
    exact = torch.tensor([float(scale_of(m)) for m in block_maxima(whole, two_d).flatten().tolist()])
    agrees = (oracle.scales.flatten() == exact).view_as(oracle.scales)[:rows]
    assert agrees.float().mean() > 0.5
    per_number = agrees.repeat_interleave(32, -1)[:, :columns]
    assert found.values.shape == x.shape
    assert found.amax == 1
    assert torch.equal(found.scales[agrees], oracle.scales[:rows][agrees])
    assert torch.equal(found.values[per_number], oracle.values[:rows, :columns][per_number])
    assert torch.equal(found.scales.flatten(), exact.view_as(oracle.scales)[:rows].flatten())


def block_maxima(x: Tensor, two_d: bool) -> Tensor:
    maxima = x.float().abs().unflatten(-1, (-1, 32)).amax(-1)
    return maxima.unflatten(0, (-1, 32)).amax(1).repeat_interleave(32, 0) if two_d else maxima


def scale_of(maximum: float) -> Fraction:
    """The smallest power of two from 2^-127 to 2^127 that is not below the FP32 quotient, by exact comparison."""
    if math.isinf(maximum):
        return Fraction(2) ** 127
    quotient = Fraction((torch.tensor(maximum) / torch.tensor(6.0)).item())
    return next((Fraction(2) ** e for e in range(-127, 127) if Fraction(2) ** e >= quotient), Fraction(2) ** 127)


@pytest.mark.parametrize("exponent", [-129, -128, -127, -126, -1, 0, 3, 124])
def test_scales_of_mxfp4_next_to_powers_of_two(exponent: int) -> None:
    top = torch.tensor(6.0 * 2.0**exponent)
    around = [torch.nextafter(top, torch.tensor(end)) for end in (0.0, INF)]
    for maximum in (top, *around):
        x = torch.zeros(1, 32)
        x[0, 7] = -maximum
        found = scaled_values(x, scheme=MX)
        assert found.scales.item() == float(scale_of(maximum.item()))
        assert decode(found)[0, 7] == round_e2m1(x[0, 7] / found.scales.item()) * found.scales.item()


def test_known_mxfp4_blocks() -> None:
    x = torch.zeros(3, 64)
    x[0, 0], x[0, 1], x[0, 40], x[2, 3] = 6.0, 0.3, 6.5, 1e-3
    found = scaled_values(x, scheme=MX)
    assert found.scales.tolist() == [[1.0, 2.0], [2.0**-127] * 2, [2.0**-12, 2.0**-127]]
    assert decode(found)[0, [0, 1, 40]].tolist() == [6.0, 0.5, 6.0]
    assert decode(found)[2, 3] == 4 * 2.0**-12


def test_mxfp4_has_one_level_of_scales() -> None:
    """A block does not depend on the rest of the tensor, nor on a maximum given from outside."""
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    x[3] *= 1e9
    part = scaled_values(x[:3], scheme=MX)
    for other in (scaled_values(x, scheme=MX), scaled_values(x, scheme=MX, amax=torch.tensor(1e9))):
        assert torch.equal(other.values[:3], part.values)
        assert other.amax == 1
    assert not torch.equal(scaled_values(x).values[:3], scaled_values(x[:3]).values)


def test_mxfp4_rotates_runs_of_16_and_scales_runs_of_32() -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    found = scaled_values(x, rht=True, scheme=MX)
    assert found.values.shape == (5, 64)
    assert torch.equal(found.values, scaled_values(rotate(pad_last(x, 32)), scheme=MX).values)


def test_mxfp4_rounds_stochastically_without_bias() -> None:
    x = torch.empty(4, 64).uniform_(-6, 6, generator=torch.Generator().manual_seed(0))
    x[:, ::32] = 6
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack(
        [decode(scaled_values(x, stochastic=True, generator=generator, scheme=MX)) for _ in range(2000)]
    )
    assert (draws.mean(0) - x).abs().max() < 5 / math.sqrt(2000) + 2 / 256
    # Halves of a block have bits of their own.
    errors = (draws - x).unflatten(-1, (2, 2, 16))
    inside = (x.unflatten(-1, (2, 2, 16)).abs() < 5.9).all(-2)
    product = (errors[..., 0, :] * errors[..., 1, :]).mean(0)[inside]
    assert product.abs().max() < 0.15


def test_infinity_and_nan_show_in_mxfp4() -> None:
    x = torch.ones(2, 64)
    x[0, 3], x[1, 40] = INF, NAN
    decoded = decode(scaled_values(x, scheme=MX))
    assert decoded[0, 3] == INF
    assert decoded[1, 32:].isnan().all()
    assert decoded.isnan().sum() == 32
    square = decode(scaled_values(x, scheme=MX, two_d=True))
    assert square[:, 32:].isnan().all()
    assert square[0, 3] == INF


def test_fp16_does_not_hold_mxfp4() -> None:
    x = torch.randn(2, 32)
    with pytest.raises(ConfigError, match="exponents of FP32 for MXFP4"):
        scaled_values(x, scheme=MX, dtype=torch.float16)
    assert torch.equal(
        scaled_values(x, scheme=MX, dtype=torch.bfloat16).values.float(), scaled_values(x, scheme=MX).values
    )
    assert scaled_values(x.half(), scheme=MX).values.dtype is torch.float32


# ---------------------------------------------------------------------------------------------- both


def test_square_blocks_of_the_transpose_are_the_transposed_blocks() -> None:
    x = torch.randn(3, 48, 80, generator=torch.Generator().manual_seed(0))
    for scheme in (SIX, MX):
        assert torch.equal(
            scaled_values(x, two_d=True, scheme=scheme).values.mT, scaled_values(x.mT, two_d=True, scheme=scheme).values
        )


@pytest.mark.parametrize("scheme", Scheme)
def test_decode_undoes_the_scales(scheme: Scheme) -> None:
    x = torch.randn(8, 100, generator=torch.Generator().manual_seed(0)) * 1e-3
    found = scaled_values(x, scheme=scheme)
    expected = found.values.double() * found.amax.double() / scheme.bound
    torch.testing.assert_close(decode(found).double(), expected, rtol=1e-6, atol=0)
    assert (decode(found) - x).norm() < 0.15 * x.norm()


@pytest.mark.parametrize(("a", "b"), list(itertools.product(Scheme, Scheme)))
def test_a_product_of_any_two_schemes_is_that_of_the_decoded(a: Scheme, b: Scheme) -> None:
    x, y = (torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    qx, qy = scaled_values(x, scheme=a), scaled_values(y, scheme=b)
    alpha = gemm_alpha(qx.amax, qy.amax, a.bound, b.bound)
    product = qx.values.double() @ qy.values.double().mT * alpha.double()
    torch.testing.assert_close(product, decode(qx).double() @ decode(qy).double().mT, rtol=1e-5, atol=1e-6)


def test_a_product_of_four_over_six_is_te_s_gemm() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(32, 256, generator=generator).bfloat16() for _ in range(2))
    adaptive, standard = (te_oracle.reference_quantizer(four_over_six=on) for on in (True, False))
    qa, qb = adaptive.quantize(a), standard.quantize(b)
    qb.global_amax_col = qb.global_amax_row
    expected = adaptive.qgemm(qa.data, qb.data, None, torch.bfloat16, qa.scale, qb.scale, qresult_x=qa, qresult_w=qb)
    ours_a, ours_b = scaled_values(a, scheme=SIX), scaled_values(b)
    alpha = gemm_alpha(ours_a.amax, ours_b.amax, SIX.bound)
    assert torch.equal((ours_a.values @ ours_b.values.t() * alpha).bfloat16(), expected)


def test_four_over_six_hides_no_nan_and_refuses_a_rotation() -> None:
    x = torch.ones(4, 40)
    x[1, 3] = NAN
    for two_d in (False, True):
        assert decode(scaled_values(x, two_d=two_d, scheme=SIX)).isnan().all()
    block = scaled_values(x, amax=torch.tensor(1.0), scheme=SIX).values
    assert block[1, :16].isnan().all()
    assert block.isnan().sum() == 16
    with pytest.raises(ConfigError, match="four over six"):
        scaled_values(x, rht=True, scheme=SIX)
    with pytest.raises(ConfigError, match="32x32 blocks"):
        scaled_values(x[0], two_d=True, scheme=MX)


@pytest.mark.parametrize("scheme", [SIX, MX])
def test_zeros_and_nothing(scheme: Scheme) -> None:
    for shape in ((0, 16), (3, 0), (4, 64)):
        found = scaled_values(torch.zeros(shape), two_d=True, scheme=scheme)
        assert isinstance(found, ScaledValues)
        assert found.values.shape == shape
        assert decode(found).eq(0).all()
