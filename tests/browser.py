"""A browser for the tests that open pages, where there is one; it speaks to no network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


def chromium(page: Path, *options: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """Open a page of a folder; `--dump-dom` and `--screenshot=FILE` are what tests ask for."""
    words = [str(CHROMIUM), *_QUIET, f"--user-data-dir={profile}", "--enable-logging=stderr"]
    words += ["--virtual-time-budget=3000", *options, page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))
