"""Packed tensors: bit-equal to Transformer Engine's reference quantizer, and back."""

from __future__ import annotations

import pytest
import te_oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.numerics import E2M1_GRID, SUPPORTED_DTYPES, decode, scaled_values
from monai_fp4.quantization.tensor import NVFP4Tensor, fake_quantize, quantize

MODES = [
    pytest.param({}, id="1d"),
    pytest.param({"two_d": True}, id="2d"),
    pytest.param({"rht": True}, id="rht"),
]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, the sign of zero included; all NaN count as one."""
    return a.dtype is b.dtype and torch.equal(canonical_bits(a), canonical_bits(b))


def canonical_bits(x: Tensor) -> Tensor:
    x = torch.where(x.isnan(), torch.full_like(x.float(), float("nan")), x.float())
    return x.contiguous().view(torch.int32)


def assert_equals_te(x: Tensor, options: dict[str, bool]) -> None:
    ours, oracle = quantize(x, **options), te_oracle.quantize(x, **options)
    assert same_bits(ours.amax, oracle.amax)
    assert same_bits(ours.scales.reshape(oracle.scales.shape), oracle.scales)
    assert torch.equal(ours.codes.reshape(oracle.codes.shape), oracle.codes)


def sample(kind: str) -> Tensor:
    """Tensors [48, 128] that reach one corner each."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 128, generator=generator)
    match kind:
        case "zeros":
            return torch.zeros_like(x)
        case "zero blocks":
            return x * (torch.rand(48, 8, generator=generator) < 0.5).repeat_interleave(16, -1)
        case "negative zeros":
            return torch.where(x > 0, -0.0, x)
        case "ties":
            # With a maximum of 6 in each block the scales cancel: all quarters are codes or ties.
            ties = torch.randint(-24, 25, x.shape, generator=generator) / 4
            ties[:, ::16] = 6.0
            return ties
        case "integers":
            return torch.randint(-200, 201, x.shape, generator=generator).float()
        case "denormals":
            return x * 1e-41
        case "smallest":
            return torch.randint(-3, 4, x.shape, generator=generator) * 2.0**-149
        case "infinity":
            x[3, 5], x[20, 127] = float("inf"), -float("inf")
        case "largest":
            x[0, 0], x[40, 100] = torch.finfo(torch.float32).max, -3e38
        case "outliers":
            x[::7, ::5] *= 1e4
        case "orders of magnitude":
            return x * torch.logspace(-30, 8, 128)
        case "subnormal scales":
            return x * torch.logspace(-4, 0, 8).repeat_interleave(16)
    return x


KINDS = [
    "normal",
    "zeros",
    "zero blocks",
    "negative zeros",
    "ties",
    "integers",
    "denormals",
    "smallest",
    "infinity",
    "largest",
    "outliers",
    "orders of magnitude",
    "subnormal scales",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_quantize_equals_te_bit_for_bit(dtype: torch.dtype, options: dict[str, bool], kind: str) -> None:
    assert_equals_te(sample(kind).to(dtype), options)


@settings(deadline=None, max_examples=80)
@given(
    values=hnp.arrays(
        "float32",
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20).map(lambda shape: (shape[0], 2 * shape[1])),
        elements=st.one_of(
            st.floats(width=32, allow_nan=False), st.floats(-8, 8, width=32), st.integers(-48, 48).map(lambda i: i / 8)
        ),
    ),
    dtype=st.sampled_from(SUPPORTED_DTYPES),
    two_d=st.booleans(),
)
def test_quantize_equals_te_on_any_shape_and_value(values: object, dtype: torch.dtype, two_d: bool) -> None:
    assert_equals_te(torch.as_tensor(values).to(dtype), {"two_d": two_d})


@settings(deadline=None, max_examples=80)
@given(
    values=hnp.arrays(
        "float32",
        st.tuples(st.integers(1, 8), st.integers(1, 4)).map(lambda shape: (shape[0], 16 * shape[1])),
        elements=st.floats(-(2.0**99), 2.0**99, width=32),
    )
)
def test_quantize_with_rotation_equals_te_on_any_bf16_value(values: object) -> None:
    # Below 32 blocks torch's BF16 product, which TE's reference calls, does without the dot product instruction and
    # sums in another order; ours is one for all shapes.
    assert_equals_te(torch.as_tensor(values).bfloat16().repeat(32, 1), {"rht": True})


def test_quantize_equals_te_at_every_grid_number_midpoint_and_neighbour() -> None:
    # amax 2688 and a block maximum of 6 times a power of two make both scales exact: the codes see these very numbers.
    points = [*E2M1_GRID, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    numbers = torch.tensor([sign * point for point in points for sign in (1, -1)])
    around = torch.cat(
        [numbers, torch.nextafter(numbers, torch.tensor(9.0)), torch.nextafter(numbers, torch.tensor(-9.0))]
    )
    around = around.clamp(-6, 6)
    x = torch.zeros(len(around) + 1, 16)
    x[0, 0] = 2688
    x[1:, 0], x[1:, 1] = 6.0, around
    assert_equals_te(x, {})
    result = quantize(x)
    assert result.scales.float()[1:].eq(1).all()
    expected = torch.tensor(
        [
            next(code for code, number in enumerate(E2M1_GRID) if number == abs(value))
            for value in numbers[: 2 * 8].tolist()
        ]
    )
    assert torch.equal((result.codes[1:17, 0] >> 4 & 7).long(), expected)


def test_stochastic_codes_stay_next_to_the_number() -> None:
    x = sample("normal")
    scaled = scaled_values(x)
    exact = (x / scaled.amax * 2688) / scaled.scales.repeat_interleave(16, -1)
    drawn = quantize(x, stochastic=True, generator=torch.Generator().manual_seed(0)).dequantize(torch.float32)
    codes = (drawn / scaled.amax * 2688) / scaled.scales.repeat_interleave(16, -1)
    step = torch.where(exact.abs() < 2, 0.5, torch.where(exact.abs() < 4, 1.0, 2.0))
    assert ((codes - exact.clamp(-6, 6)).abs() < step * 1.00001).all()
    assert not torch.equal(drawn, fake_quantize(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_fake_quantize_is_quantize_and_dequantize(
    dtype: torch.dtype, options: dict[str, bool], stochastic: bool, kind: str
) -> None:
    x = sample(kind).to(dtype)
    packed, fake = (
        function(x, **options, stochastic=stochastic, generator=torch.Generator().manual_seed(0))
        for function in (quantize, fake_quantize)
    )
    assert same_bits(fake, packed.dequantize(dtype))


@settings(deadline=None, max_examples=100)
@given(
    values=hnp.arrays("float32", hnp.array_shapes(min_dims=1, max_dims=4, max_side=20), elements=st.floats(width=32)),
    dtype=st.sampled_from(SUPPORTED_DTYPES),
    mode=st.sampled_from([{}, {"two_d": True}, {"rht": True}]),
    stochastic=st.booleans(),
)
def test_round_trips_agree_on_any_shape_and_value(
    values: object, dtype: torch.dtype, mode: dict[str, bool], stochastic: bool
) -> None:
    x = torch.as_tensor(values).to(dtype)
    if x.ndim == 1 and "two_d" in mode:
        mode = {}
    arguments = {**mode, "stochastic": stochastic}
    packed = quantize(x, **arguments, generator=torch.Generator().manual_seed(0))
    fake = fake_quantize(x, **arguments, generator=torch.Generator().manual_seed(0))
    scaled = decode(scaled_values(x, **arguments, generator=torch.Generator().manual_seed(0)), dtype)
    assert packed.shape == fake.shape == packed.dequantize().shape
    assert same_bits(fake, packed.dequantize(dtype))
    assert torch.equal(fake.nan_to_num(7.0), scaled.nan_to_num(7.0))
    if x.isnan().any():
        assert fake.isnan().all()


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_nan_has_no_code_but_is_not_lost(dtype: torch.dtype, options: dict[str, bool]) -> None:
    x = sample("normal").to(dtype)
    x[5, 7] = float("nan")
    packed = quantize(x, **options)
    assert packed.amax.isnan()
    assert packed.scales.float().isnan().all()
    assert packed.dequantize(dtype).isnan().all()
    assert fake_quantize(x, **options).isnan().all()


def test_decoding_is_te_s_codes_in_the_order_of_the_contract() -> None:
    x = sample("orders of magnitude")
    oracle = te_oracle.quantize(x)
    codes = te_oracle.reference().cast_from_fp4x2(oracle.codes, torch.float32)
    factors = (oracle.scales.float() * oracle.amax) * (1 / 2688)
    assert torch.equal(quantize(x).dequantize(torch.float32), codes * factors.repeat_interleave(16, -1))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 40])
def test_any_length_is_padded_inside(length: int) -> None:
    x = torch.randn(3, length, generator=torch.Generator().manual_seed(length))
    packed = quantize(x)
    blocks = -(-length // 16)
    assert packed.codes.shape == (3, -(-length // 2))
    assert packed.scales.shape == (3, blocks)
    assert packed.dequantize().shape == packed.shape == x.shape
    padded = quantize(torch.nn.functional.pad(x, (0, 16 * blocks - length)))
    assert torch.equal(packed.codes, padded.codes[:, : packed.codes.shape[1]])
    assert torch.equal(packed.scales.float(), padded.scales.float())
    rotated = quantize(x, rht=True)
    assert rotated.dequantize().shape == rotated.shape == (3, 16 * blocks)


@pytest.mark.parametrize("shape", [(32,), (3, 32), (2, 3, 32), (2, 3, 4, 5, 16)])
def test_any_number_of_axes_equals_te_on_the_flattened_rows(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed = quantize(x)
    assert packed.codes.shape == (*shape[:-1], shape[-1] // 2)
    assert packed.codes.dtype is torch.uint8
    assert packed.scales.dtype is torch.float8_e4m3fn
    assert packed.amax.dtype is torch.float32
    assert packed.amax.shape == ()
    assert_equals_te(x, {})


def test_views_equal_their_contiguous_copies() -> None:
    x = torch.randn(4, 32, 48, generator=torch.Generator().manual_seed(0))
    for view in (x.mT, x.movedim(0, -1), x[:, ::2], x[..., 5:40:2], x[:1].expand(3, -1, -1)):
        for options in ({}, {"two_d": True}, {"rht": True}):
            ours, expected = quantize(view, **options), quantize(view.contiguous(), **options)
            assert torch.equal(ours.codes, expected.codes)
            assert torch.equal(ours.scales.float(), expected.scales.float())
            assert ours.codes.is_contiguous()


def test_two_d_scales_stand_in_all_16_rows() -> None:
    scales = quantize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)), two_d=True).scales.float()
    assert scales.shape == (40, 4)
    for rows in scales.split(16):
        assert rows.eq(rows[0]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("function", [quantize, fake_quantize])
def test_other_dtypes_are_refused(function: object, dtype: torch.dtype) -> None:
    assert callable(function)
    with pytest.raises(ConfigError, match=str(dtype).removeprefix("torch.")):
        function(torch.zeros(2, 16).to(dtype))


def test_no_gradient_flows() -> None:
    x = torch.randn(2, 16, requires_grad=True)
    assert not fake_quantize(x).requires_grad
    assert not quantize(x).amax.requires_grad


def test_four_and_a_half_bits_a_number() -> None:
    packed = quantize(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    assert isinstance(packed, NVFP4Tensor)
    assert packed.codes.nbytes + packed.scales.nbytes == 64 * 64 * 4.5 / 8
