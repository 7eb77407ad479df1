"""torchrun: two processes on one machine, over gloo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import BUNDLES, TINY, command, item, lgg_dataset, metrics, workflow

from monai_fp4.engines import unwrap_ddp

pytestmark = pytest.mark.slow


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    # Three patients to validate on: one rank has two of them.
    data = lgg_dataset(tmp_path / "data", 5, folds=2)
    options = TINY | data.options | {"epochs": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    launcher = ("torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517", "-m", "monai.bundle")
    run = ("run", "--config_file", str(BUNDLES / "unet_500k_sr.json"), "--output_dir", "run", *words)
    ended = command(*run, cwd=tmp_path, launcher=launcher)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Finished:") == 1 and ended.stdout.count("swapped") == 1

    folder = tmp_path / "run"
    names = [path.name for path in folder.iterdir()]
    assert len(names) == 11 and sum("tfevents" in name for name in names) == 1
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    written = metrics(folder)
    assert written["finished"] is True

    # The metrics of all ranks together are those of one process with the same weights.
    flow = workflow(data, tmp_path / "one", "unet_500k_sr", epochs=1)
    flow.initialize()
    unwrap_ddp(item(flow, "network")).load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    evaluator = item(flow, "validate#evaluator")
    evaluator.run(1)
    for name in ("auprc", "auprc_per_patient", "threshold", "dice", "recall", "precision", "val_loss"):
        assert written[name] == pytest.approx(evaluator.state.metrics[name], abs=1e-6), name
