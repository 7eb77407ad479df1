"""Import the repository's scripts, which are no package, as they import each other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def imported(names: Sequence[str]) -> Iterator[dict[str, ModuleType]]:
    """The modules of benchmarks/ and docs/ by name; afterwards nothing else finds them."""
    before = list(sys.path)
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path[:] = before
        for name in names:
            sys.modules.pop(name, None)
