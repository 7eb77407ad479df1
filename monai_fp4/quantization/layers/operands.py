"""Quantize the operands of each GEMM: the recipe's switches, spelled out once.

======  =============================  =================================
GEMM    first operand                  second operand
======  =============================  =================================
fprop   x, along input channels        W, along input channels
dgrad   dy, along output channels, SR  W, along output channels
wgrad   dy, along pixels, RHT and SR   x, along pixels, RHT
======  =============================  =================================

"Along" names the reduction axis of the GEMM, which the blocks of 16 lie on. A quantized operand is the values ``q * s``
(grid value times block scale, exact in BF16 and FP32) and the tensor's maximum; a GEMM of two such operands,
accumulated in FP32 and multiplied by ``alpha = amaxA * amaxB / (36 * 448 * 448)``, *is* the FP4 GEMM.

**High precision.** Where a recipe's backward pass is in high precision, wgrad keeps the rotation if the recipe has it,
and nothing is rounded to FP4 (`rotated_product`).

**Other formats.** `Recipe.scheme_of` names the format of each of the three tensors. The kernels know the standard one;
a layer whose recipe has another for any of them computes all of its products in plain torch, on any device, with the
operands and the alpha of that format. Blocks over two axes are chosen once and used in fprop and dgrad alike.

**Dtypes under autocast.** The input is cast to the autocast dtype before it is quantized, as a plain layer casts it:
CUDA's autocast runs layer norms in FP32, and Transformer Engine's kernels rotate BF16 only. The weight is not cast: a
master weight in FP32 goes to FP4 in one rounding, as in ``te.Linear``. The autocast dtype is that of the results (y,
dx, dW, each rounded to it), hence of dy, and of the products that a recipe leaves in high precision: there x and W,
original or decoded, are cast to it as a plain layer would. Rotated copies are BF16 by their definition.
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
from monai_fp4.quantization.numerics import (
    BLOCK_SIZE,
    STANDARD,
    ScaledValues,
    Scheme,
    gemm_alpha,
    pad_last,
    rotate,
    scaled_values,
)

__all__ = [
    "along_channels",
    "as_kernel",
    "autocast_off",
    "channels_first",
    "check_backward",
    "check_not_onnx",
    "check_untransformed",
    "kernel_values",
    "scale_and_cast",
    "refuse_transforms",
    "rotated_product",
    "without_autocast",
]

# Of is_grads_batched, which is no transform of torch.func.
_BATCHED = cast(torch._C.DispatchKey, torch._C._parse_dispatch_key("Batched"))
_NO_CONTEXT: AbstractContextManager[object] = nullcontext()
_Method = TypeVar("_Method", bound=Callable[..., Any])


def along_channels(
    x: Tensor, groups: int = 1, *, stochastic: bool = False, amax: Tensor | None = None, scheme: Scheme = STANDARD
) -> ScaledValues:
    """Quantize every pixel of ``[N, C, *spatial]`` along its channels, each group's channels padded to whole blocks."""
    pixels = x.movedim(1, -1)
    if groups > 1:
        pixels = pixels.unflatten(-1, (groups, -1))
    return scaled_values(pixels, stochastic=stochastic, amax=amax, scheme=scheme)


def channels_first(pixels: Tensor, groups: int) -> Tensor:
    """Undo the view that `along_channels` took: ``[N, *spatial, (groups,) C]`` to ``[N, C, *spatial]``."""
    return (pixels.flatten(-2) if groups > 1 else pixels).movedim(-1, 1)


def kernel_values(
    weight: Tensor, groups: int, *, two_d: bool, along_first: bool, scheme: Scheme = STANDARD
) -> ScaledValues:
    """Quantize a kernel ``[A, B / groups, *k]`` within each tap: along B, or along A, or 16x16 over both when 2D.

    With ``two_d`` both directions give the same values; four over six may differ where two sums of errors are equal up
    to FP32 rounding.
    """
    # [A, B/g, *k] -> [g, *k, A/g, B/g]: one matrix per group and tap, the reduction axis of the GEMM last
    taps = weight.unflatten(0, (groups, -1)).movedim((1, 2), (-2, -1))
    return scaled_values(taps.mT if along_first else taps, two_d=two_d, scheme=scheme)


def as_kernel(taps: Tensor, *, along_first: bool) -> Tensor:
    """Undo the view that `kernel_values` took: ``[g, *k, ., .]`` to ``[A, B / groups, *k]``."""
    taps = taps.mT if along_first else taps
    return taps.movedim((-2, -1), (1, 2)).flatten(0, 1)


def scale_and_cast(accumulated: Tensor, a: ScaledValues, b: ScaledValues, dtype: torch.dtype) -> Tensor:
    """Scale the FP32 sums of a GEMM by alpha (in place) and cast them."""
    return accumulated.mul_(gemm_alpha(a.amax, b.amax, a.scheme.bound, b.scheme.bound)).to(dtype)


def rotated_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``a @ b.mT`` with both operands rotated along their last axis and neither quantized.

    The rotation cancels in the product, so this is the plain product with operands that were rounded to BF16 in another
    basis. Recipes with the Hadamard transform and a backward pass in high precision have it as their weight gradient.

    Args:
        a: ``[..., M, K]``, FP32, BF16 or FP16.
        b: ``[..., N, K]``.
        dtype: of the result; the products are summed in FP32.
    """
    a, b = rotate(pad_last(a, BLOCK_SIZE)), rotate(pad_last(b, BLOCK_SIZE))
    if dtype is not torch.bfloat16:  # FP16 has not the range of rotated gradients
        a, b = a.float(), b.float()
    return (a @ b.mT).to(dtype)


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
