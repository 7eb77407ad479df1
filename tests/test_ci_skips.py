"""A session under CI that skips what it should test is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ci_skips import ALLOWED_SKIPS

FORBIDDEN = """
import pytest

@pytest.fixture
def kernel():
    pytest.skip("no kernel, says a fixture")

def test_fixture(kernel): pass
def test_body(): pytest.skip("no kernel, says a test")

@pytest.mark.skipif(True, reason="no kernel, says a mark")
def test_mark(): pass
def test_that_passes(): pass
"""


def run(folder: Path, *, ci: bool) -> subprocess.CompletedProcess[str]:
    """Run a folder's tests with the hooks of `ci_skips`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, "-m", "pytest", "-p", "ci_skips", "-q", "--rootdir", str(folder), str(folder)]
    environment |= {"CI": "1"} if ci else {}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_a_skip_fails_a_session_under_ci_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FORBIDDEN)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_kernel_at_all')")
    under_ci, at_home = run(tmp_path, ci=True), run(tmp_path, ci=False)
    assert under_ci.returncode == pytest.ExitCode.TESTS_FAILED, under_ci.stdout
    summary = under_ci.stdout.partition("which CI does not allow")[2]
    for reason in ("says a fixture", "says a test", "says a mark", "no_kernel_at_all"):
        assert reason in summary
    assert at_home.returncode == pytest.ExitCode.OK, at_home.stdout


def test_what_no_installation_can_mend_is_allowed(tmp_path: Path) -> None:
    skips = [f"def test_{i}(): pytest.skip({reason!r})" for i, reason in enumerate(ALLOWED_SKIPS)]
    expected = "@pytest.mark.xfail(strict=True)\ndef test_it(): assert False"
    (tmp_path / "test_it.py").write_text("\n".join(["import pytest", *skips, expected]))
    finished = run(tmp_path, ci=True)
    assert finished.returncode == pytest.ExitCode.OK, finished.stdout
