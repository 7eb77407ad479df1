"""Import the repository's scripts, which are no package, as they import each other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "benchmarks", ROOT / "docs")


@contextmanager
def imported(names: Sequence[str]) -> Iterator[dict[str, ModuleType]]:
    """The modules of benchmarks/ and docs/ by name; afterwards nothing else finds them."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in FOLDERS]
    _forget()
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path[:] = before
        _forget()


def _forget() -> None:
    """Forget the scripts, and what they imported of each other: half a set of them would read another half's paths."""
    for name, module in list(sys.modules.items()):
        if (file := getattr(module, "__file__", None)) and Path(file).parent in FOLDERS:
            del sys.modules[name]
