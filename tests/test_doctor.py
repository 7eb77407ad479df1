"""What ``monai-fp4 doctor`` says, on this machine and on simulated ones."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from monai_fp4.doctor import GPU, diagnose, render
from monai_fp4.quantization.backends import self_test, transformer_engine
from monai_fp4.quantization.backends.self_test import Verdict
from monai_fp4.quantization.kernels import cpu_quantize, triton_support


def text(diagnosis: object) -> str:
    stream = io.StringIO()
    render(diagnosis, Console(file=stream, width=300))  # type: ignore[arg-type]
    return stream.getvalue()


def test_it_knows_this_machine() -> None:
    machine = diagnose().machine
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert machine.versions["numpy"] != "not installed"
    assert 0.1 < machine.memory_gib < 1e5
    assert machine.cpu not in ("", "unknown")


def test_on_the_cpu_the_emulation_runs_and_the_rest_says_why_not() -> None:
    diagnosis = diagnose("cpu")
    statuses = {status.name: status for status in diagnosis.backends}
    assert statuses["emulated"].selected
    assert statuses["emulated"].reasons == ()
    assert not statuses["transformer_engine"].available
    printed = text(diagnosis)
    assert 'yes: "auto"' in printed
    for reason in statuses["transformer_engine"].reasons:
        assert reason in printed


def test_it_is_json() -> None:
    diagnosis = diagnose("cpu")
    assert json.loads(json.dumps(diagnosis.to_dict()))["backends"][-1]["name"] == "emulated"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with one GPU, an H100 unless a test changes it."""
    state = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: state)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: (state.major, state.minor))
    monkeypatch.setattr(triton_support, "available", lambda device: (True, f"Triton on {state.name}"))
    return state


def test_it_names_a_gpu_and_why_it_does_not_suffice(gpu: SimpleNamespace) -> None:
    diagnosis = diagnose()
    assert diagnosis.device == "cuda"
    assert diagnosis.machine.gpus == (GPU("NVIDIA H100", "9.0", 80.0),)
    printed = text(diagnosis)
    assert "NVIDIA H100, compute capability 9.0, 80 GiB" in printed
    assert "needs 10.0 or later" in printed


@pytest.mark.parametrize(
    ("name", "capability", "missing", "instead"),
    [
        ("NVIDIA A100", (8, 0), "8.0 has no FP4 tensor cores", "by BF16 tensor cores"),
        ("NVIDIA H100", (9, 0), "9.0 has no FP4 tensor cores", "by BF16 tensor cores"),
        ("RTX 5090", (12, 0), "Transformer Engine", "by BF16 tensor cores"),
        ("Tesla T4", (7, 5), "7.5 has no FP4 tensor cores", "by units without BF16 tensor cores (slow)"),
    ],
)
def test_on_each_gpu_it_says_what_is_missing_and_what_runs_instead(
    gpu: SimpleNamespace, name: str, capability: tuple[int, int], missing: str, instead: str
) -> None:
    gpu.name, (gpu.major, gpu.minor) = name, capability
    printed = text(diagnose())
    assert missing in printed
    assert "FP4 is emulated on cuda: FP4 values are made by Triton kernels, and multiplied" in printed
    assert instead in printed
    assert f"Triton on {name}" in printed


def test_on_blackwell_transformer_engine_runs(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.name, (gpu.major, gpu.minor) = "NVIDIA B200", (10, 0)
    monkeypatch.setattr(transformer_engine, "_version", lambda package: "2.20.2")
    monkeypatch.setattr(transformer_engine, "_import_faults", list)
    diagnosis = diagnose()
    assert [status.name for status in diagnosis.backends if status.selected] == ["transformer_engine"]
    assert "1x1 and patch convolutions run on FP4 tensor cores" in diagnosis.runs[0]
    assert "All other convolutions, and attention, are emulated" in diagnosis.runs[1]


@pytest.mark.parametrize("passed", [True, False])
def test_it_says_what_a_self_test_said(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, passed: bool) -> None:
    gpu.name, (gpu.major, gpu.minor) = "RTX 5090", (12, 0)
    monkeypatch.setattr(transformer_engine, "_version", lambda package: "2.20.2")
    monkeypatch.setattr(transformer_engine, "_import_faults", list)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(self_test, "self_test", lambda device: Verdict(passed, f"the self-test on {device} was run"))
    diagnosis = diagnose()
    assert [each.name for each in diagnosis.backends if each.selected] == [
        "transformer_engine" if passed else "emulated"
    ]
    assert text(diagnosis).count("the self-test on cuda:0 was run") == 1


def test_a_fast_path_that_is_missing_is_reported_with_its_reason(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_support, "available", lambda device: (False, "Triton is not installed"))
    printed = text(diagnose("cuda"))
    assert "Triton is not installed" in printed
    assert "FP4 values are made by plain torch (slower)" in printed


def test_without_a_compiler_it_says_so(tmp_path: Path) -> None:
    # In a process of its own: what became of a library is remembered for the life of a process.
    program = """
import io, warnings
warnings.simplefilter("error")
from rich.console import Console
from monai_fp4.doctor import diagnose, render
render(diagnose("cpu"), Console(file=(stream := io.StringIO()), width=300))
print(stream.getvalue())
"""
    environment = os.environ | {"CXX": "no-such-compiler", "MONAI_FP4_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the compiler that CXX names, 'no-such-compiler', is not found") == 1
    assert "FP4 values are made by plain torch (slower)" in done.stdout
    assert str(tmp_path) in done.stdout


def test_the_fast_paths_of_this_machine_are_those_that_run() -> None:
    diagnosis = diagnose("cpu")
    paths = {path.name: path for path in diagnosis.fast_paths}
    assert list(paths) == ["quantize", "gemm", "histogram", "triton"]
    assert paths["quantize"].available == cpu_quantize.available()
    assert not paths["triton"].available or "interpreter" in paths["triton"].reason
    assert ("compiled kernel" in diagnosis.runs[0]) == (paths["quantize"].available or paths["gemm"].available)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_each_reason_stands_once_and_is_pointed_at(width: int) -> None:
    diagnosis = diagnose("cpu")
    reasons = [reason for status in diagnosis.backends for reason in status.reasons]
    reasons += [path.reason for path in diagnosis.fast_paths if not path.available]
    assert len(set(reasons)) < len(reasons), "both backends of Transformer Engine lack the same"
    stream = io.StringIO()
    render(diagnosis, Console(file=stream, width=width))
    assert max(map(len, stream.getvalue().splitlines())) <= width
    printed = " ".join(text(diagnosis).split())
    for reason in reasons:
        number = re.search(rf"\((\d+)\) {re.escape(' '.join(reason.split()))}", printed)
        assert number is not None and printed.count(" ".join(reason.split())) == 1
        assert printed.count(f"({number[1]})") == 1 + reasons.count(reason)
    assert ".so" not in printed, "names of built files help nobody"


def test_what_is_missing_is_printed_too() -> None:
    diagnosis = diagnose("cpu")
    machine = dataclasses.replace(
        diagnosis.machine, memory_gib=0.0, gpus=(), cuda="", versions={"monai": "not installed"}
    )
    printed = text(dataclasses.replace(diagnosis, machine=machine))
    assert "none that PyTorch sees" in printed
    assert "Not installed  monai" in printed
    assert "unknown" in printed
