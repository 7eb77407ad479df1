"""Starts te_linear_oracle.py, in a process of its own, on a set of cases."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

needs_oracle = pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is None or importlib.util.find_spec("pydantic") is None,
    reason="the oracle needs: pip install --no-deps transformer-engine==2.20.2, and pydantic",
)


def run_oracle(cases: dict[str, dict[str, Any]], folder: Path) -> dict[str, dict[str, Tensor]]:
    """Run all cases in one process; one result for each name."""
    torch.save(list(cases.values()), folder / "cases.pt")
    program = Path(__file__).with_name("te_linear_oracle.py")
    command = [sys.executable, str(program), str(folder / "cases.pt"), str(folder / "results.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, torch.load(folder / "results.pt", weights_only=True), strict=True))
