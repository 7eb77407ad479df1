"""Products of quantized operands on CUDA GPUs: BF16 tensor cores, sums in FP32, alpha and the cast at the end.

``q * s`` is exact in BF16, so a BF16 product that sums in FP32 is the FP4 product up to ``alpha``, a number on the
device. Two ways lead there, and which one is quicker follows from the depth K of the sums:

* **cuBLAS**, ``torch.mm(a, b.T, out_dtype=torch.float32)``, and a kernel that scales and casts. cuBLAS is the quicker
  multiplier, but takes no alpha from the device's memory, so every sum is written and read once more as FP32: 8 bytes
  an output. At B bytes/s and P operations/s these take ``4 P / (B K)`` of the time of the multiplication itself:
  about 1100 / K on an H100, 800 / K on an A100. They treble a GEMM with K = 512 and vanish in one with K = 65536.
* **our kernel** with alpha in its epilogue writes the result and nothing else. As a multiplier a Triton kernel of this
  plain kind reaches some three quarters of cuBLAS.

The two meet near K = 3000 to 4000: below 4096 the kernel is taken (fprop and dgrad of these networks, K = 96 to 3072
features), from there cuBLAS (wgrad, where K counts tokens, the result is small and sums are best split, which cuBLAS
does). **That constant is arithmetic, not a measurement**: `benchmarks/cuda_kernels.py` times both ways. They sum in
different orders, so results agree to within ``K * 2^-23 * sum |a * b|``, and bit for bit where sums are exact in FP32.

Convolutions stay with cuDNN, which has no such output for BF16 operands. It has for FP32 operands in TF32, whose ten
mantissa bits hold ``q * s`` (six bits) exactly; :func:`scale_and_cast` then scales its sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.kernels.triton_support import may_fail

__all__ = ["scale_and_cast", "multiply", "multiply_fused", "multiply_library"]

_DEEP = 4096
_EXACT = (torch.bfloat16, torch.float16)
_SCALED_AT_ONCE = 1024
_COMPILE: dict[str, Any] = {"enable_fp_fusion": False}


@torch.no_grad()
@may_fail()
def multiply(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """``alpha * a @ b.T``, summed in FP32.

    Args:
        a: values ``[M, K]`` on a device with Triton, with any strides: BF16, or another dtype that is converted.
        b: values ``[N, K]``.
        dtype: of the result: BF16, FP16 or FP32.

    Returns:
        The product ``[M, N]``.
    """
    return (multiply_library if a.values.shape[-1] >= _DEEP else multiply_fused)(a, b, dtype)


@torch.no_grad()
def multiply_library(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """:func:`multiply` by cuBLAS and :func:`scale_and_cast`."""
    left, right = _operands(a, b)
    if not left.is_cuda:  # Triton's interpreter, for tests
        return scale_and_cast(left.float() @ right.float().mT, a, b, dtype)
    return scale_and_cast(torch.mm(left, right.mT, out_dtype=torch.float32), a, b, dtype)


@torch.no_grad()
def multiply_fused(a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """:func:`multiply` by our kernel."""
    from monai_fp4.quantization.kernels.triton_gemm_kernels import multiply_kernel

    left, right = _operands(a, b)
    rows, depth = left.shape
    columns = right.shape[0]
    out = left.new_empty((rows, columns), dtype=dtype)
    if out.numel() == 0 or depth == 0:
        return out.zero_()
    tile = _tile(rows, columns, depth, left.device)
    programs = -(-rows // tile["ROWS"]) * -(-columns // tile["COLUMNS"])
    with torch.cuda.device_of(left):
        multiply_kernel[(programs,)](
            left, right, out, a.amax, b.amax, rows, columns, depth, *left.stride(), *right.stride(), **tile, **_COMPILE
        )
    return out


@torch.no_grad()
@may_fail()
def scale_and_cast(accumulated: Tensor, a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """Scale the FP32 sums of a product by alpha and cast them, in one kernel.

    Args:
        accumulated: sums of ``a.values`` times ``b.values``, FP32, of any shape and dense in memory.
        a: one operand.
        b: the other.
        dtype: of the result.

    Returns:
        The product, in the shape and memory layout of the sums.
    """
    from monai_fp4.quantization.kernels.triton_gemm_kernels import scale_kernel

    out = torch.empty_like(accumulated, dtype=dtype)
    if out.stride() != accumulated.stride():  # gaps in memory
        accumulated = accumulated.contiguous()
        out = torch.empty_like(accumulated, dtype=dtype)
    count = out.numel()
    if count:
        with torch.cuda.device_of(out):
            scale_kernel[(-(-count // _SCALED_AT_ONCE),)](
                accumulated, out, a.amax, b.amax, count, BLOCK=_SCALED_AT_ONCE, num_warps=4, **_COMPILE
            )
    return out


def _operands(a: ScaledValues, b: ScaledValues) -> tuple[Tensor, Tensor]:
    left, right = a.values, b.values
    if left.dtype is not right.dtype or left.dtype not in _EXACT:
        left, right = left.to(torch.bfloat16), right.to(torch.bfloat16)
    return left, right


def _tile(rows: int, columns: int, depth: int, device: torch.device) -> dict[str, int]:
    """The tile of a program and how it is run, within 99 KiB of shared memory where there are no 227."""
    roomy = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)
    wide = 256 if roomy and columns % 256 == 0 else 128
    return {
        "ROWS": _power_of_two(rows, 128),
        "COLUMNS": _power_of_two(columns, wide),
        "DEPTH": _power_of_two(depth, 64),
        "BAND": 8,
        "num_warps": 8 if wide > 128 else 4,
        "num_stages": 4 if roomy else 3,
    }


def _power_of_two(number: int, largest: int) -> int:
    """The smallest power of two that is not below a number, from 16 on and no larger than the largest."""
    return min(largest, 1 << max(4, (number - 1).bit_length()))
