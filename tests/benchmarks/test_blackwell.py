"""`benchmarks/on_blackwell.py`, rehearsed on the CPU with TE's reference quantizer in the place of its kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from te_run import needs_oracle

ROOT = Path(__file__).parents[2]


def run(*command: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@needs_oracle
def test_the_rehearsal_compares_every_layer_and_finds_nothing(tmp_path: Path) -> None:
    output = tmp_path / "on_blackwell.json"
    script = ("benchmarks/on_blackwell.py", "--device", "cpu", "--quick", "--output", str(output))
    status, said = run("tests/te_linear_oracle.py", "--run", *script)
    assert status == 0, said
    assert "verdict: Transformer Engine computes the emulation's numbers" in said
    assert "a rehearsal, which says nothing about a GPU" in said
    figures: dict[str, Any] = json.loads(output.read_text())
    assert figures["wrong"] == []
    assert set(figures["habits"].values()) <= {"", "not run: it needs two GPUs"}
    for comparisons in figures["comparisons"].values():
        assert {each["recipe"] for each in comparisons} == {"full", "rht", "2d", "sr_rht_2d"}
        assert all(each["distance"] <= each["allowed"] for each in comparisons)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_transformer_engine_the_verdict_is_no(device: str) -> None:
    status, said = run("benchmarks/on_blackwell.py", "--device", device, "--quick")
    assert status == (1 if device == "cpu" else 2)
    assert "verdict:" in said
    assert ("is left to the emulation" if device == "cpu" else "PyTorch finds no CUDA device") in said
