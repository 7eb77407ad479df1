"""The Triton kernels on this machine's GPU: are they right, and how near do they come to what the GPU can do?

    python benchmarks/cuda_kernels.py

Three parts. **Correctness**: results against plain torch on the same device, bit for bit, over shapes, layouts, dtypes
and options. **Quantizers**: time, and the bytes that have to move over that time as a share of what a copy of the same
tensor reaches; a tensor is read once for its maximum and once to be quantized, and both reads count (``share``), since
the second can seldom be spared; ``share_of_one_read`` counts one. **GEMMs**: our kernel with alpha in its epilogue,
and cuBLAS followed by a scaling kernel, beside a BF16 product of `torch.mm` that neither sums in FP32 at its output
nor scales. Tensors of the quantizers are larger than any L2 cache unless ``--small``; operands of the smaller GEMMs are
not, as in a training, where they were written a moment ago.

Times are the least of several repeats between CUDA events, each over several calls, and of the GPU alone: it is given
something else to do while the host launches them, so that it never waits for the next. ``host_ahead`` is false where
that did not succeed: such a time holds some of the host's, too. ``host_seconds`` is what a call takes the host, below
which a training cannot get. Without a GPU the script runs on small tensors in Triton's interpreter: that shows that it
runs, and **measures nothing**; there are no times in what it writes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from common import RESULTS, Results, default_device

from monai_fp4.quantization.formats.blocks import ScaledValues
from monai_fp4.quantization.kernels import torch_quantize
from monai_fp4.quantization.kernels.task import Task
from monai_fp4.quantization.kernels.triton_gemm import multiply_fused, multiply_library
from monai_fp4.quantization.kernels.triton_quantize import quantize, quantize_both
from monai_fp4.quantization.kernels.triton_support import available
from monai_fp4.quantization.numerics import gemm_alpha

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
GOAL = 0.7  # of a copy's bandwidth
CYCLES = 2.0e9  # a second, of a GPU; of a slower one a wait is longer than it need be
MOST_CALLS = 200  # of some four kernels each: the queue of launches holds about a thousand
_FAST = Task(dtype=torch.bfloat16, with_scales=False)


def different(found: ScaledValues, expected: ScaledValues) -> int:
    """How many numbers of two results differ; NaN equals NaN, and zeros have signs."""
    count = 0
    for one, other in ((found.values, expected.values), (found.scales, expected.scales), (found.amax, expected.amax)):
        if one.shape != other.shape:
            return max(one.numel(), other.numel())
        same = (one == other) & (one.signbit() == other.signbit())
        count += int((~(same | (one.isnan() & other.isnan()))).sum())
    return count


def inputs(small: bool, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the layouts that layers quantize."""
    tokens, features = (33, 40) if small else (5003, 776)
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        x = torch.randn(tokens, features, device=device)
        x *= torch.exp2(torch.randint(-8, 9, x.shape, device=device).float())
        yield f"{name} tokens", x.to(dtype)
        if small and dtype is not torch.bfloat16:
            continue  # the interpreter takes a second for a few of these
        yield f"{name} transposed", x.to(dtype).mT
        image = torch.randn(*((2, 24, 5, 6) if small else (4, 96, 60, 52)), device=device, dtype=dtype)
        yield f"{name} channels first", image.movedim(1, -1)
        yield f"{name} channels last", image.contiguous(memory_format=torch.channels_last).movedim(1, -1)
        shape, binades = (32, 64) if small else (4096, 1024), 10 if dtype is torch.float16 else 30
        spread = torch.randn(shape, device=device) * torch.exp2(torch.randint(-binades, binades, shape, device=device))
        yield f"{name} orders of magnitude", spread.to(dtype)
        spoiled = x.to(dtype, copy=True)
        spoiled[7, 9] = float("nan")
        yield f"{name} with NaN", spoiled
        yield f"{name} zeros", torch.zeros_like(spoiled)


def check(small: bool, device: torch.device, part: tuple[int, int] = (0, 1)) -> list[dict[str, Any]]:
    """Compare every option with plain torch, on every input or on those of one part of so many."""
    options: tuple[dict[str, Any], ...] = (
        {"dtype": torch.bfloat16},
        {"dtype": torch.float32, "key": 1 << 40},
        {"dtype": torch.bfloat16, "rht": True},
        {"dtype": torch.bfloat16, "rht": True, "key": -3},
        {"dtype": torch.bfloat16, "two_d": True},
        {"dtype": torch.bfloat16, "decoded": True},
    )
    cells = []
    for name, x in islice(inputs(small, device), part[0], None, part[1]):
        results = {str(o): different(quantize(x, Task(**o)), torch_quantize.quantize(x, Task(**o))) for o in options}
        row, column = quantize_both(x, Task(rht=True, key=5, dtype=torch.bfloat16), column_key=6)
        results["both, row-wise"] = different(row, torch_quantize.quantize(x, Task(key=5, dtype=torch.bfloat16)))
        results["both, column-wise"] = different(
            column, torch_quantize.quantize(x.mT, Task(rht=True, key=6, dtype=torch.bfloat16))
        )
        for option, count in results.items():
            cells.append({"input": name, "option": option, "different": count, "numbers": x.numel()})
            if count:
                print(f"DIFFERENT: {name}, {option}: {count} of {x.numel()} numbers", flush=True)
    wrong = sum(cell["different"] > 0 for cell in cells)
    print(f"correctness: {len(cells) - wrong} of {len(cells)} cases are bit-equal to plain torch")
    return cells


class Time(NamedTuple):
    """What a call takes; nothing of it is known in the interpreter."""

    seconds: float | None
    host_seconds: float | None = None
    host_ahead: bool | None = None

    def named(self, prefix: str = "") -> dict[str, Any]:
        """For a results file."""
        return {f"{prefix}{name}": value for name, value in self._asdict().items()}


def timed(call: Callable[[], Any], device: torch.device) -> Time:
    """The least time of a call: 7 repeats of enough calls for 20 ms, after two to compile and to warm up."""
    call()
    if device.type == "cpu":
        return Time(None)
    call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def run(calls: int, wait: float) -> Time:
        torch.cuda.synchronize()
        torch.cuda._sleep(int(wait * CYCLES))
        begin.record()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        host = time.perf_counter() - start
        end.record()
        ahead = not begin.query()  # all was launched before the GPU began with the first
        end.synchronize()
        return Time(float(begin.elapsed_time(end)) / 1e3 / calls, host / calls, ahead)

    first = run(3, 0.0)
    calls = max(1, min(MOST_CALLS, int(0.02 / max(first.seconds or 0.0, 1e-6))))
    wait = 1.5 * calls * (first.host_seconds or 0.0) + 1e-3
    times = [run(calls, wait) for _ in range(7)]
    return min([each for each in times if each.host_ahead] or times)


def quantizers(small: bool, device: torch.device) -> list[dict[str, Any]]:
    """Time each quantizer on BF16 and FP32 and set the bytes that it moves beside those of a copy."""
    cells = []
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn((32, 32) if small else (32768, 4096), device=device).to(dtype)
        out = torch.empty_like(x)
        copy = timed(partial(out.copy_, x), device).seconds
        copied = 2 * x.numel() * x.element_size()
        amax = x.abs().amax().float()
        row, column, both = partial(quantize, x), partial(quantize, x.mT), partial(quantize_both, x)
        rotated, stochastic = _FAST._replace(rht=True), _FAST._replace(rht=True, key=1)
        # Name, call, reads of the tensor and BF16 operands written.
        cases: tuple[tuple[str, Callable[[], Any], int, int], ...] = (
            ("row-wise", partial(row, _FAST), 2, 1),
            ("row-wise, amax known", partial(row, _FAST._replace(amax=amax)), 1, 1),
            ("row-wise, SR", partial(row, _FAST._replace(key=1)), 2, 1),
            ("row-wise, 16x16", partial(row, _FAST._replace(two_d=True)), 2, 1),
            ("column-wise", partial(column, _FAST), 2, 1),
            ("column-wise, RHT", partial(column, rotated), 2, 1),
            ("both", partial(both, _FAST), 2, 2),
            ("both, RHT", partial(both, rotated), 2, 2),
            ("both, RHT, SR", partial(both, stochastic, column_key=2), 2, 2),
            ("both, RHT, SR, amax known", partial(both, stochastic, column_key=2, amaxes=(amax, amax)), 1, 2),
        )
        for name, call, reads, writes in cases:
            found = timed(call, device)
            written = writes * 2 * x.numel()
            read = x.numel() * x.element_size()
            cell: dict[str, Any] = {"case": name, "input": str(dtype).removeprefix("torch."), "shape": list(x.shape)}
            cell |= found.named()
            cells.append(cell)
            if found.seconds is not None and copy is not None:
                rate, limit = (reads * read + written) / found.seconds, copied / copy
                cell |= {"bytes_per_second": rate, "copy_bytes_per_second": limit, "share": rate / limit}
                cell["share_of_one_read"] = (read + written) / found.seconds / limit
                verdict = "" if cell["share"] >= GOAL else f", below the goal of {GOAL:.0%}"
                verdict += "" if found.host_ahead else ", and the GPU waited for the host"
                print(
                    f"{cell['input']:9} {name:26} {found.seconds * 1e6:8.1f} us, {rate / limit:.0%} of a copy{verdict}"
                )
        part = x[:16384]
        plain_torch = timed(partial(torch_quantize.quantize, part, Task(dtype=torch.bfloat16)), device)
        cells.append(
            {
                "case": "plain torch, row-wise",
                "input": str(dtype).removeprefix("torch."),
                "shape": list(part.shape),
                **plain_torch.named(),
                "seconds_here": timed(partial(quantize, part, _FAST), device).seconds,
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
            cell |= timed(partial(product, a, b, torch.bfloat16), device).named(f"{name}_")
        cell |= timed(partial(torch.mm, a.values, b.values.mT), device).named("torch_mm_")
        if device.type == "cuda":
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
    parser.add_argument("--output", type=Path, help="where the figures go, as JSON (default: benchmarks/results/cuda)")
    parser.add_argument(
        "--part", type=int, nargs=2, metavar=("I", "N"), help="only check part I of N: several at once compile sooner"
    )
    options = parser.parse_args()
    device = torch.device(default_device())
    usable, reason = available(device)
    if not usable:
        sys.exit(f"nothing to measure: {reason}")
    small = options.small or device.type == "cpu"
    print(reason)
    output = options.output
    if device.type == "cpu":
        print("no GPU: a smoke test on small tensors in the interpreter, which MEASURES NOTHING")
    elif output is None:
        output = RESULTS / "cuda" / "cuda_kernels.json"
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.part:
        check(small, device, tuple(options.part))
        return
    results = Results(output, device.type, {"small": small, "device": device.type}) if output else None
    figures: dict[str, Any] = {"gpu": facts(device)}
    for name, part in (("quantizers", quantizers), ("gemms", gemms), ("correctness", check)):
        if device.type == "cpu" and part is check:  # `gpu_checks correctness` has all of it; here, that it runs
            figures[name] = check(small, device, (0, 9))
        else:
            figures[name] = part(small, device)
        if results:  # after each, as the machine may be lent for minutes
            results.write(figures)
    if results:
        print(f"written to {output}")
    different = sum(cell["different"] > 0 for cell in figures["correctness"])
    inexact = sum(not (cell["fused_exact"] and cell["library_exact"]) for cell in figures["gemms"])
    if different or inexact:
        sys.exit(f"{different} cases of the quantizers and {inexact} products are wrong")


def facts(device: torch.device) -> dict[str, Any] | None:
    """What the figures depend on, of the GPU."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2_cache": properties.L2_cache_size,
    }


if __name__ == "__main__":
    main()
