"""A process that does the same over and over, as a notebook or a service does, is to hold no more each time."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

import torch

import monai_fp4
from monai_fp4 import atomic
from monai_fp4.quantization import streams

BOUNDED = {
    "_class": "the names of a table in the module",
    "_capable": "the GPUs of a machine",
    "self_test": "the devices of a machine",
}
"""Functions whose answers are all kept, and what they can be asked for."""


def _keeps_all(decorator: ast.expr) -> bool:
    name = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator).rpartition(".")[2]
    sizes = (
        [ast.unparse(a) for a in (*decorator.args, *(k.value for k in decorator.keywords))]
        if isinstance(decorator, ast.Call)
        else []
    )
    return name == "cache" or (name == "lru_cache" and "None" in sizes)


def test_no_cache_is_without_a_bound() -> None:
    found = set()
    for path in Path(monai_fp4.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(map(_keeps_all, node.decorator_list)):
                takes = node.args.args or node.args.kwonlyargs or node.args.vararg
                found |= {node.name} if takes else set()
    assert found == set(BOUNDED)


def test_folders_that_were_written_are_not_all_remembered(tmp_path: Path) -> None:
    bound = atomic._tidy.cache_info().maxsize
    assert bound is not None and bound < 10_000
    (tmp_path / ".left.1.monai_fp4.tmp").touch()
    for name in ("a", "b"):
        atomic.write_atomically(tmp_path / name, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_streams_of_models_that_are_gone_are_forgotten() -> None:
    for stream in range(50, 80):
        monai_fp4.convert(torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)), "sr", stream=stream)
        gc.collect()
    assert len([stream for stream in streams._holders if stream >= 50]) <= 1
