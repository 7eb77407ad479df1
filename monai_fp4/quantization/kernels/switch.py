"""One switch for all fast paths: inside ``with plain():`` everything is computed in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_plain", "plain"]

_plain = False


def is_plain() -> bool:
    """Whether the fast paths are switched off."""
    return _plain


@contextmanager
def plain() -> Iterator[None]:
    """Compute in plain torch inside the block, as if there were no kernels: for tests and benchmarks."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before
