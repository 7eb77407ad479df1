from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from subnormal_scales import subnormal_scales
from torch import Tensor
from triton_setup import DEVICE, needs_compiler, needs_kernels, quiet

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats import philox
from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.formats.rotation import rotate
from monai_fp4.quantization.kernels import cpu_quantize, torch_quantize, triton_quantize, triton_support
from monai_fp4.quantization.kernels.task import Task
from monai_fp4.quantization.kernels.triton_device import as_fp32, random_words
from monai_fp4.quantization.kernels.triton_language import tl, triton
from monai_fp4.quantization.kernels.triton_launch import as_matrix
from monai_fp4.quantization.kernels.triton_quantize import quantize, quantize_both, takes
from monai_fp4.quantization.kernels.triton_rotation import rotate_inner
from monai_fp4.quantization.kernels.triton_support import available, may_fail
from monai_fp4.quantization.numerics import scaled_values

DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def assert_same(found: ScaledValues, expected: ScaledValues) -> None:
    for name in ("values", "amax", "scales"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.shape == other.shape and one.dtype is other.dtype, name
        nan = other.isnan()
        assert torch.equal(one.isnan(), nan), name
        assert torch.equal(one[~nan], other[~nan]), name
        assert torch.equal(one[~nan].signbit(), other[~nan].signbit()), f"the signs of zeros of {name}"


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int, binades: int) -> Tensor:
    """Gaussian numbers times powers of two, with some zeros, ties and repeated maxima."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x *= torch.exp2(torch.randint(-binades, binades + 1, shape, generator=generator).float())
    x[torch.rand(shape, generator=generator) < 0.05] = 0.0
    halves = torch.rand(shape, generator=generator) < 0.2
    x[halves] = (x[halves] * 4).round() / 4
    return x.to(dtype).to(DEVICE)


# Layouts that layers quantize, and one that has to be copied: each makes a view of numbers of a shape.
VIEWS = {
    "tokens": ((35, 40), lambda x: x),
    "long rows": ((2, 8, 128), lambda x: x),
    "transposed": ((35, 40), lambda x: x.mT),
    "channels first": ((2, 24, 3, 5), lambda x: x.movedim(1, -1)),
    "channels last": ((2, 3, 5, 24), lambda x: x),
    "cut": ((20, 50), lambda x: x[:, 3:40]),
    "every other row": ((40, 33), lambda x: x[::2]),
    "kernel": ((20, 18, 3), lambda x: x.movedim((0, 1), (-2, -1))),
    "vector": ((37,), lambda x: x),
    "one column": ((40, 1), lambda x: x.mT),
}
OPTIONS = (
    {},
    {"key": -5},
    {"rht": True},
    {"rht": True, "key": 1 << 40},
    {"two_d": True},
    {"decoded": True},
    {"amax": 37.5},
)


@needs_kernels
@quiet
@settings(max_examples=30, deadline=None)
@given(
    view=st.sampled_from(sorted(VIEWS)),
    options=st.sampled_from(OPTIONS),
    dtype=st.sampled_from(DTYPES),
    result=st.sampled_from(DTYPES),
    seed=st.integers(0, 1 << 20),
    binades=st.integers(0, 8),
)
def test_equals_plain_torch(view, options, dtype, result, seed, binades):
    shape, make = VIEWS[view]
    x = make(numbers(shape, dtype, seed, binades))
    if options.get("two_d") and x.ndim < 2:
        x = x.unsqueeze(0)
    if "amax" in options:
        options = {"amax": torch.tensor(options["amax"], device=DEVICE)}
    assert_same(quantize(x, Task(**options, dtype=result)), torch_quantize.quantize(x, Task(**options, dtype=result)))


@needs_kernels
@quiet
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_every_option_for_every_dtype(options, dtype):
    x = numbers((18, 40), dtype, 3, 4)
    assert_same(quantize(x, Task(**options)), torch_quantize.quantize(x, Task(**options)))


@needs_kernels
@quiet
@settings(max_examples=8, deadline=None)
@given(
    shape=st.sampled_from([(33, 40), (2, 17, 21), (16, 16), (1, 50), (3, 2, 20, 16)]),
    dtype=st.sampled_from(DTYPES),
    rht=st.booleans(),
    keys=st.sampled_from([(None, None), (1, 2), (None, 7), (-3, None)]),
    seed=st.integers(0, 1 << 20),
)
def test_both_operands_from_the_same_reads(shape, dtype, rht, keys, seed):
    x = numbers(shape, dtype, seed, 4)
    row, column = quantize_both(x, Task(rht=rht, key=keys[0], dtype=torch.bfloat16), column_key=keys[1])
    assert_same(row, torch_quantize.quantize(x, Task(key=keys[0], dtype=torch.bfloat16)))
    assert_same(column, torch_quantize.quantize(x.mT, Task(rht=rht, key=keys[1], dtype=torch.bfloat16)))
    assert column.values.mT.is_contiguous()


@needs_kernels
@quiet
def test_both_operands_with_known_maxima():
    x = numbers((20, 30), torch.float32, 0, 3)
    maxima = torch.tensor(50.0, device=DEVICE), torch.tensor(70.0, device=DEVICE)
    row, column = quantize_both(x, Task(rht=True, dtype=torch.bfloat16), amaxes=maxima)
    assert_same(row, torch_quantize.quantize(x, Task(amax=maxima[0], dtype=torch.bfloat16)))
    assert_same(column, torch_quantize.quantize(x.mT, Task(rht=True, amax=maxima[1], dtype=torch.bfloat16)))


SPECIAL = {
    "zeros": [0.0],
    "nan": [float("nan"), 1.0],
    "negative nan": [-float("nan"), 1.0],
    "infinity": [float("inf"), -1.0],
    "both infinities": [float("inf"), float("-inf")],
    "subnormal": [1e-39, -3e-40],
    "huge": [3e38, -1e38],
    "small beside large": [1e30, 1e-30, -1e-10],
}


@needs_kernels
@quiet
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_special_numbers(name, dtype):
    x = (
        numbers((32, 32), dtype, 1, 0)
        if name not in ("zeros", "subnormal")
        else torch.zeros(32, 32, dtype=dtype).to(DEVICE)
    )
    for index, number in enumerate(SPECIAL[name]):
        x[3 + index, 5] = number
    for key in (None, 9):
        assert_same(quantize(x, Task(key=key)), torch_quantize.quantize(x, Task(key=key)))
    assert_same(quantize(x.mT), torch_quantize.quantize(x.mT))


@needs_kernels
@quiet
def test_a_nan_spoils_its_block_alone_where_the_maximum_is_known():
    x = torch.ones(2, 32, device=DEVICE)
    x[0, 3] = float("nan")
    found = quantize(x, Task(amax=torch.tensor(6.0, device=DEVICE))).values
    assert found[0, :16].isnan().all() and not found[0, 16:].isnan().any() and not found[1].isnan().any()


@triton.jit
def rotation_kernel(x, out, PAIRED: tl.constexpr):  # noqa: N803
    places = 64 * tl.arange(0, 64)[:, None] + tl.arange(0, 64)[None, :]
    tl.store(out + places, rotate_inner(as_fp32(tl.load(x + places)), 64, 64, PAIRED))


@needs_kernels
@quiet
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_sums_in_the_defined_order(dtype):
    # In each block two large numbers, which cancel in half of the sums: what is left of the small ones depends on which
    # of them were added while a large one was there.
    x = numbers((64, 64), torch.float32, 5, 0).cpu()
    places = torch.rand(64, 4, 16, generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :2]
    large = torch.tensor([1.0, -1.0]).expand(64, 4, 2) * (2.0**22 if dtype is not torch.float16 else 2.0**15)
    x = x.unflatten(1, (4, 16)).scatter(2, places, large).flatten(1)
    x = (x * torch.tensor([1.0, 0.01]).repeat(32)).to(dtype).to(DEVICE)
    expected = rotate(x).float()
    # BF16 numbers are summed in another order than the same numbers as FP32, which must be seen here.
    assert dtype is not torch.bfloat16 or not torch.equal(expected, rotate(x.float()).float())
    out = torch.empty(64, 64, device=DEVICE)
    rotation_kernel[(1,)](x, out, dtype is torch.bfloat16)
    assert torch.equal(out, expected)


@needs_kernels
@quiet
def test_rotation_flushes_subnormal_bf16_numbers():
    x = (numbers((16, 32), torch.float32, 2, 2) * 2.0**-126).to(torch.bfloat16)
    assert 0 < ((x.abs() < 2.0**-126) & (x != 0)).sum() < x.numel()
    assert_same(quantize(x, Task(rht=True)), torch_quantize.quantize(x, Task(rht=True)))


@needs_kernels
@quiet
def test_random_words_are_those_of_philox():
    @triton.jit
    def kernel(out, first, key: tl.uint64):
        blocks = first + tl.arange(0, 8).to(tl.int64)
        words = random_words(key, blocks)
        for word in tl.static_range(4):
            tl.store(out + 4 * tl.arange(0, 8) + word, words[word].to(tl.int32, bitcast=True))

    for first, key in ((0, 0), (5, 77), (2**32 - 3, -1), (2**35 + 1, -(2**63))):
        out = torch.empty(8, 4, dtype=torch.int32, device=DEVICE)
        kernel[(1,)](out, first, key & (1 << 64) - 1)
        expected = philox.random_bytes(8, key, DEVICE, first)
        assert torch.equal(out.view(torch.uint8).view(8, 16), expected)


@needs_kernels
@quiet
def test_the_key_decides_and_nothing_else():
    x = numbers((32, 64), torch.bfloat16, 0, 1)
    first, again, other = (quantize(x, Task(key=key)).values for key in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@needs_kernels
@quiet
def test_scales_can_be_left_out():
    x = numbers((32, 40), torch.bfloat16, 0, 1)
    task = Task(with_scales=False)
    for found in (quantize(x, task), *quantize_both(x, task)):
        assert found.scales.numel() == 0
    assert torch.equal(quantize(x, task).values, quantize(x).values)


@pytest.mark.parametrize(
    ("make", "shape", "along_rows", "copied"),
    [
        (lambda: torch.empty(6, 40), (1, 6, 40), True, False),
        (lambda: torch.empty(6, 40).mT, (1, 6, 40), False, False),
        (lambda: torch.empty(2, 24, 3, 5).movedim(1, -1), (2, 24, 15), False, False),
        (lambda: torch.empty(2, 3, 5, 24), (1, 30, 24), True, False),
        (lambda: torch.empty(2, 24, 3, 5), (1, 144, 5), True, False),
        (lambda: torch.empty(9, 30)[::2, :20], (1, 5, 20), True, False),
        (lambda: torch.empty(2, 3, 4, 5).permute(0, 2, 1, 3)[..., :4], (1, 24, 4), True, True),
        (lambda: torch.empty(30)[::2], (1, 1, 15), True, True),
        (lambda: torch.empty(7), (1, 1, 7), True, False),
    ],
)
def test_layouts_are_read_in_place(make, shape, along_rows, copied):
    x = make().uniform_()
    data, rows = as_matrix(x, False)
    assert (tuple(data.shape), rows) == (shape, along_rows)
    assert (data.data_ptr() != x.data_ptr()) == copied
    flat = data if rows else data.mT
    assert torch.equal(flat.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1]))


@needs_kernels
@quiet
@pytest.mark.parametrize("options", [{}, {"key": 3}, {"decoded": True}, {"two_d": True}], ids=str)
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.mT.contiguous().mT], ids=["rows", "columns"])
def test_scales_that_are_subnormal_in_e4m3(options, view):
    x = view(subnormal_scales().to(DEVICE))
    expected = torch_quantize.quantize(x, Task(**options))
    if not options.get("two_d"):
        assert len(expected.scales[expected.scales < 2**-6].unique()) == 8  # zero and all seven
    assert_same(quantize(x, Task(**options)), expected)


def test_a_cpu_tensor_is_left_to_others():
    assert not takes(torch.ones(16, 16), Task())


def test_says_why_it_is_not_available():
    found, reason = available("meta")
    assert not found and "meta" in reason


def test_a_failure_is_warned_about_once_and_ends_the_use(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("PTX was not accepted\nlong trace")

    monkeypatch.setattr(triton_support, "_failure", None)
    monkeypatch.setattr(triton_quantize, "row_operand", fail)
    monkeypatch.setattr(triton_quantize, "takes", lambda x, task: triton_support.failure() is None)
    monkeypatch.setattr(cpu_quantize, "takes", lambda x, task: False)  # it would come first
    x = torch.randn(16, 16)
    expected = torch_quantize.quantize(x).values
    with pytest.warns(RuntimeWarning, match="plain torch .* RuntimeError: PTX was not accepted"):
        assert torch.equal(scaled_values(x).values, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(scaled_values(x).values, expected)
    assert available("cpu") == (False, triton_support.failure())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("too little"), ConfigError("refused")])
def test_memory_that_runs_out_and_refusals_are_no_faults_of_triton(error):
    with pytest.raises(type(error)), may_fail():
        raise error
    assert triton_support.failure() is None


def compile_for(capability: int, names: str, folder: Path) -> dict:
    script = Path(__file__).parents[2] / "triton_compile.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    run = subprocess.run(
        [sys.executable, script, str(capability), names], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("capability", "names"),
    [
        (80, "rows_stochastic,columns,gemm"),
        (90, "rows,rows_rotated,rows_fp16_ragged,two_d,columns_rotated,both_stochastic,gemm,gemm_wide,finish"),
        (90, "block_rotated"),
        (100, "both,gemm"),
    ],
)
def test_compiles_to_machine_code(capability, names, tmp_path):
    for name, kernels in compile_for(capability, names, tmp_path).items():
        for kernel in kernels:
            where = f"{kernel['name']} of {name} on {capability}"
            assert kernel["spilled"] == 0, where
            room = 227 if name == "gemm_wide" else 99
            assert kernel["registers"] * 32 * kernel["warps"] <= 65536 and kernel["shared"] <= room * 1024, where
            ptx = kernel["ptx"]
            # Nothing approximate, nothing that flushes subnormal numbers but the one instruction that shall.
            assert not any(word in ptx for word in ("div.full", "div.approx", "rcp.approx", "mad.f32")), where
            assert ".ftz" not in ptx.replace("fma.rn.ftz.f32", ""), where
            assert " add.f32" not in ptx and " mul.f32" not in ptx, where  # without .rn, which forbids fusing
            if kernel["name"].startswith("quantize"):
                assert "div.rn" in ptx or "rcp.rn" in ptx, where
            if kernel["name"] == "multiply_kernel":
                assert {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}[capability] in ptx, where
