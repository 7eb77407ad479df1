"""Triton, where it is installed; where not, just enough of it for the modules of the kernels to be imported.

Triton comes with CUDA builds of torch. It is no dependency of this package: it takes a gigabyte, and without a GPU
nothing here would use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["INTERPRETED", "tl", "triton"]

INTERPRETED = False
"""Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1``): on the CPU, in NumPy, slowly, for tests."""


class _Absent:
    """Stands for `triton` and `triton.language` while a module is read; nothing that it decorates can run."""

    @staticmethod
    def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        return function if function is not None else lambda decorated: decorated

    @staticmethod
    def constexpr(value: Any) -> Any:
        return value


try:
    import triton
    import triton.language as tl
    from triton import knobs

    INTERPRETED = bool(knobs.runtime.interpret)
except ImportError:
    triton = tl = _Absent()  # type: ignore[assignment]
