"""The peer of the paper's epoch is the same network, and a peer that is another one is not measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_modules import imported

from monai_fp4 import build_network


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    with imported(("common", "ratios", "run", "paper_epoch")) as modules:
        yield modules


def test_the_peer_is_our_network(scripts: dict[str, ModuleType]) -> None:
    ours = build_network("paper_swin", "500k", image_size=(128, 128), in_channels=3).double()
    images = torch.randn(2, 3, 128, 128, dtype=torch.float64)
    plain = scripts["paper_epoch"].same_as(ours, "500k", images)
    assert torch.allclose(plain(images), ours(images), rtol=0, atol=1e-12)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in ours.parameters())


def test_another_network_is_not_measured(scripts: dict[str, ModuleType]) -> None:
    ours = build_network("paper_swin", "500k", image_size=(128, 128), in_channels=3)
    ours.blocks[1].shift = 0
    ours.blocks[1].mask = None
    with pytest.raises(SystemExit, match="differ from ours"):
        scripts["paper_epoch"].same_as(ours, "500k", torch.randn(1, 3, 128, 128))


def test_a_smoke_run_writes_every_contestant(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    assert scripts["run"].main(["--quick", "--parts", "paper_epoch", "--output", str(tmp_path)]) == 0
    cells = json.loads((tmp_path / "paper_epoch.json").read_text())["cells"]
    assert [cell["beside"] for cell in cells] == [None, "plain torch, bare loop, bf16", "bf16", "bf16"]
    assert all(cell["ratio"] > 0 for cell in cells[1:])
