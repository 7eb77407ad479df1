"""The Triton kernels on this machine's GPU: are they right, and how near do they come to what the GPU can do?

    python benchmarks/cuda_kernels.py

Three parts. **Correctness**: results against plain torch on the same device, bit for bit, over shapes, layouts, dtypes
and options. **Quantizers**: time, and the bytes that have to move over that time as a share of what a copy of the same
tensor reaches; a tensor is read once for its maximum and once to be quantized, and both reads count (``share``), since
the second can seldom be spared; ``share_of_one_read`` counts one. **GEMMs**: our kernel with alpha in its epilogue,
and cuBLAS followed by a scaling kernel, beside a BF16 product of `torch.mm` that neither sums in FP32 at its output
nor scales. Tensors are larger than any L2 cache unless ``--small``.

Times are the least of several repeats between CUDA events, each over several calls. Without a GPU the script runs on
small tensors in Triton's interpreter: that shows that it runs, and **measures nothing**; no figures are written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from common import commit, write_whole

from monai_fp4.formats.blocks import ScaledValues, decode_factors, prepare_blocks, round_blocks
from monai_fp4.kernels.triton_gemm import multiply_fused, multiply_library
from monai_fp4.kernels.triton_quantize import available, quantize, quantize_both
from monai_fp4.numerics import gemm_alpha

RESULTS = Path(__file__).parent / "results" / "cuda_kernels.json"
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
GOAL = 0.7  # of a copy's bandwidth
_FAST: dict[str, Any] = {"dtype": torch.bfloat16, "with_scales": False}


def plain(x: Tensor, **options: Any) -> ScaledValues:
    """The definition in plain torch."""
    dtype, key, decoded = options.pop("dtype"), options.pop("key", None), options.pop("decoded", False)
    blocks = prepare_blocks(x, two_d=options.get("two_d", False), rht=options.get("rht", False))
    factors = decode_factors(blocks.scales, blocks.amax) if decoded else blocks.scales
    return ScaledValues(round_blocks(blocks, factors, key=key, dtype=dtype), blocks.amax, blocks.scales.squeeze(-1))


def different(found: ScaledValues, expected: ScaledValues) -> int:
    """How many numbers of two results differ; NaN equals NaN."""
    count = 0
    for one, other in ((found.values, expected.values), (found.scales, expected.scales), (found.amax, expected.amax)):
        if one.shape != other.shape:
            return max(one.numel(), other.numel())
        count += int((~((one == other) | (one.isnan() & other.isnan()))).sum())
    return count


def inputs(small: bool, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the layouts that layers quantize."""
    tokens, features = (33, 40) if small else (5003, 776)
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        x = torch.randn(tokens, features, device=device)
        x *= torch.exp2(torch.randint(-8, 9, x.shape, device=device).float())
        yield f"{name} tokens", x.to(dtype)
        yield f"{name} transposed", x.to(dtype).mT
        if small:
            return
        image = torch.randn(4, 96, 60, 52, device=device, dtype=dtype)
        yield f"{name} channels first", image.movedim(1, -1)
        yield f"{name} channels last", image.contiguous(memory_format=torch.channels_last).movedim(1, -1)
        spread = torch.randn(4096, 1024, device=device) * torch.exp2(
            torch.randint(-30, 30, (4096, 1024), device=device)
        )
        yield f"{name} orders of magnitude", spread.to(dtype)
        spoiled = x.to(dtype)
        spoiled[7, 9] = float("nan")
        yield f"{name} with NaN", spoiled
        yield f"{name} zeros", torch.zeros_like(spoiled)


def check(small: bool, device: torch.device) -> list[dict[str, Any]]:
    """Compare every option on every input with plain torch."""
    options: tuple[dict[str, Any], ...] = (
        {"dtype": torch.bfloat16},
        {"dtype": torch.float32, "key": 1 << 40},
        {"dtype": torch.bfloat16, "rht": True},
        {"dtype": torch.bfloat16, "rht": True, "key": -3},
        {"dtype": torch.bfloat16, "two_d": True},
        {"dtype": torch.bfloat16, "decoded": True},
    )
    cells = []
    for name, x in inputs(small, device):
        results = {str(o): different(quantize(x, **o), plain(x, **o)) for o in options}
        row, column = quantize_both(x, rht=True, row_key=5, column_key=6)
        results["both, row-wise"] = different(row, plain(x, key=5, dtype=torch.bfloat16))
        results["both, column-wise"] = different(column, plain(x.mT, rht=True, key=6, dtype=torch.bfloat16))
        for option, count in results.items():
            cells.append({"input": name, "option": option, "different": count, "numbers": x.numel()})
            if count:
                print(f"DIFFERENT: {name}, {option}: {count} of {x.numel()} numbers", flush=True)
    wrong = sum(cell["different"] > 0 for cell in cells)
    print(f"correctness: {len(cells) - wrong} of {len(cells)} cases are bit-equal to plain torch")
    return cells


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The least time of a call: 7 repeats of enough calls for 20 ms, after two to compile and to warm up."""
    if device.type == "cpu":
        call()
        return float("nan")
    call()
    call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def run(calls: int) -> float:
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls

    calls = max(1, min(200, int(0.02 / max(run(3), 1e-6))))
    return min(run(calls) for _ in range(7))


def quantizers(small: bool, device: torch.device) -> list[dict[str, Any]]:
    """Time each quantizer on BF16 and FP32 and set the bytes that it moves beside those of a copy."""
    cells = []
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn((32, 32) if small else (32768, 4096), device=device).to(dtype)
        out = torch.empty_like(x)
        copy = seconds(partial(out.copy_, x), device)
        copied = 2 * x.numel() * x.element_size()
        amax = x.abs().amax().float()
        row, both = partial(quantize, x, **_FAST), partial(quantize_both, x, **_FAST)
        column, keys = partial(quantize, x.mT, **_FAST), {"row_key": 1, "column_key": 2}
        # Name, call, reads of the tensor and BF16 operands written.
        cases: tuple[tuple[str, Callable[[], Any], int, int], ...] = (
            ("row-wise", row, 2, 1),
            ("row-wise, amax known", partial(row, amax=amax), 1, 1),
            ("row-wise, SR", partial(row, key=1), 2, 1),
            ("row-wise, 16x16", partial(row, two_d=True), 2, 1),
            ("column-wise", column, 2, 1),
            ("column-wise, RHT", partial(column, rht=True), 2, 1),
            ("both", both, 2, 2),
            ("both, RHT", partial(both, rht=True), 2, 2),
            ("both, RHT, SR", partial(both, rht=True, **keys), 2, 2),
            ("both, RHT, SR, amax known", partial(both, rht=True, amaxes=(amax, amax), **keys), 1, 2),
        )
        for name, call, reads, writes in cases:
            time = seconds(call, device)
            written = writes * 2 * x.numel()
            read = x.numel() * x.element_size()
            cell = {
                "case": name,
                "input": str(dtype).removeprefix("torch."),
                "shape": list(x.shape),
                "seconds": time,
                "bytes_per_second": (reads * read + written) / time,
                "copy_bytes_per_second": copied / copy,
                "share": (reads * read + written) / time / (copied / copy),
                "share_of_one_read": (read + written) / time / (copied / copy),
            }
            cells.append(cell)
            if device.type == "cuda":
                verdict = "" if cell["share"] >= GOAL else f", below the goal of {GOAL:.0%}"
                print(f"{cell['input']:9} {name:26} {time * 1e6:8.1f} us, {cell['share']:.0%} of a copy{verdict}")
        if not small:
            part = x[:4096]
            cells.append(
                {
                    "case": "plain torch, row-wise",
                    "input": str(dtype).removeprefix("torch."),
                    "shape": list(part.shape),
                    "seconds": seconds(partial(plain, part, dtype=torch.bfloat16), device),
                    "seconds_here": seconds(partial(quantize, part, **_FAST), device),
                }
            )
    return cells


def gemms(small: bool, device: torch.device) -> list[dict[str, Any]]:
    """Time both ways to multiply, for the shapes of the networks and some larger ones."""
    sizes = [(40, 48, 32)]
    if not small:
        sizes = [(65536, width, depth) for depth in (96, 384, 768, 1536, 3072) for width in (depth, 4 * depth)]
        sizes += [(8192, 8192, depth) for depth in (512, 1024, 2048, 4096, 8192)]
        sizes += [(4 * width, width, 65536) for width in (96, 384, 768)]  # wgrad
    cells = []
    for rows, columns, depth in sizes:
        wgrad = depth == 65536
        generator = torch.Generator(device).manual_seed(depth)
        operands = []
        for count in (rows, columns):
            shape = (depth, count) if wgrad else (count, depth)
            values = torch.randint(-4, 5, shape, generator=generator, device=device).to(torch.bfloat16)
            operands.append(ScaledValues(values.mT if wgrad else values, torch.ones((), device=device), values[:0]))
        a, b = operands
        # Sums of small integers are exact, so both ways have to give the same bits.
        sums = torch.mm(a.values.float(), b.values.float().mT)
        expected = (sums * gemm_alpha(a.amax, b.amax)).to(torch.bfloat16)
        cell: dict[str, Any] = {"rows": rows, "columns": columns, "depth": depth}
        for name, product in (("fused", multiply_fused), ("library", multiply_library)):
            cell[f"{name}_exact"] = bool(torch.equal(product(a, b, torch.bfloat16), expected))
            cell[f"{name}_seconds"] = seconds(partial(product, a, b, torch.bfloat16), device)
        if device.type == "cuda":
            cell["torch_mm_seconds"] = seconds(partial(torch.mm, a.values, b.values.mT), device)
            for name in ("fused", "library", "torch_mm"):
                cell[f"{name}_tflops"] = 2e-12 * rows * columns * depth / cell[f"{name}_seconds"]
            rates = ", ".join(f"{name} {cell[f'{name}_tflops']:.0f}" for name in ("fused", "library", "torch_mm"))
            print(f"GEMM {rows} x {columns} x {depth}: {rates} TFLOP/s", flush=True)
        cells.append(cell)
    wrong = sum(not (cell["fused_exact"] and cell["library_exact"]) for cell in cells)
    print(f"GEMMs: {len(cells) - wrong} of {len(cells)} shapes are exact both ways")
    return cells


def main() -> None:
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small tensors: that it runs, no figures worth keeping")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the figures go, as JSON")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    usable, reason = available(device)
    if not usable:
        sys.exit(f"nothing to measure: {reason}")
    small = options.small or device.type == "cpu"
    print(reason)
    if device.type == "cpu":
        print("no GPU: a smoke test on small tensors in the interpreter, which MEASURES NOTHING")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    figures: dict[str, Any] = {}
    if device.type == "cuda":
        figures["machine"] = facts(device, small)
    for name, part in (("quantizers", quantizers), ("gemms", gemms), ("correctness", check)):
        figures[name] = part(small, device)
        if device.type == "cuda":  # after each, as the machine may be lent for minutes
            write_whole(options.output, json.dumps(figures, indent=1) + "\n")
    if device.type == "cuda":
        print(f"written to {options.output}")
    different = sum(cell["different"] > 0 for cell in figures["correctness"])
    inexact = sum(not (cell["fused_exact"] and cell["library_exact"]) for cell in figures["gemms"])
    if different or inexact:
        sys.exit(f"{different} cases of the quantizers and {inexact} products are wrong")


def facts(device: torch.device, small: bool) -> dict[str, Any]:
    """The GPU, the versions and the commit."""
    import triton

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "commit": commit(),
        "small": small,
    }


if __name__ == "__main__":
    main()
