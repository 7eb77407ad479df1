"""The compiled quantizer gives the bits of the plain one, for every layout, option and corner."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from compiled_kernels import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from subnormal_scales import subnormal_scales
from torch import Tensor
from torch.nn import functional

from monai_fp4 import compiler
from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.philox import draw_key
from monai_fp4.quantization.formats.rotation import rotate
from monai_fp4.quantization.kernels import cpu_quantize
from monai_fp4.quantization.kernels.task import Task
from monai_fp4.quantization.numerics import BLOCK_SIZE, SUPPORTED_DTYPES, ScaledValues, plain_torch, scaled_values
from monai_fp4.quantization.tensor import fake_quantize

OPTIONS = [(two_d, rht, stochastic) for two_d in (False, True) for rht in (False, True) for stochastic in (False, True)]
OPTIONS = [options for options in OPTIONS if not (options[0] and options[1])]

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT,
    "channels last": lambda x: x.movedim(0, -1),
    "slice": lambda x: x[..., 1::3],
    "rows": lambda x: x[:, ::2],
    "repeated": lambda x: x[:1].expand(3, *x.shape[1:]),
}


pytestmark = needs_compiler


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, the sign of zero included; all NaN are one."""
    a, b = (torch.where(x.isnan(), torch.nan, x.float()).contiguous().view(torch.int32) for x in (a, b))
    return torch.equal(a, b)


def seeded(function: Callable[..., ScaledValues], x: Tensor, **options: object) -> ScaledValues:
    return function(x, generator=torch.Generator().manual_seed(3), **options)


def assert_equal(x: Tensor, **options: object) -> None:
    ours = seeded(scaled_values, x, **options)
    with plain_torch():
        expected = seeded(scaled_values, x, **options)
    for name in ("values", "scales", "amax"):
        a, b = getattr(ours, name), getattr(expected, name)
        assert a.dtype is b.dtype, name
        assert a.shape == b.shape, name
        assert same(a, b), (name, options)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("two_d", "rht", "stochastic"), OPTIONS)
def test_every_layout_and_option(view: str, two_d: bool, rht: bool, stochastic: bool) -> None:
    x = torch.randn(4, 34, 56, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 56)
    for dtype in SUPPORTED_DTYPES:
        assert_equal(VIEWS[view](x.to(dtype)), two_d=two_d, rht=rht, stochastic=stochastic, dtype=torch.bfloat16)


@settings(deadline=None, max_examples=150)
@given(
    values=hnp.arrays("float32", hnp.array_shapes(min_dims=1, max_dims=4, max_side=20), elements=st.floats(width=32)),
    source=st.sampled_from(SUPPORTED_DTYPES),
    target=st.sampled_from(SUPPORTED_DTYPES),
    options=st.sampled_from(OPTIONS),
    axis=st.integers(0, 3),
)
def test_any_shape_value_and_axis(
    values: object, source: torch.dtype, target: torch.dtype, options: tuple[bool, bool, bool], axis: int
) -> None:
    x = torch.as_tensor(values).to(source)
    two_d, rht, stochastic = options
    x = x.movedim(axis % x.ndim, -1)
    assert_equal(x, two_d=two_d and x.ndim > 1, rht=rht, stochastic=stochastic, dtype=target)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.0, 1e-45, 3e38, 2.0**-126])
def test_one_extraordinary_number(number: float, transposed: bool) -> None:
    x = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    x[7, 11] = number
    x = x.mT if transposed else x
    for amax in (None, torch.tensor(2.0)):
        for two_d, rht, stochastic in OPTIONS:
            assert_equal(x, two_d=two_d, rht=rht, stochastic=stochastic, amax=amax)


def test_large_tensors_do_not_depend_on_the_threads(threads: int) -> None:
    x = torch.randn(200, 400, generator=torch.Generator().manual_seed(0))
    for view in (x, x.t()):
        assert_equal(view, rht=True, stochastic=True)


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
def test_decoded_values(dtype: torch.dtype) -> None:
    x = (torch.randn(33, 70, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 4, 70)).to(dtype)
    for view in (x, x.mT):
        with plain_torch():
            expected = fake_quantize(view)
        assert same(fake_quantize(view), expected)


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(3, 21, 40), (2, 16, 16), (33, 7)])
def test_pairs_are_the_values_side_by_side(shape: tuple[int, ...], transposed: bool, decoded: bool) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.mT.contiguous().mT if transposed else x
    ours = cpu_quantize.quantize(x, Task(key=5, dtype=torch.bfloat16, decoded=decoded), pairs=True)
    values = cpu_quantize.quantize(x, Task(key=5, dtype=torch.bfloat16, decoded=decoded))
    assert ours is not None
    assert values is not None
    padded = functional.pad(values.values, (0, -shape[-1] % BLOCK_SIZE))
    assert torch.equal(ours.values, padded.unflatten(-1, (-1, 2)).movedim(-3, -2))


def test_a_given_view_is_written_and_nothing_beside_it() -> None:
    x = torch.randn(2, 5, 6, 32, generator=torch.Generator().manual_seed(0))
    image = torch.full((2, 7, 8, 32), 9.0)
    result = cpu_quantize.quantize(x, out=image[:, 1:-1, 1:-1])
    assert result is not None
    assert torch.equal(image[:, 1:-1, 1:-1], scaled_values(x).values)
    image[:, 1:-1, 1:-1] = 9
    assert image.eq(9).all()
    with pytest.raises(ConfigError, match=r"expected an output \(2, 5, 6, 32\)"):
        cpu_quantize.quantize(x, out=image)


def test_more_axes_than_the_kernel_walks() -> None:
    x = torch.randn([3] * 8 + [17], generator=torch.Generator().manual_seed(0))[::2, ::2, ::2, ::2, ::2, ::2, ::2, ::2]
    assert_equal(x)


def test_keys_differ() -> None:
    assert draw_key(torch.Generator().manual_seed(1)) != draw_key(torch.Generator().manual_seed(2))


# Blocks whose largest rotated number, rounded to BF16, depends on the order of the FP32 sums: large numbers that add up
# to the middle between two BF16 numbers, and small ones (s) that all but cancel. The exponents are 14 to 20 apart;
# a random search found none that are less than 14 apart.
s = 9.0  # stands for the small number
ORDERED = {
    -14: [
        1.9765625,
        -s,
        1.0,
        -1.4921875,
        -0.76171875,
        -s,
        -s,
        1.9609375,
        0.310546875,
        -1.3515625,
        -s,
        s,
        -0.6796875,
        -s,
        0.73046875,
        0.498046875,
    ],
    -15: [-1.6875, s, 1.96875, s, -1.734375, -s, -s, s, 0.68359375, -s, -s, s, s, -s, -0.23828125, -0.390625],
    -16: [-1.53125, s, -s, s, s, s, 0.3359375, -s, -0.5390625, -s, 0.7734375, s, -s, -s, s, -s],
    -18: [1.3125, s, -0.1259765625, s, 0.7421875, -s, 0.21875, s, 0.92578125, -s, s, -s, 0.2138671875, -s, s, s],
    -20: [-1.96875, -s, 0.197265625, -s, -s, -0.470703125, -s, -s, s, -0.98046875, s, -s, -s, s, s, s],
}
SMALL = {-14: 1.9609375, -15: 1.9296875, -16: 1.9296875, -18: 1.5234375, -20: 1.609375}  # mantissas of s


@pytest.mark.parametrize("distance", ORDERED)
def test_the_order_of_the_rotations_sums_is_kept(distance: int) -> None:
    block = torch.tensor(ORDERED[distance])
    x = torch.zeros(16, 32)
    x[:, 3] = torch.where(block.abs() == s, block.sign() * SMALL[distance] * 2.0**distance, block)
    x = x.bfloat16()
    with plain_torch():
        expected = scaled_values(x.mT, rht=True)
    for pairs in (False, True):
        found = cpu_quantize.quantize(x.mT, Task(rht=True, dtype=torch.bfloat16), pairs=pairs)
        assert found is not None and same(found.amax, expected.amax)


@pytest.mark.parametrize("largest", [1e38, 2.0**126, 3.2e38, torch.inf])
@pytest.mark.parametrize("transposed", [False, True])
def test_rotated_sums_overflow_in_one_order(largest: float, transposed: bool) -> None:
    """Butterflies would give other infinities and NaN than the plain order."""
    x = torch.full((32, 48), largest).copysign_(torch.randn(32, 48, generator=torch.Generator().manual_seed(0)))
    x[::2, ::3] /= 2
    x[:16] = largest
    for dtype in (torch.bfloat16, torch.float32):
        assert_equal(x.to(dtype).mT if transposed else x.to(dtype), rht=True)


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("place", [(0, 0), (20, 3), (63, 19)])
@pytest.mark.parametrize("size", [1.0, 1.01, 1e-3, 300.0])
def test_the_largest_rotated_number_is_found_wherever_it_is(
    place: tuple[int, int], size: float, transposed: bool, dtype: torch.dtype
) -> None:
    """Blocks are passed over by a bound, which the signs of this block reach and those of no other do."""
    x = torch.randn(64, 20, 16, generator=torch.Generator().manual_seed(0)).sign()
    x[place] = rotate(torch.eye(16))[:, 5].sign() * size
    x = x.flatten(1).to(dtype)
    x = x.t().contiguous().t() if transposed else x
    assert_equal(x, rht=True)
    assert (cpu_quantize.quantize(x, Task(rht=True)).amax >= 4 * size * 0.99) or size < 1  # type: ignore[union-attr]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0, 90.0]),
    zeros=st.sampled_from([0.0, 0.5, 0.97]),
    dtype=st.sampled_from(SUPPORTED_DTYPES),
    transposed=st.booleans(),
)
def test_rotations_of_many_tiles(seed: int, spread: float, zeros: float, dtype: torch.dtype, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(48, 272, generator=generator) * (torch.randn(48, 272, generator=generator) * spread).exp()
    x = x.masked_fill(torch.rand(48, 272, generator=generator) < zeros, 0.0).to(dtype)
    assert_equal(x.mT if transposed else x, rht=True, stochastic=True)


@pytest.mark.parametrize("instructions", [("-mavx2", "-mfma"), ()])
def test_processors_with_shorter_registers(
    instructions: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors are made of two parts or four there. Built with -O1, which takes half the time."""
    if platform.machine() != "x86_64" or (instructions and " avx2 " not in compiler._processor()):
        pytest.skip("needs an x86 processor with AVX2")
    monkeypatch.setenv("MONAI_FP4_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "_FLAGS", ("-O1", *(flag for flag in compiler._FLAGS if flag != "-O3")))
    monkeypatch.setattr(compiler, "_EXTRAS", (instructions,))
    monkeypatch.setattr(compiler, "_libraries", {})
    assert cpu_quantize.available()  # it has proved itself
    x = torch.randn(3, 35, 56, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 4, 56)
    for dtype in SUPPORTED_DTYPES:
        for view in (x.to(dtype), x.to(dtype).mT, x.to(dtype)[..., 1::3]):
            for two_d, rht, stochastic in OPTIONS:
                assert_equal(view, two_d=two_d, rht=rht, stochastic=stochastic, dtype=dtype)


def test_memory_that_holds_other_numbers() -> None:
    """Conjugation leaves memory as it is, and a zero tensor has none."""
    negative = torch.randn(4, 32, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)).conj().imag
    assert negative.is_neg()
    assert same(fake_quantize(negative), fake_quantize(negative.resolve_neg()))
    assert same(fake_quantize(torch._efficientzerotensor((4, 32))), torch.zeros(4, 32))


@pytest.mark.parametrize(
    "x", [torch.ones(4, 32, dtype=torch.float64), torch.ones(4, 32, device="meta"), torch.eye(32).to_sparse()]
)
def test_what_cannot_be_read_is_refused(x: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"expected a (dense )?tensor"):
        cpu_quantize.quantize(x)


@pytest.mark.parametrize(("two_d", "rht", "stochastic"), OPTIONS)
def test_scales_that_are_subnormal_in_e4m3(two_d: bool, rht: bool, stochastic: bool) -> None:
    for view in VIEWS.values():
        assert_equal(view(subnormal_scales()), two_d=two_d, rht=rht, stochastic=stochastic)


def test_every_subnormal_scale_is_the_nearest() -> None:
    """Torch's own cast to E4M3 is the oracle; ties go to the even one."""
    x = subnormal_scales()
    wanted = (x.abs().amax(-1) / 6).to(torch.float8_e4m3fn).float()
    assert torch.equal(scaled_values(x).scales.squeeze(-1), wanted)
