"""What ``monai-fp4 doctor`` says, on this machine and on made-up ones."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from monai_fp4.doctor import GPU, diagnose, render


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
    assert 'yes: backend "auto" takes it' in printed
    for reason in statuses["transformer_engine"].reasons:
        assert reason in printed


def test_it_is_json() -> None:
    diagnosis = diagnose("cpu")
    assert json.loads(json.dumps(diagnosis.to_dict()))["backends"][-1]["name"] == "emulated"


def test_it_names_a_gpu_and_why_it_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    h100 = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: h100)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *args: (9, 0))
    diagnosis = diagnose()
    assert diagnosis.device == "cuda"
    assert diagnosis.machine.gpus == (GPU("NVIDIA H100", "9.0", 80.0),)
    printed = text(diagnosis)
    assert "NVIDIA H100, compute capability 9.0, 80 GiB" in printed
    assert "needs 10.0 or 10.3" in printed


def test_what_is_missing_is_printed_too() -> None:
    diagnosis = diagnose("cpu")
    machine = dataclasses.replace(
        diagnosis.machine, memory_gib=0.0, gpus=(), cuda="", versions={"monai": "not installed"}
    )
    printed = text(dataclasses.replace(diagnosis, machine=machine))
    assert "none that PyTorch sees" in printed
    assert "not installed" in printed
    assert "unknown" in printed
