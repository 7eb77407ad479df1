"""The scales, the rotation and the operands of products, against Transformer Engine and against known blocks."""

from __future__ import annotations

import math

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
    BLOCK_SIZE,
    SUPPORTED_DTYPES,
    decode,
    gemm_alpha,
    plain_torch,
    rotate,
    round_e2m1,
    scaled_values,
)

INF, NAN = float("inf"), float("nan")


def test_block_scale_of_a_known_block() -> None:
    # amax 2688 makes the tensor's own scale 1, so a block scale is its maximum over 6, rounded: 0.3 / 6 = 0.05 lies
    # between the E4M3 numbers 0.046875 and 0.05078125.
    x = torch.zeros(4, 16)
    x[0, 0], x[1, 3], x[2, 5] = 2688.0, 0.3, 1e-3
    result = scaled_values(x)
    assert result.amax == 2688
    assert result.scales.flatten().tolist() == [448.0, 0.05078125, 0.0, 0.0]
    assert result.values[1, 3] == 6 * 0.05078125
    assert result.values[2].eq(0).all()


# ---------------------------------------------------------------------------------------------- stochastic rounding


def test_stochastic_draws_follow_the_generator_given() -> None:
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        scaled_values(x, stochastic=True, generator=torch.Generator().manual_seed(seed)).values for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    default, second = scaled_values(x, stochastic=True).values, scaled_values(x, stochastic=True).values
    assert not torch.equal(default, second)
    torch.manual_seed(5)
    assert torch.equal(default, scaled_values(x, stochastic=True).values)


def test_stochastic_values_average_to_the_input() -> None:
    # The largest magnitude of each block is 6 with a block scale of exactly 448, so that nothing is clipped.
    x = torch.empty(4, 64).uniform_(-6, 6, generator=torch.Generator().manual_seed(0))
    x[:, ::16] = 6
    generator = torch.Generator().manual_seed(1)
    total = sum(decode(scaled_values(x, stochastic=True, generator=generator)) for _ in range(4000)) / 4000
    # A step of 2 has a spread of at most 1; five standard errors, and the bias of 8-bit random numbers.
    assert (total - x).abs().max() < 5 / math.sqrt(4000) + 2 / 256


# ---------------------------------------------------------------------------------------------- rotation


def test_rotation_matrix_is_te_s_and_orthogonal() -> None:
    matrix = rotate(torch.eye(16)).float()
    te = te_oracle.reference_quantizer(rht=True)._build_hadamard_matrix(16, torch.device("cpu"), torch.float32) / 4
    assert torch.equal(matrix, te)
    assert torch.equal(matrix @ matrix.t(), torch.eye(16))


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_rotation_sums_in_fp32_and_rounds_to_bf16(dtype: torch.dtype) -> None:
    x = torch.randn(8, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = (x.double().reshape(-1, 16) @ rotate(torch.eye(16)).double()).view(8, 48)
    rotated = rotate(x)
    assert rotated.dtype is torch.bfloat16
    assert torch.equal(rotated, exact.float().bfloat16())


def test_rotation_cancels_in_a_product() -> None:
    a, b = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(a).float() @ rotate(b).float().t(), a @ b.t(), atol=0.15, rtol=0)


def test_rotation_refuses_a_length_that_is_no_multiple_of_16() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 16.*\(3, 20\)"):
        rotate(torch.zeros(3, 20))


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotation_does_not_depend_on_the_layout(axis: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(32, 48, 64, generator=generator) * torch.logspace(-4, 4, 64)
    view = x.to(dtype).movedim(axis, -1)
    assert torch.equal(rotate(view), rotate(view.contiguous()))
    assert torch.equal(rotate(view[1::2]), rotate(view[1::2].contiguous()))


# ---------------------------------------------------------------------------------------------- scaled values


def te_values(x: Tensor, **options: bool) -> Tensor:
    """``q * s`` from TE's codes and scales."""
    oracle = te_oracle.quantize(x, **options)
    codes = te_oracle.reference().cast_from_fp4x2(oracle.codes, torch.float32)
    return codes * oracle.scales.float().repeat_interleave(BLOCK_SIZE, -1)


@pytest.mark.parametrize("target", SUPPORTED_DTYPES)
@pytest.mark.parametrize("options", [{}, {"two_d": True}, {"rht": True}], ids=["1d", "2d", "rht"])
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_scaled_values_are_te_s_codes_times_scales_in_any_dtype(
    dtype: torch.dtype, options: dict[str, bool], target: torch.dtype
) -> None:
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 96)
    x = x.to(dtype)
    result = scaled_values(x, **options, dtype=target)
    assert result.values.dtype is target
    assert torch.equal(result.values.float(), te_values(x, **options))
    assert torch.equal(result.amax, te_oracle.quantize(x, **options).amax)


@settings(deadline=None, max_examples=60)
@given(
    values=hnp.arrays("float32", hnp.array_shapes(min_dims=1, max_dims=4, max_side=20), elements=st.floats(width=32)),
    dtype=st.sampled_from(SUPPORTED_DTYPES),
    two_d=st.booleans(),
)
def test_decoded_values_stay_close_and_keep_their_shape(values: object, dtype: torch.dtype, two_d: bool) -> None:
    x = torch.as_tensor(values).to(dtype)
    result = scaled_values(x, two_d=two_d and x.ndim > 1)
    decoded = decode(result)
    assert decoded.shape == x.shape
    if x.isnan().any():
        assert decoded.isnan().all()
    elif 1e-30 < result.amax < 1e30:
        # At most half a step of 2 in 6, at worst after clipping by a scale rounded down by 1/16; the last terms are the
        # smallest block scale and FP32 rounding.
        bound = x.float().abs().max() * (1 / 6 + 1 / 16 + 2.0**-9) * 1.01
        assert ((decoded - x.float()).abs() <= bound).all()


@pytest.mark.parametrize(("two_d", "rht"), [(False, False), (True, False), (False, True)])  # both are refused
def test_values_do_not_depend_on_strides(two_d: bool, rht: bool) -> None:
    x = torch.randn(6, 32, 40, 48, generator=torch.Generator().manual_seed(0))
    for view in (x.movedim(1, -1), x.transpose(-1, -2), x[::2, :, 1:], x[..., ::3], x[:, :1].expand(-1, 32, -1, -1)):
        expected = scaled_values(view.contiguous(), two_d=two_d, rht=rht)
        result = scaled_values(view, two_d=two_d, rht=rht)
        assert torch.equal(result.values, expected.values)
        assert torch.equal(result.scales, expected.scales)
        assert torch.equal(result.amax, expected.amax)


def test_tiles_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 9, 5, 64, generator=torch.Generator().manual_seed(0)).transpose(0, 1)

    def draw() -> tuple[Tensor, Tensor, Tensor]:
        drawn = scaled_values(x, stochastic=True, generator=torch.Generator().manual_seed(0))
        return scaled_values(x).values, drawn.values, rotate(x)

    with plain_torch():
        whole = draw()
        monkeypatch.setattr(tiles, "_TILE", 100)
        pieces = draw()
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_two_d_codes_of_the_transpose_are_the_transposed_codes() -> None:
    x = torch.randn(3, 48, 80, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled_values(x, two_d=True).values.mT, scaled_values(x.mT, two_d=True).values)
    assert not torch.equal(scaled_values(x).values.mT, scaled_values(x.mT).values)


def test_padding_is_cropped_except_after_a_rotation() -> None:
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (0, 12))
    assert torch.equal(scaled_values(x).values, scaled_values(padded).values[:, :20])
    assert scaled_values(x).scales.shape == (5, 2)
    assert torch.equal(scaled_values(x, rht=True).values, scaled_values(padded, rht=True).values)
    assert decode(scaled_values(x, rht=True)).shape == (5, 32)


def test_a_given_amax_makes_the_parts_of_a_tensor_agree_with_the_whole() -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    whole = scaled_values(x)
    parts = [scaled_values(part, amax=whole.amax) for part in x.split(3)]
    assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
    assert all(torch.equal(part.amax, whole.amax) for part in parts)


def test_nan_is_never_lost() -> None:
    x = torch.ones(4, 40)
    x[1, 3] = NAN
    for options in ({}, {"two_d": True}, {"rht": True}, {"stochastic": True}):
        result = scaled_values(x, **options)
        assert result.amax.isnan()
        assert decode(result).isnan().all()
    # With the amax of a larger tensor the block that holds it is NaN, and only that one.
    block = scaled_values(x, amax=torch.tensor(1.0)).values
    assert block[1, :16].isnan().all()
    assert block.isnan().sum() == 16


def test_infinity_follows_the_formulas() -> None:
    x = torch.ones(1, 32)
    x[0, 0] = INF
    result = scaled_values(x)
    assert result.amax == INF
    assert result.values[0, 0] == 6 * 448
    decoded = decode(result)
    assert decoded[0, 0] == INF
    assert not decoded.isfinite().any()


def test_scaled_values_of_zeros_and_of_nothing() -> None:
    zeros = scaled_values(torch.zeros(2, 16))
    assert zeros.amax == 0
    assert decode(zeros).eq(0).all()
    for shape in ((0, 16), (3, 0)):
        empty = scaled_values(torch.empty(shape))
        assert empty.values.shape == shape
        assert empty.amax == 0


def test_arguments_that_do_not_fit_are_refused() -> None:
    x = torch.ones(2, 16)
    with pytest.raises(ConfigError, match=r"float32, bfloat16, float16.*float64"):
        scaled_values(x.double())
    with pytest.raises(ConfigError, match="int64"):
        round_e2m1(torch.ones(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="dtype"):
        scaled_values(x, dtype=torch.float64)
    with pytest.raises(ConfigError, match="two_d and rht"):
        scaled_values(x, two_d=True, rht=True)
    with pytest.raises(ConfigError, match=r"at least 2 axes.*\(16,\)"):
        scaled_values(x[0], two_d=True)
    with pytest.raises(ConfigError, match="at least 1 axes"):
        scaled_values(torch.tensor(1.0))


def test_the_argument_is_not_written_to_and_carries_no_gradient() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    before = x.detach().clone()
    assert not scaled_values(x).values.requires_grad
    assert torch.equal(x.detach(), before)


# ---------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("length", [64, 256, 1024])
def test_a_product_of_scaled_values_is_te_s_gemm(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    a, b = (torch.randn(32, length, generator=generator).bfloat16() for _ in range(2))
    quantizer = te_oracle.reference_quantizer(columnwise=True)
    qa, qb = quantizer.quantize(a), quantizer.quantize(b)
    qb.global_amax_col = qb.global_amax_row
    expected = quantizer.qgemm(qa.data, qb.data, None, torch.bfloat16, qa.scale, qb.scale, qresult_x=qa, qresult_w=qb)
    ours_a, ours_b = scaled_values(a), scaled_values(b)
    alpha = gemm_alpha(ours_a.amax, ours_b.amax)
    assert alpha.dtype is torch.float32
    assert torch.equal((ours_a.values @ ours_b.values.t() * alpha).bfloat16(), expected)


def test_decode_rounds_in_the_order_of_the_contract() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    result = scaled_values(x)
    scales = result.scales.repeat_interleave(16, -1)
    codes = result.values / scales
    assert torch.equal(decode(result), codes * ((scales * result.amax) * (1 / 2688)))
    assert not torch.equal(decode(result), result.values * result.amax * (1 / 2688))
