"""Is what a GPU computes right? The device and its software, kernels, layers and whole training steps, the tests.

    python benchmarks/gpu_checks.py environment --output environment.json
    python benchmarks/gpu_checks.py correctness --output correctness.json
    python benchmarks/gpu_checks.py tests --output tests.json --files tests/quantization/kernels/test_triton.py

**Correctness** compares the fast path with plain torch on the same device. Quantized values must have the same bits,
and so must convolutions, which both paths leave to cuDNN. The products of linear layers are summed in another order by
each path, so there a difference of a rounding is allowed (`CLOSE`, relative, in the norm), and losses of a training
step may differ by as much as that makes (`CLOSE_LOSS`). A batch that is augmented on the device may differ by what the
interpolation rounds (`CLOSE_SHARE`, of a label from 0 to 1). Two runs of the same step must agree in every bit, with
torch's deterministic algorithms. The exit status is 1 if anything is wrong, and the JSON names it.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA is used: cuBLAS then repeats itself

from common import ROOT, default_device, machine, write_whole

from monai_fp4 import RECIPES, build_network, convert
from monai_fp4.losses import TverskyBCELoss
from monai_fp4.networks import channels_last, to_channels_last
from monai_fp4.quantization.kernels import triton_quantize, triton_support
from monai_fp4.quantization.kernels.dispatch import plain_torch

CLOSE = 2e-3
CLOSE_LOSS = 1e-2
CLOSE_SHARE = 1e-3
STEPS = 3


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """The machine as the results files describe it, the driver, and what doctor says of backends and fast paths."""
    from monai_fp4.doctor import diagnose

    found: dict[str, Any] = {}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
        found["nvidia_smi"] = (done.stdout or done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        found["nvidia_smi"] = str(error)
    found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    diagnosis = diagnose()
    found["backends"] = {each.name: [each.available, each.selected, *each.reasons] for each in diagnosis.backends}
    found["fast_paths"] = {each.name: [each.available, each.reason] for each in diagnosis.fast_paths}
    found["machine"] = machine(options.device)  # now that doctor has asked for the compiled kernels
    found["first_kernel_seconds"], found["wrong"] = first_kernel(options.device)
    print(json.dumps(found, indent=1))
    return found


def first_kernel(device: str) -> tuple[float | None, list[str]]:
    """Seconds of the first kernels, for which Triton needs a C compiler; and what is wrong there."""
    usable, reason = triton_support.available(device)
    if not usable:
        return None, [f"the Triton kernels cannot be used: {reason}"] if device.startswith("cuda") else []
    begin = time.perf_counter()
    try:
        triton_quantize.quantize(torch.ones(16, 32, device=device)).values.sum().item()
    except Exception as error:  # Triton, its compiler and the driver have no common class of errors
        return None, [f"a Triton kernel failed, {type(error).__name__}: {error}"]
    return round(time.perf_counter() - begin, 2), []


def correctness(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Kernels, layers, steps and the data set's cache, one after another; what is found so far after each."""
    device = torch.device(options.device)
    found: dict[str, Any] = {"machine": machine(options.device), "wrong": []}
    for name, part in (("kernels", kernels), ("layers", layers), ("steps", steps), ("cache", cache)):
        try:
            found[name] = part(device, options.quick, found["wrong"])
        except Exception as error:  # the other parts are worth having
            found["wrong"].append(f"{name}: {type(error).__name__}: {error}")
        yield found
    found["triton_failure"] = triton_support.failure()
    usable, reason = triton_support.available(device)
    if device.type == "cuda" and not usable:
        found["wrong"].append(f"some or all of this was computed in plain torch: {reason}")
    yield found


def kernels(device: torch.device, quick: bool, wrong: list[str]) -> dict[str, Any]:
    """Every option of the quantizers over layouts and dtypes, bit for bit."""
    usable, reason = triton_support.available(device)
    if not usable:  # on a GPU that is wrong, and `correctness` says so
        print(f"kernels: not checked, {reason}")
        return {"cases": 0, "not_checked": reason}
    if device.type == "cuda":
        compile_together(["--small"] if quick else [])
    from cuda_kernels import check

    cells = check(quick or device.type == "cpu", device)
    wrong += [f"kernels: {c['input']}, {c['option']}: {c['different']} differ" for c in cells if c["different"]]
    return {"cases": len(cells), "different": [cell for cell in cells if cell["different"]]}


def compile_together(options: Sequence[str]) -> None:
    """Let several processes compile the kernels of the check, which one would do for minutes, into Triton's cache.

    What fails in them fails again in this process, which says so.
    """
    count = min(8, os.cpu_count() or 1)
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda_kernels.py"), *options]
    processes = [
        subprocess.Popen(
            [*command, "--part", str(part), str(count)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for part in range(count)
    ]
    for process in processes:
        process.wait()


def layers(device: torch.device, quick: bool, wrong: list[str]) -> list[dict[str, Any]]:
    """Output and gradients of single layers, fast beside plain, for every recipe that quantizes."""
    cases: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "linear": (nn.Linear(192, 96), (2, 200, 192)),
        "convolution": (nn.Conv2d(32, 48, 3, padding=1), (2, 32, 32, 32)),
        "strided convolution": (nn.Conv2d(32, 48, 3, stride=2, padding=1), (2, 32, 30, 30)),
        "transposed convolution": (nn.ConvTranspose2d(32, 16, 2, stride=2), (2, 32, 16, 16)),
    }
    cells = []
    names = ["sr_rht_2d"] if quick else [name for name, recipe in RECIPES.items() if recipe.quantizes]
    for layer, (module, shape) in cases.items():
        for name in names:
            results = [_layer(module, shape, name, device, fast) for fast in (True, True, False)]
            repeated = all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
            apart = [_relative(a, b) for a, b in zip(results[0], results[2], strict=True)]
            equal = [bool(torch.equal(a, b)) for a, b in zip(results[0], results[2], strict=True)]
            cells.append(
                {"layer": layer, "recipe": name, "repeated": repeated, "bit_equal": equal, "relative_difference": apart}
            )
            if not (repeated and all(each <= CLOSE for each in apart)):  # a NaN is not
                wrong.append(f"{layer}, {name}: repeated {repeated}, relative differences {apart}")
    print(f"layers: {len(cells)}, of which {sum(all(c['bit_equal']) for c in cells)} bit-equal to plain torch")
    return cells


def _layer(module: nn.Module, shape: tuple[int, ...], recipe: str, device: torch.device, fast: bool) -> list[Tensor]:
    torch.manual_seed(0)
    layer, _ = convert(nn.Sequential(nn.Identity(), copy.deepcopy(module)).to(device), recipe, skip=())
    x = torch.randn(shape, device=device).requires_grad_()
    with nullcontext() if fast else plain_torch(), torch.autocast(device.type, dtype=torch.bfloat16):
        y = layer(x)
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape, device=device).to(y.dtype))
    weight = next(layer.parameters())
    assert x.grad is not None and weight.grad is not None
    return [y.detach(), x.grad, weight.grad]


def _relative(a: Tensor, b: Tensor) -> float:
    apart, size = (a.float() - b.float()).norm(), b.float().norm()
    return float(apart / size) if size > 0 else float(apart)


def steps(device: torch.device, quick: bool, wrong: list[str]) -> list[dict[str, Any]]:
    """Losses of a few training steps under each recipe: the fast path twice, and plain torch."""
    cells = []
    archs = ("unet",) if quick else ("unet", "swin", "vit")
    names = ("sr_rht_2d",) if quick else tuple(RECIPES)
    size = (32, 32) if quick else (128, 128)
    for arch in archs:
        for name in names:
            fast, again, slow = (_losses(arch, name, device, size, how) for how in (True, True, False))
            apart = _largest(abs(a - b) / abs(b) for a, b in zip(fast, slow, strict=True))
            cell = {"arch": arch, "recipe": name, "fast": fast, "plain": slow, "repeated": fast == again}
            cells.append(cell | {"bit_equal": fast == slow, "relative_difference": apart})
            print(f"{arch} {name}: {fast}, plain {slow}, repeated {fast == again}", flush=True)
            if fast != again or not apart <= CLOSE_LOSS:
                wrong.append(f"steps of {arch}, {name}: repeated {fast == again}, relative difference {apart:.1e}")
    return cells


def _largest(numbers: Iterable[float]) -> float:
    """The largest, and NaN where there is one."""
    return float(torch.tensor(list(numbers), dtype=torch.float64).max())


def _losses(arch: str, recipe: str, device: torch.device, size: tuple[int, int], fast: bool) -> list[float]:
    torch.manual_seed(0)
    images = channels_last(torch.rand(4, 3, *size)).to(device)
    labels = (torch.rand(4, 1, *size) > 0.9).float().to(device)
    network = build_network(arch, "500k", in_channels=3, image_size=size)
    network, _ = convert(network.to(device), recipe)
    network = to_channels_last(network, size).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss_function, losses = TverskyBCELoss(), []
    torch.manual_seed(2)
    with nullcontext() if fast else plain_torch():
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = network(images)
            loss = loss_function(logits.float(), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def cache(device: torch.device, quick: bool, wrong: list[str]) -> dict[str, Any]:
    """Whether a training set lies on the GPU, and gives there what it gives on the host."""
    from monai_fp4.bundle import augmentation
    from monai_fp4.data import SliceDataset, load_datalist, prepare_data

    folder = ROOT / "data" / "phantom"
    prepare_data("phantom", folder)
    data = load_datalist("phantom", folder, 0, "train")[:2]
    here, there = (
        SliceDataset(data, (64, 64), augmentation(), progress=False, device=where) for where in (device, "cpu")
    )
    indices = list(range(len(here)))  # an augmentation that is not drawn for one slice is drawn for another
    on_device, on_host = here.__getitems__(indices), there.__getitems__(indices)
    pairs = list(zip(on_device, on_host, strict=True))
    result = {
        "device": str(on_device[0]["image"].device),
        "slices": len(pairs),
        "with_a_label": sum(bool(item["label"].any()) for item in on_host),
        "relative_difference": _largest(_relative(a["image"].cpu(), b["image"]) for a, b in pairs),
        "difference_of_labels": _largest(float((a["label"].cpu() - b["label"]).abs().max()) for a, b in pairs),
    }
    close = result["relative_difference"] <= CLOSE and result["difference_of_labels"] <= CLOSE_SHARE
    if not (close and result["with_a_label"] and torch.device(result["device"]).type == device.type):
        wrong.append(f"cache: {result}")
    return result


def tests(options: argparse.Namespace) -> dict[str, Any]:
    """Run test files and count; those that compile kernels do so in several processes where pytest can."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return {"machine": machine(options.device), "wrong": [f"{' and '.join(missing)}: not installed here"]}
    report = options.output.with_suffix(".xml")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options.files]
    if importlib.util.find_spec("xdist") and options.device.startswith("cuda"):
        command += ["-n", str(min(8, os.cpu_count() or 1))]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    found: dict[str, Any] = {
        "machine": machine(options.device),
        "wrong": [] if code == 0 else [f"pytest: status {code}"],
    }
    if report.exists():
        cases = list(ET.parse(report).getroot().iter("testcase"))
        for kind in ("failure", "error", "skipped"):
            found[kind] = [f"{c.get('classname')}::{c.get('name')}" for c in cases if c.find(kind) is not None]
        found["passed"] = len(cases) - sum(len(found[kind]) for kind in ("failure", "error", "skipped"))
        if not found["passed"]:
            found["wrong"].append("no test passed: what was skipped says nothing about this machine")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print and write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["environment", "correctness", "tests"])
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--quick", action="store_true", help="one recipe, small inputs")
    parser.add_argument("--files", nargs="*", default=[], help="of the part tests")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    warnings.simplefilter("default")
    if options.part == "correctness" and options.device.startswith("cuda"):
        # What torch itself adds up in no order (attention, upsampling) would hide whether our part repeats itself. This
        # also fills new memory with NaN, so that whatever a kernel leaves out is seen.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    found: dict[str, Any] = {}
    if options.part == "correctness":
        for found in correctness(options):
            write_whole(options.output, json.dumps(found, indent=1) + "\n")
    else:
        found = environment(options) if options.part == "environment" else tests(options)
        write_whole(options.output, json.dumps(found, indent=1) + "\n")
    for sentence in found["wrong"]:
        print(f"WRONG: {sentence}")
    print("nothing is wrong" if not found["wrong"] else f"{len(found['wrong'])} things are wrong")
    return int(bool(found["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
