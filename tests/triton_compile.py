"""Compile the kernels for GPUs that are not there, through the very calls that would launch them; prints JSON.

Run as a script, in a process of its own: one in which Triton interprets cannot compile. The driver is replaced by one
that knows a compute capability and nothing else, and every launch by a compilation down to a cubin, which the
`ptxas` in Triton's wheel makes. So types, specializations and options are those of a real launch.

    python triton_compile.py 90 rows,columns
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.kernels import triton_gemm, triton_quantize
from monai_fp4.quantization.kernels.task import Task


class _Driver:
    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def calls() -> dict[str, Callable[[], Any]]:
    x = torch.empty(4096, 768, dtype=torch.bfloat16)
    floats = torch.empty(768, 3072)
    image = torch.empty(4, 60, 20, 20, dtype=torch.float16)
    one = torch.ones(())
    tall = ScaledValues(torch.empty(4096, 768, dtype=torch.bfloat16), one, one)
    flat = ScaledValues(torch.empty(3072, 768, dtype=torch.bfloat16), one, one)
    return {
        "rows": lambda: triton_quantize.quantize(x, Task(dtype=torch.bfloat16)),
        "rows_stochastic": lambda: triton_quantize.quantize(x, Task(key=5, dtype=torch.bfloat16)),
        "rows_rotated": lambda: triton_quantize.quantize(x, Task(rht=True, dtype=torch.bfloat16)),
        "rows_fp16_ragged": lambda: triton_quantize.quantize(image[..., :-1], Task(decoded=True, dtype=torch.bfloat16)),
        "two_d": lambda: triton_quantize.quantize(floats, Task(two_d=True, dtype=torch.bfloat16)),
        "columns": lambda: triton_quantize.quantize(image.movedim(1, -1), Task(dtype=torch.bfloat16)),
        "columns_rotated": lambda: triton_quantize.quantize(floats.mT, Task(rht=True, key=5, dtype=torch.bfloat16)),
        "both": lambda: triton_quantize.quantize_both(x, Task(rht=True, dtype=torch.bfloat16)),
        "both_stochastic": lambda: triton_quantize.quantize_both(
            x, Task(rht=True, key=1, dtype=torch.bfloat16), column_key=2
        ),
        "block_rotated": lambda: triton_quantize.quantize(floats[:1, :9], Task(rht=True)),
        "gemm": lambda: triton_gemm.multiply_fused(tall, flat, torch.bfloat16),
        "gemm_wide": lambda: wide(tall, flat),
        "finish": lambda: triton_gemm.scale_and_cast(floats, tall, flat, torch.bfloat16),
    }


def wide(a: ScaledValues, b: ScaledValues) -> Any:
    """The product in the tile of a GPU with much shared memory, which the operands here, on a CPU, do not ask for."""
    tile, capability = triton_gemm._tile, torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    triton_gemm._tile = lambda rows, columns, depth, _: tile(rows, columns, depth, torch.device("cuda"))
    try:
        return triton_gemm.multiply_fused(a, b, torch.bfloat16)
    finally:
        triton_gemm._tile, torch.cuda.get_device_capability = tile, capability


def describe(name: str, kernel: Any) -> dict[str, Any]:
    """What the compilation of a kernel came to."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run([tools / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, usage
    return {
        "name": name,
        "registers": int(found[1]),
        "spilled": int(found[2]) + int(found[3]),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+\S", sass, re.MULTILINE)),
        "ptx": kernel.asm["ptx"],
    }


def main() -> None:
    capability, names = int(sys.argv[1]), sys.argv[2].split(",")
    driver.set_active(_Driver(capability))
    run = JITFunction.run
    compiled: list[dict[str, Any]] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(describe(self.fn.__name__, kernel))
        return kernel

    JITFunction.run = compile_only
    available = calls()
    results = {}
    for name in names:
        compiled.clear()
        available[name]()
        results[name] = list(compiled)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
