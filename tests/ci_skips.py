"""Under CI nothing is skipped but for a reason that no installation can mend: a skipped test notices nothing."""

from __future__ import annotations

import os

import pytest

ALLOWED_SKIPS = (
    "MONAI_FP4_LGG does not name the LGG folder",
    "needs a processor with AVX512_BF16 instructions",
    "needs an x86 processor with AVX2",
)
"""Reasons, as they begin, for which a test may be skipped under CI: what no installation can mend."""

_forbidden_skips: dict[str, str] = {}


def _note_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIPS):
            _forbidden_skips[report.nodeid] = reason


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session under CI that skipped what it should have tested."""
    if _forbidden_skips and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _forbidden_skips:
        terminalreporter.section("skipped, which CI does not allow (see ALLOWED_SKIPS in tests/ci_skips.py)", red=True)
        for test, reason in _forbidden_skips.items():
            terminalreporter.line(f"{test}: {reason}", red=True)
