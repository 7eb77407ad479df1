from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton_setup import DEVICE, needs_kernels, quiet

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.kernels import triton_gemm
from monai_fp4.quantization.kernels.triton_gemm import multiply, multiply_fused, multiply_library, scale_and_cast
from monai_fp4.quantization.numerics import E2M1_GRID, gemm_alpha

RESULTS = (torch.bfloat16, torch.float16, torch.float32)


def operand(rows: int, depth: int, seed: int, *, transposed: bool = False, dtype=torch.bfloat16) -> ScaledValues:
    """Codes times powers of two, whose products and sums are exact in FP32, and an odd maximum."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.tensor([*E2M1_GRID, *(-x for x in E2M1_GRID)])
    shape = (depth, rows) if transposed else (rows, depth)
    values = grid[torch.randint(0, 16, shape, generator=generator)]
    values = (values * 2.0 ** torch.randint(-2, 3, (), generator=generator)).to(dtype).to(DEVICE)
    amax = torch.rand((), generator=generator).to(DEVICE) + 0.1
    return ScaledValues(values.mT if transposed else values, amax, torch.empty(0))


def expected(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> torch.Tensor:
    sums = (a.values.double() @ b.values.double().mT).float()
    return (sums * gemm_alpha(a.amax, b.amax)).to(dtype)


@needs_kernels
@quiet
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 150),
    depth=st.integers(1, 200),
    transposed=st.tuples(st.booleans(), st.booleans()),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    result=st.sampled_from(RESULTS),
    seed=st.integers(0, 1 << 20),
)
def test_exact_sums_give_the_same_bits(rows, columns, depth, transposed, dtype, result, seed):
    a = operand(rows, depth, seed, transposed=transposed[0], dtype=dtype)
    b = operand(columns, depth, seed + 1, transposed=transposed[1], dtype=dtype)
    wanted = expected(a, b, result)
    for product in (multiply_fused, multiply_library):
        found = product(a, b, result)
        assert found.dtype is result and torch.equal(found, wanted), product.__name__


@needs_kernels
@quiet
def test_many_tiles_in_bands():
    a, b = operand(1300, 32, 0), operand(300, 32, 1)
    assert torch.equal(multiply_fused(a, b, torch.float32), expected(a, b, torch.float32))


@needs_kernels
@quiet
def test_inexact_sums_stay_within_the_bound():
    a, b = operand(40, 300, 0), operand(50, 300, 1)
    a = ScaledValues(a.values * torch.exp2(torch.randint(-12, 12, (40, 300)).to(DEVICE)), a.amax, a.scales)
    a = ScaledValues(a.values.to(torch.bfloat16), a.amax, a.scales)
    found = multiply_fused(a, b, torch.float32).double()
    alpha = gemm_alpha(a.amax, b.amax).double()
    exact = (a.values.double() @ b.values.double().mT) * alpha
    bound = 301 * 2.0**-23 * (a.values.double().abs() @ b.values.double().abs().mT) * alpha
    assert ((found - exact).abs() <= bound).all()


@needs_kernels
@quiet
def test_nan_reaches_the_result():
    a, b = operand(20, 32, 0), operand(20, 32, 1)
    a.values[3, 4] = float("nan")
    found = multiply_fused(a, b, torch.bfloat16)
    assert found[3].isnan().all() and not found[:3].isnan().any()
    spoiled = ScaledValues(b.values, torch.tensor(float("nan"), device=DEVICE), b.scales)
    assert multiply_fused(a, spoiled, torch.bfloat16).isnan().all()


@needs_kernels
@quiet
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "gaps"])
def test_finish_scales_as_torch_does(result, layout):
    a, b = operand(4, 16, 0), operand(4, 16, 1)
    sums = torch.randn(2, 5, 6, 70, device=DEVICE)
    sums = sums.to(memory_format=torch.channels_last) if layout == "channels last" else sums
    sums = sums[..., ::2] if layout == "gaps" else sums
    found = scale_and_cast(sums, a, b, result)
    assert torch.equal(found, (sums * gemm_alpha(a.amax, b.amax)).to(result))
    assert layout == "gaps" or found.stride() == sums.stride()


@needs_kernels
@quiet
def test_the_library_multiplies_deep_sums(monkeypatch):
    called = []
    monkeypatch.setattr(triton_gemm, "multiply_library", lambda *_: called.append("library"))
    monkeypatch.setattr(triton_gemm, "multiply_fused", lambda *_: called.append("fused"))
    for depth in (16, 4095, 4096, 65536):
        multiply(operand(1, depth, 0), operand(1, depth, 1), torch.bfloat16)
    assert called == ["fused", "fused", "library", "library"]


@needs_kernels
@quiet
def test_empty_products():
    assert multiply_fused(operand(0, 16, 0), operand(3, 16, 1), torch.bfloat16).shape == (0, 3)
    assert torch.equal(multiply_fused(operand(2, 0, 0), operand(3, 0, 1), torch.float32).cpu(), torch.zeros(2, 3))
