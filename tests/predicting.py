"""Short ways to predict in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from tiny_runs import BUNDLES


def prediction(run: Any, source: Path, output_dir: Path, **changes: Any) -> ConfigWorkflow:
    options = {"run_dir": str(run), "input": str(source), "output_dir": str(output_dir), "device": "cpu"} | changes
    return ConfigWorkflow(
        config_file=str(BUNDLES / "inference.json"), workflow_type="infer", logging_file=False, **options
    )


def predict(run: Any, source: Path, output_dir: Path, **changes: Any) -> Path:
    flow = prediction(run, source, output_dir, **changes)
    flow.initialize()
    flow.run()
    return output_dir


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
