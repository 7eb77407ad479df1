"""What torch's FLOP counter says of the layers' operators: two operations for each product of two numbers.

The counter's module imports Triton, which takes longer than all else that the layers need. So formulas are noted here,
and handed over when the counter is there already or an operator is called under a mode.

>>> import torch
>>> from torch import nn
>>> from torch.utils.flop_counter import FlopCounterMode
>>> from monai_fp4.quantization import convert
>>> layer, _ = convert(nn.Linear(32, 64), "sr")
>>> with FlopCounterMode(display=False) as counter:
...     layer(torch.randn(5, 32)).sum().backward()
>>> counter.get_total_flops() == 2 * (2 * 5 * 32 * 64)  # forward, and the gradient of the weight
True
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = ["define", "register"]

_MODULE = "torch.utils.flop_counter"
_formulas: dict[Any, Callable[..., int]] = {}


def define(operator: Any, backward: Any, product: Callable[..., int]) -> None:
    """Note the formula of an operator and of its gradients.

    Args:
        operator: in ``torch.ops``; its operands are a, b, a stream and a recipe, and what follows them.
        backward: the same with the gradient before, and whether either is needed behind.
        product: gives the operations of one product by the shapes of a, b and the result, and what follows.
    """

    def forward_flops(a: Any, b: Any, stream: Any, recipe: str, *rest: Any, out_shape: Any) -> int:
        return product(a, b, out_shape, *rest)

    def backward_flops(dc: Any, a: Any, b: Any, stream: Any, recipe: str, *rest: Any, out_shape: Any) -> int:
        return sum(rest[-1]) * product(a, b, dc, *rest[:-1])

    _formulas.update({operator: forward_flops, backward: backward_flops})
    if _MODULE in sys.modules:
        register()


def register() -> None:
    """Hand the formulas to the counter, and to counters that look on already, which took theirs when they were made."""
    if _MODULE not in sys.modules:  # nobody counts
        return
    from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

    for operator, formula in _formulas.items():
        if operator not in flop_registry:
            register_flop_formula(operator)(formula)
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            counter.flop_registry.update({operator: flop_registry[operator] for operator in _formulas})
