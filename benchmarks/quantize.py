"""Time quantize-and-decode of a 4096 x 1024 activation on one CPU thread, beside every peer that is installed.

``python benchmarks/quantize.py --output benchmarks/results/quantize`` writes JSON and prints a table. Everything runs
in one process, and each figure is the least of several repeats. A peer that is not installed is listed as such;
``PYTHONPATH`` may name a folder that peers were installed in (``pip install --target``).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Results
from torch import Tensor

from monai_fp4.quantization.numerics import plain_torch
from monai_fp4.quantization.tensor import fake_quantize

OPTIONS: dict[str, dict[str, bool]] = {
    "nearest": {},
    "2D": {"two_d": True},
    "SR": {"stochastic": True},
    "RHT": {"rht": True},
    "RHT + SR": {"rht": True, "stochastic": True},
}


def least(function: Callable[[], object], repeats: int, budget: float) -> float:
    """The least of several times in seconds of processor time, after one call to warm up.

    Processor time, since on a busy machine the clock also counts what others do, and more so for a peer that is slow
    and so repeated less: at a load of 4 the clock once showed nine times what a peer had used.

    Args:
        function: what to time; it computes in one thread.
        repeats: how many times at most, and at least three.
        budget: stop after so many seconds of processor time.
    """
    function()
    best, begin = float("inf"), time.process_time()
    for repeat in range(max(3, repeats)):
        start = time.process_time()
        function()
        now = time.process_time()
        best = min(best, now - start)
        if repeat >= 2 and now - begin > budget:
            break
    return best


def te_reference(x: Tensor) -> Callable[[], object]:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    te_oracle = importlib.import_module("te_oracle")
    te_oracle.reference()
    quantizer = te_oracle.reference_quantizer(columnwise=False)

    def run() -> Tensor:
        result = quantizer.quantize(x)
        codes = te_oracle.reference().cast_from_fp4x2(result.data, torch.float32)
        return codes * ((result.scale.float() * result.global_amax_row) * (1 / 2688)).repeat_interleave(16, -1)

    return run


def torchao(x: Tensor) -> Callable[[], object]:
    module = importlib.import_module("torchao.prototype.mx_formats.nvfp4_tensor")

    def run() -> Any:
        scale = module.per_tensor_amax_to_scale(x.abs().max())
        return module.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale).dequantize(torch.float32)

    return run


def model_optimizer(x: Tensor) -> Callable[[], object]:
    module = importlib.import_module("modelopt.torch.quantization.qtensor.nvfp4_tensor")

    def run() -> Any:
        packed, scales, double = module.NVFP4QTensor.quantize(x, 16, try_tensorrt=False)
        return packed.dequantize(scale=scales, double_scale=double, block_sizes={-1: 16})

    return run


def fouroversix(x: Tensor) -> Callable[[], object]:
    module = importlib.import_module("fouroversix")
    return lambda: module.quantize_to_fp4(x).dequantize()


def compressed_tensors(x: Tensor) -> Callable[[], object]:
    quantization = importlib.import_module("compressed_tensors.quantization")
    forward = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
    arguments = quantization.QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True
    )

    def run() -> Any:
        amax = x.abs().max()
        overall = 2688.0 / amax
        scales = (x.unflatten(-1, (-1, 16)).abs().amax(-1) / 6 * overall).to(torch.float8_e4m3fn).float()
        return forward.fake_quantize(x, scales, torch.zeros_like(scales), arguments, global_scale=overall.reshape(1))

    return run


PEERS: dict[str, tuple[str, Callable[[Tensor], Callable[[], object]]]] = {
    "Transformer Engine, reference": ("transformer-engine", te_reference),
    "torchao": ("torchao", torchao),
    "Model-Optimizer": ("nvidia-modelopt", model_optimizer),
    "fouroversix": ("fouroversix", fouroversix),
    "compressed-tensors": ("compressed-tensors", compressed_tensors),
}


def ours(x: Tensor) -> dict[str, Callable[[], object]]:
    """Every variant of this package, as functions without arguments."""
    cases: dict[str, Callable[[], object]] = {}
    for layout, view in (("rows", x), ("columns", x.t())):
        for name, options in OPTIONS.items():
            cases[f"ours, {layout}, {name}"] = lambda view=view, options=options: fake_quantize(view, **options)

    def in_plain_torch(**options: bool) -> Callable[[], object]:
        def run() -> Tensor:
            with plain_torch():
                return fake_quantize(x, **options)

        return run

    for name, options in OPTIONS.items():
        cases[f"plain torch, rows, {name}"] = in_plain_torch(**options)
    return cases


def compiled(x: Tensor) -> Callable[[], object]:
    function = torch.compile(fake_quantize, dynamic=False)
    return lambda: function(x)


def magic(x: Tensor) -> Callable[[], object]:
    """The best version known before this package: rounding by adding and subtracting 1.5 * 2^23 steps, compiled."""

    def function(x: Tensor) -> Tensor:
        amax = x.abs().amax()
        blocks = x.unflatten(-1, (-1, 16))
        scales = (blocks.abs().amax(-1, keepdim=True) * (1 / 6) * (2688 / amax)).to(torch.float8_e4m3fn).float()
        factors = scales * (amax * (1 / 2688))
        values = torch.where(factors > 0, blocks / factors, 0).clamp(-6, 6)
        magnitude = values.abs()
        step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
        shift = 12582912.0 * step
        return (((values + shift) - shift) * factors).flatten(-2)

    compiled_function = torch.compile(function, dynamic=False)
    return lambda: compiled_function(x)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for the repeats of one case")
    parser.add_argument("--only_ours", action="store_true", help="leave out the peers, which take seconds to import")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantize.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(arguments.rows, arguments.columns, generator=torch.Generator().manual_seed(0))
    size = x.nbytes
    protocol = {
        "shape": list(x.shape),
        "dtype": "float32",
        "threads": 1,
        "statistic": "least processor time of the repeats",
    }
    output = Results(arguments.output, "cpu", protocol, [package for package, _ in PEERS.values()])
    results: dict[str, dict[str, Any]] = {}

    def record(name: str, make: Callable[[], Callable[[], object]], package: str = "") -> None:
        entry: dict[str, Any] = {}
        try:
            if package:
                entry["version"] = importlib.metadata.version(package)
            seconds = least(make(), arguments.repeats, arguments.budget)
            # Bytes read and written, without what the second look at the tensor reads.
            entry |= {"ms": seconds * 1e3, "gb_per_s": 2 * size / seconds / 1e9}
        except importlib.metadata.PackageNotFoundError:
            entry["absent"] = "not installed"
        except Exception as error:  # a peer that cannot do this here is reported like one that is absent
            entry["absent"] = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
        results[name] = entry

    record("x.clone()", lambda: x.clone)
    for name, function in ours(x).items():
        record(name, lambda function=function: function)
    if not arguments.only_ours:
        record("torch.compile of plain torch", lambda: compiled(x))
        record("torch.compile, magic numbers", lambda: magic(x))
        for name, (package, make) in PEERS.items():
            record(name, lambda make=make: make(x), package)
    clone = results["x.clone()"]["ms"]
    for name, entry in results.items():
        if "ms" in entry:
            entry["times_clone"] = entry["ms"] / clone
            print(f"{name:34} {entry['ms']:9.2f} ms {entry['gb_per_s']:7.2f} GB/s {entry['times_clone']:7.2f} x clone")
        else:
            print(f"{name:34} {entry['absent']}")
    output.write({"results": results})


if __name__ == "__main__":
    main()
