"""Data and finished runs that several test files look at, made once a session."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM
from tiny_runs import Dataset, lgg_dataset, nifti_dataset, train

from monai_fp4.quantization.kernels.dispatch import plain_torch


def pytest_configure() -> None:
    """A developer may do without the oracle and a browser, and their tests are skipped; CI may not."""
    if os.environ.get("CI") and importlib.util.find_spec("transformer_engine") is None:
        raise pytest.UsageError("CI compares with Transformer Engine's reference, which is not installed: make install")
    if os.environ.get("CI") and CHROMIUM is None:
        raise pytest.UsageError("CI opens reports in Chromium, which is not installed: apt-get install chromium")
    # A shell that starts the tests in the background has Ctrl-C ignored, here and in every process that they start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Triton decides when it is first imported, by whomever, whether it interprets its kernels.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A name that holds an address differs in every process, and pytest-xdist then refuses to begin."""
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"{unstable[0]} names an object by its address; give the parameters `ids`")


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """A run sets the hook for uncaught errors and seeds every generator; the next test shall not see it."""
    hook, torch_state = sys.excepthook, torch.get_rng_state()
    yield
    sys.excepthook = hook
    torch.set_rng_state(torch_state)


@pytest.fixture(scope="module", params=["compiled", "plain"])
def both_paths(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with the compiled kernels, where this machine has them, and in plain torch."""
    with plain_torch() if request.param == "plain" else nullcontext():
        yield


@pytest.fixture(autouse=True, scope="session")
def _quiet_ignite() -> None:
    """Ignite logs the exceptions that tests provoke."""
    logging.getLogger("ignite").setLevel(logging.CRITICAL)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six patients of two institutions in three folds; three slices of 40 x 48 each."""
    return lgg_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two more patients, as a manifest of the test split."""
    return lgg_dataset(tmp_path_factory.mktemp("held_out"), 2, first=6, split="test")


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four NIfTI volumes of one channel, 20 x 26 x 12."""
    return nifti_dataset(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="session")
def finished_run(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, on fold 0. Look, do not write."""
    return train(tiny, tmp_path_factory.mktemp("runs") / "finished")
