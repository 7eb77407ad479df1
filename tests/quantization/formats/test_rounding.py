"""The two grids and the ways to round to them, against exact arithmetic in Python."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_fp4.quantization.formats.rounding import (
    E2M1_GRID,
    SUPPORTED_DTYPES,
    random_bits,
    round_e2m1,
    round_e2m1_stochastic,
    round_e4m3_,
)

INF, NAN = float("inf"), float("nan")
MIDPOINTS = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0}
"""Each tie of the grid and the number that it goes to, written out from the contract."""


def exact_round(value: float, grid: tuple[float, ...]) -> float:
    """Round to nearest in exact arithmetic; a tie goes to the number with the even index in the grid."""
    magnitude = Fraction(min(abs(value), grid[-1]))
    distances = [abs(magnitude - Fraction(number)) for number in grid]
    best = min(distances)
    ties = [index for index, distance in enumerate(distances) if distance == best]
    index = next(index for index in ties if len(ties) == 1 or index % 2 == 0)
    return math.copysign(grid[index], value)


def e4m3_grid() -> tuple[float, ...]:
    """The non-negative finite E4M3 numbers, by the definition of the format."""
    subnormal = [m * 2.0**-9 for m in range(8)]
    return tuple(subnormal + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)])


def neighbours(value: float) -> tuple[float, float]:
    """The FP32 numbers just below and just above."""
    number = torch.tensor(value)
    return torch.nextafter(number, torch.tensor(-INF)).item(), torch.nextafter(number, torch.tensor(INF)).item()


@pytest.mark.parametrize("dtype", SUPPORTED_DTYPES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("number", E2M1_GRID)
def test_round_e2m1_keeps_every_grid_number(number: float, sign: float, dtype: torch.dtype) -> None:
    rounded = round_e2m1(torch.tensor([sign * number], dtype=dtype))
    assert rounded.dtype is dtype
    assert rounded.item() == sign * number


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("midpoint", MIDPOINTS)
def test_round_e2m1_at_every_midpoint_and_its_neighbours(midpoint: float, sign: float) -> None:
    below, above = neighbours(midpoint)
    lower = max(number for number in E2M1_GRID if number < midpoint)
    upper = min(number for number in E2M1_GRID if number > midpoint)
    for value, expected in ((below, lower), (midpoint, MIDPOINTS[midpoint]), (above, upper)):
        assert round_e2m1(torch.tensor(sign * value)).item() == sign * expected, value


@pytest.mark.parametrize(("value", "expected"), [(6.0001, 6.0), (1e30, 6.0), (INF, 6.0), (-INF, -6.0), (1e-45, 0.0)])
def test_round_e2m1_clamps_and_flushes(value: float, expected: float) -> None:
    assert round_e2m1(torch.tensor(value)).item() == expected


@settings(deadline=None, max_examples=300)
@given(st.floats(-8, 8, width=32))
def test_round_e2m1_equals_exact_rounding(value: float) -> None:
    assert round_e2m1(torch.tensor(value)).item() == exact_round(value, E2M1_GRID)


def test_round_e2m1_keeps_nan_and_leaves_its_argument_alone() -> None:
    x = torch.tensor([NAN, 1.2])
    rounded = round_e2m1(x)
    assert rounded[0].isnan()
    assert rounded[1] == 1
    assert x[1] == torch.tensor(1.2)


def test_e4m3_scales_at_every_number_midpoint_and_neighbour() -> None:
    grid = e4m3_grid()
    assert len(grid) == 127
    values = list(grid)
    for lower, upper in itertools.pairwise(grid):
        middle = (lower + upper) / 2
        values += [middle, *neighbours(middle)]
    rounded = round_e4m3_(torch.tensor(values))
    assert rounded.tolist() == [exact_round(value, grid) for value in values]
    # torch's own cast is a second opinion, on the numbers and on their neighbours alike.
    assert torch.equal(rounded, torch.tensor(values).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("lower_index", range(7))
def test_stochastic_rounding_counts_over_all_256_random_numbers(lower_index: int, sign: float) -> None:
    """Within a step, exactly floor(256 * distance) of the 256 random numbers lead up, and none to another neighbour."""
    lower, upper = E2M1_GRID[lower_index : lower_index + 2]
    bits = torch.arange(256).to(torch.uint8)
    for share in (0.0, 1 / 256, 0.25, 0.5, 0.75, 255 / 256):
        value = lower + share * (upper - lower)
        rounded = sign * round_e2m1_stochastic(torch.full((256,), sign * value), bits)
        assert set(rounded.tolist()) <= ({lower, upper} if share else {lower})
        assert (rounded == upper).sum() == round(256 * share), (lower, share)


@settings(deadline=None, max_examples=200)
@given(value=st.floats(-7, 7, width=32), bits=st.integers(0, 255))
def test_stochastic_rounding_follows_the_formula(value: float, bits: int) -> None:
    def step(magnitude: float) -> float:
        return 0.5 if magnitude < 2 else 1.0 if magnitude < 4 else 2.0

    magnitude = min(abs(value), 6.0)
    moved = (torch.tensor(magnitude) + torch.tensor(bits / 256 * step(magnitude))).item()
    expected = min(moved // step(moved) * step(moved), 6.0)
    result = round_e2m1_stochastic(torch.tensor([value]), torch.tensor([bits], dtype=torch.uint8)).item()
    assert abs(result) == expected
    assert result == 0 or math.copysign(1, result) == math.copysign(1, value)


def test_stochastic_rounding_keeps_nan_and_clips_infinity() -> None:
    bits = torch.full((3,), 255, dtype=torch.uint8)
    rounded = round_e2m1_stochastic(torch.tensor([NAN, INF, -7.0]), bits)
    assert rounded[0].isnan()
    assert rounded[1:].tolist() == [6.0, -6.0]


@pytest.mark.parametrize("value", [0.1, -0.3, 1.3, 2.2, -3.9, 4.7])
def test_stochastic_rounding_is_unbiased_inside_a_step(value: float) -> None:
    count = 200_000
    x = torch.full((count,), value)
    rounded = round_e2m1_stochastic(x, random_bits(x, torch.Generator().manual_seed(1)))
    spread = rounded.std().item() / math.sqrt(count)
    # u has 8 bits, so the expected value lies up to 1/256 of a step towards zero: a bias of u, not of the draws.
    step = 0.5 if abs(value) < 2 else 1.0 if abs(value) < 4 else 2.0
    assert abs(rounded.mean().item() - value) < 5 * spread + step / 256


def test_random_bits_are_uniform_independent_and_reproducible() -> None:
    like = torch.empty(4096, 64)
    bits = random_bits(like, torch.Generator().manual_seed(3))
    counts = torch.bincount(bits.flatten().int(), minlength=256).double()
    expected = bits.numel() / 256
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 255 + 6 * math.sqrt(2 * 255)
    # Eight numbers share one 64-bit draw, so correlations at short distances are where a fault would be.
    centred = bits.flatten().double() - 127.5
    for lag in range(1, 17):
        correlation = (centred[:-lag] * centred[lag:]).mean().item() / centred.square().mean().item()
        assert abs(correlation) < 5 / math.sqrt(bits.numel()), lag
    assert torch.equal(bits, random_bits(like, torch.Generator().manual_seed(3)))
    assert not torch.equal(bits, random_bits(like, torch.Generator().manual_seed(4)))
