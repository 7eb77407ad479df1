"""What surrounds the products of a layer: a pass without autocast, and a refusal of passes that FP4 does not have.

Rounding has no derivative beyond the one that recipes define. So whatever asks for another, a second derivative,
forward mode, a batch of gradients, `torch.func`, or ONNX, is refused in a sentence before torch answers less clearly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.philox import key_source, keys_from

__all__ = [
    "autocast_off",
    "check_backward",
    "check_not_onnx",
    "check_untransformed",
    "refuse_transforms",
    "without_autocast",
]

# Of is_grads_batched, which is no transform of torch.func.
_BATCHED = cast(torch._C.DispatchKey, torch._C._parse_dispatch_key("Batched"))
_NO_CONTEXT: AbstractContextManager[object] = nullcontext()
_Method = TypeVar("_Method", bound=Callable[..., Any])


def without_autocast(method: _Method) -> _Method:
    """Decorate a ``forward`` or ``backward`` of an autograd function: its GEMMs stay in the dtypes that it chose.

    The backward pass, which autograd runs later and perhaps on another thread, draws its keys for stochastic rounding
    from where the forward pass did. It has no derivative itself, and is refused where autograd asks for one: torch's
    ``once_differentiable`` would answer `torch.autograd.functional.hessian` with zeros.
    """
    backward = method.__name__ == "backward"

    @functools.wraps(method)
    def wrapped(ctx: Any, tensor: Tensor, *args: Any) -> Any:
        if backward:
            check_backward(tensor)
        else:
            ctx.keys = key_source()
        with autocast_off(tensor), keys_from(ctx.keys) if backward else nullcontext():
            return method(ctx, tensor, *args)

    return cast(_Method, wrapped)


def autocast_off(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the tensor's device; on device "meta", which autocast does not know, any."""
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return _NO_CONTEXT
    return torch.autocast(device, enabled=False)


def check_not_onnx() -> None:
    """Refuse, with a ConfigError, to be exported to ONNX."""
    if torch.onnx.is_in_onnx_export():
        raise ConfigError(
            "ONNX has no operators for FP4 layers as they train: export the network that"
            " monai_fp4.quantization.unconvert gives back, or switch them off with set_active"
        )


def check_backward(gradient: Tensor) -> None:
    """Refuse, with a ConfigError, a backward pass that is to be differentiated again, or is of a batch of gradients."""
    check_untransformed(gradient)
    if torch.is_grad_enabled():
        raise ConfigError(
            "FP4 layers expected a backward pass without create_graph, found one that is to be differentiated again (a"
            " gradient penalty, a Hessian): rounding has no second derivative, so switch the layers off there with"
            " monai_fp4.quantization.set_active"
        )


def check_untransformed(gradient: Tensor | None = None) -> None:
    """Refuse, with a ConfigError, to be run inside a transform of `torch.func`, which torch refuses less clearly.

    `vmap` would have to give each example a maximum of its own, and rounding has no forward-mode derivative.
    """
    if torch.compiler.is_compiling():
        return
    batched = gradient is not None and torch._C._dispatch_keys(gradient).has(_BATCHED)
    if batched or torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        refuse_transforms()


def refuse_transforms() -> NoReturn:
    """Raise the ConfigError of whatever is no plain forward and backward pass."""
    raise ConfigError(
        "FP4 layers expected a plain forward and backward pass, found one inside torch.func, forward-mode autograd"
        " or a batched gradient (vmap, grad, jvp, dual_level, is_grads_batched): use autograd and one gradient at a"
        " time there, or switch the layers off with monai_fp4.quantization.set_active"
    )
