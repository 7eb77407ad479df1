"""The synthetic data sets, written once for all of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_fp4.data import prepare_data


@pytest.fixture(scope="package")
def phantom(tmp_path_factory) -> Path:
    return prepare_data("phantom", tmp_path_factory.mktemp("data") / "new" / "phantom")


@pytest.fixture(scope="package")
def nodules(tmp_path_factory) -> Path:
    return prepare_data("nodules", tmp_path_factory.mktemp("data") / "new" / "nodules")
