"""The test patients are evaluated once, with the weights and at the threshold that validation chose."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_fp4.bundle import RunFolder
from monai_fp4.bundle.tensor_files import save_tensors
from monai_fp4.handlers import AUPRC, HeldOutTest


@pytest.mark.parametrize("rank", [0, 1])
def test_chosen_weights_and_threshold(tmp_path: Path, rank: int) -> None:
    folder = RunFolder(tmp_path)
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.25)  # those of the best epoch
    save_tensors(folder.model_path, network.state_dict())
    folder.write_json("metrics.json", {"best_epoch": 3, "threshold": 0.2})
    session: Any = SimpleNamespace(run_folder=folder, rank=rank, wait=lambda: None, device=torch.device("cpu"))
    label = torch.tensor([[[[1, 0, 0, 1]]]])

    def evaluate(_engine: Engine, patient: str) -> list[dict[str, Any]]:
        scores = network.weight.detach() * torch.tensor([[[[1.0, 0.9, 0.1, 0.5]]]])
        return [{"pred": scores, "label": label, "patient": patient, "loss": 0.5}]

    evaluator = Engine(evaluate)
    AUPRC().attach(evaluator, "auprc")
    evaluator.run = lambda: Engine.run(evaluator, ["a"])  # type: ignore[method-assign]
    trainer = Engine(lambda _engine, _batch: None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: nn.init.constant_(network.weight, 0.9))  # the last ones
    HeldOutTest(session, network, evaluator).attach(trainer)  # type: ignore[arg-type]
    trainer.run([0], max_epochs=1)
    assert network.weight.item() == 0.25
    assert (tmp_path / "test.json").exists() == (rank == 0)
    if rank == 0:
        found = json.loads((tmp_path / "test.json").read_text())
        assert (found["weights_of_epoch"], found["patients"], found["threshold"]) == (3, 1, 0.2)
        # Scores 0.25, 0.225, 0.025 and 0.125: two reach the threshold, one of them tumour.
        assert (found["recall"], found["precision"], found["loss"]) == (0.5, 0.5, 0.5) and "val_loss" not in found
