"""Where a compiler is, and the instructions, the kernels have to be available: one that miscalculates is a failure."""

from __future__ import annotations

import ctypes
from types import ModuleType

import pytest
import torch
from compiled_kernels import needs_bf16, needs_compiler

from monai_fp4 import compiler
from monai_fp4.quantization.kernels import cpu_gemm, cpu_quantize


@pytest.mark.parametrize(
    "kernel",
    [pytest.param(cpu_quantize, marks=needs_compiler), pytest.param(cpu_gemm, marks=needs_bf16)],
    ids=["quantize", "gemm"],
)
def test_a_kernel_that_this_machine_can_build_is_available(kernel: ModuleType) -> None:
    assert kernel.available(), {status.name: status.reason for status in compiler.status()}


@needs_compiler
@pytest.mark.parametrize("part", ["values", "amax"])
def test_a_quantizer_that_miscalculates_is_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiler.load(cpu_quantize.SOURCE)
    assert library is not None and cpu_quantize._fault(library) is None
    right = cpu_quantize.quantize

    def wrong(*arguments: object, **options: object) -> object:
        result = right(*arguments, **options)  # type: ignore[arg-type]
        flat = getattr(result, part).view(-1)
        flat[-1] = torch.nextafter(flat[-1].float(), torch.tensor(torch.inf)).to(flat.dtype) + flat[-1].abs() / 64
        return result

    monkeypatch.setattr(cpu_quantize, "quantize", wrong)
    assert "differs from plain torch in the self-check" in str(cpu_quantize._fault(library))


@needs_bf16
def test_a_product_that_miscalculates_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiler.load(cpu_gemm.SOURCE)
    assert library is not None and cpu_gemm._check(library) is None

    class Wrong:
        """The library, whose results are off by the last bit of one number."""

        bf16_product_available = library.bf16_product_available

        @staticmethod
        def bf16_product(*arguments: object) -> int:
            failed = library.bf16_product(*arguments)
            last = ctypes.cast(arguments[11], ctypes.POINTER(ctypes.c_int32))  # type: ignore[arg-type]
            last[14 * 70 - 1] ^= 1
            return int(failed)

    assert cpu_gemm._check(Wrong) == "its products differ from those of plain torch"  # type: ignore[arg-type]


def test_without_the_instructions_there_are_no_products() -> None:
    class Old:
        bf16_product_available = staticmethod(lambda: 0)

    assert "no AVX512_BF16" in str(cpu_gemm._check(Old))  # type: ignore[arg-type]
