"""Dispatch a step of the arithmetic to an implementation: one question, asked in one place.

A step of the arithmetic has a **table** of implementations, the quickest first and plain torch last:
:data:`monai_fp4.quantization.kernels.quantizers.QUANTIZERS` for quantizing and
:data:`monai_fp4.quantization.layers.gemm.MULTIPLIERS` for multiplying. Each implementation answers one question,
``takes(x, task)``: is this tensor one for me, on this machine, and do I know what is asked of it? :func:`dispatch`
gives the work to the first that says yes. So a new kernel is one file, and one row of a table.

Plain torch is the definition and takes everything. It alone is asked inside of :func:`plain_torch`, by a compiler that
or tracer that looks on, for tensors without memory of their own, and where a kernel fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["Implementation", "KernelError", "dispatch", "plain_torch"]

_plain_torch = False

_Task = TypeVar("_Task", contravariant=True)
_Result = TypeVar("_Result")


class KernelError(Exception):
    """A kernel failed, for a reason that is the kernel's own: it has said so, and takes nothing from now on."""


class Implementation(Protocol[_Task]):
    """Row of a table: the question that all rows answer. What else they can do is the table's affair."""

    def takes(self, x: Tensor, task: _Task, /) -> bool:
        """Whether this implementation can be had here, reads the memory of ``x`` and knows the task."""


_Row = TypeVar("_Row", bound=Implementation)  # type: ignore[type-arg]


def dispatch(table: Sequence[_Row], x: Tensor, task: object, call: Callable[[_Row], _Result]) -> _Result:
    """Give a step to the first implementation that takes it; to the next one if it raises `KernelError`.

    Args:
        table: the implementations, of which the last takes everything.
        x: the tensor that the step begins with.
        task: what is asked, in the table's own terms.
        call: the step, as a function of the implementation.

    Returns:
        What the call returns.
    """
    *kernels, definition = table
    if not (_plain_torch or torch.compiler.is_compiling() or torch.jit.is_tracing() or _lacks_memory(x)):
        for implementation in kernels:
            if implementation.takes(x, task):
                try:
                    return call(implementation)
                except KernelError:
                    continue
    return call(definition)


def _lacks_memory(x: Tensor) -> bool:
    """Whether a tensor's numbers are nowhere, or in other tensors."""
    return type(x) is not Tensor and (isinstance(x, FakeTensor) or is_traceable_wrapper_subclass(x))


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute in plain torch inside the block, as if there were no kernels: for tests and benchmarks."""
    global _plain_torch
    before, _plain_torch = _plain_torch, True
    try:
        yield
    finally:
        _plain_torch = before
