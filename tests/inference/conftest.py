"""Two runs on volumes of one channel, for all tests of predictions."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import Dataset, train


@pytest.fixture(scope="session")
def volume_run(volumes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(volumes, tmp_path_factory.mktemp("runs") / "volumes", "unet_500k_sr", epochs=1)


@pytest.fixture(scope="session")
def other_run(volumes: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(volumes, tmp_path_factory.mktemp("runs") / "other", seed=1, image_size=[64, 64], epochs=1)
