"""The compiled products, against exact sums in FP64."""

from __future__ import annotations

import pytest
import torch
from compiled_kernels import needs_bf16
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from monai_fp4.quantization.kernels import cpu_gemm

pytestmark = needs_bf16

sizes = st.integers(1, 150)


def paired(matrix: Tensor) -> Tensor:
    """``[N, K]`` as pairs ``[K / 2, N, 2]``."""
    return matrix.unflatten(1, (-1, 2)).movedim(1, 0).contiguous()


def operands(rows: int, columns: int, half: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values as FP4 operands have them (few bits, a wide range), whose products are exact in FP32, and an alpha."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        codes = torch.randint(-12, 13, (count, 2 * half), generator=generator) / 2
        return (codes * 2.0 ** torch.randint(-6, 6, (count, 1), generator=generator)).to(torch.bfloat16)

    return draw(rows), draw(columns), torch.rand((), generator=generator)


def exact(a: Tensor, b: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The result in FP64, and the error that FP32 sums may have at most."""
    a64, b64 = a.double(), b.double()
    return alpha.double() * (a64 @ b64.T), alpha.double() * (a64.abs() @ b64.abs().T) * a.shape[1] * 2**-23


@settings(deadline=None, max_examples=60)
@given(rows=sizes, columns=sizes, half=st.integers(1, 90), seed=st.integers(0, 2**31))
def test_both_layouts_give_the_product(rows: int, columns: int, half: int, seed: int) -> None:
    a, b, alpha = operands(rows, columns, half, seed)
    expected, error = exact(a, b, alpha)
    of_rows = cpu_gemm.matrix_product(a, paired(b), alpha, torch.float32)
    of_pairs = cpu_gemm.matrix_product(paired(a), paired(b), alpha, torch.float32)
    assert ((of_rows - expected).abs() <= error + 1e-30).all()
    assert torch.equal(of_rows, of_pairs)


@pytest.mark.parametrize("rows", [7, 300])  # above 256 the second operand is copied into panels
def test_long_sums_are_split_and_do_not_depend_on_the_threads(rows: int) -> None:
    a, b, alpha = operands(rows, 70, 5000, 0)
    expected, error = exact(a, b, alpha)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(cpu_gemm.matrix_product(a, paired(b), alpha, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert ((results[0] - expected).abs() <= error).all()
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cast_is_that_of_torch(dtype: torch.dtype) -> None:
    a, b, _ = operands(64, 200, 8, 1)
    a[0, 0], a[1, 0] = torch.nan, torch.inf
    for alpha in (torch.tensor(0.7), torch.tensor(1e-41), torch.tensor(torch.nan)):  # 1e-41: results are denormal
        wide = cpu_gemm.matrix_product(a, paired(b), alpha, torch.float32)
        torch.testing.assert_close(
            cpu_gemm.matrix_product(a, paired(b), alpha, dtype), wide.to(dtype), rtol=0, atol=0, equal_nan=True
        )


def test_segments_and_strides() -> None:
    """Three taps of a convolution along one axis, written into every other row of the result."""
    torch.manual_seed(0)
    a = torch.randint(-3, 4, (12, 4)).to(torch.bfloat16)  # 12 pixels of 4 channels
    b = torch.randint(-3, 4, (3, 2, 5, 2)).to(torch.bfloat16)  # 3 taps, pairs of 4 channels, 5 outputs
    out = torch.full((20, 5), 7.0)
    cpu_gemm.product(
        a,
        (0, 0, 0, 2, 1),
        b,
        out,
        (1, 1, 1, 10),
        (0, 0, 0, 10),
        torch.tensor(0.5),
        segments=(torch.tensor([0, 2, 4]), torch.tensor([0, 10, 20])),
        pairs=2,
        out_start=5,
    )
    taps = b.float().movedim(2, 3).flatten(1, 2)  # [taps, channels, outputs]
    expected = 0.5 * sum(a[tap : tap + 10].float() @ taps[tap] for tap in range(3))
    assert torch.equal(out[1::2], expected) and (out[::2] == 7).all()


def test_an_empty_sum_is_zero() -> None:
    out = torch.full((300, 3), 7.0)
    none = torch.zeros(0, dtype=torch.int64)
    cpu_gemm.product(
        torch.zeros(300, 2, dtype=torch.bfloat16),
        (0, 0, 0, 1, 1),
        torch.zeros(1, 3, 2, dtype=torch.bfloat16),
        out,
        (1, 1, 1, 300),
        (0, 0, 0, 3),
        torch.tensor(1.0),
        segments=(none, none),
    )
    assert (out == 0).all()
