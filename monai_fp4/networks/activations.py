"""The UNet's PReLU with a backward pass that does not fill a tensor of weight gradients.

torch's backward of PReLU first writes the gradient of the slope for every element, then adds these up; on a CPU that
kernel is not vectorised and takes as long as a convolution, a seventh of the UNet's step. With one slope for all
channels, as MONAI's blocks have it, PReLU is a leaky ReLU, whose kernels are quick, and the gradient of the slope is
one product and one sum:

    y = x where x > 0 else a x,    dx = dy where x > 0 else a dy,    da = sum(dy min(x, 0))

The outputs and `dx` are the same bits as torch's, `da` the same within the rounding of a sum. Gradients can be
differentiated again, as torch's can.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["OneSlopePReLU", "quicken_prelu"]


class OneSlopePReLU(nn.PReLU):
    """``nn.PReLU`` with one slope; its own backward pass on a CPU, torch's elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply PReLU to a tensor of any shape."""
        # The slope is read as a number: a GPU would have to be waited for, and a compiler cannot trace it.
        if not torch.jit.is_scripting() and _is_quick(x):
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
            output: Tensor = _LeakyReLU.apply(x.to(dtype), self.weight.to(dtype))
            return output
        return F.prelu(x, self.weight)


def quicken_prelu(network: nn.Module) -> nn.Module:
    """Turn every ``nn.PReLU`` with one slope into :class:`OneSlopePReLU`, in place: same parameters, same results.

    >>> [type(module).__name__ for module in quicken_prelu(nn.Sequential(nn.PReLU(), nn.PReLU(2)))]
    ['OneSlopePReLU', 'PReLU']
    """
    for module in network.modules():
        if type(module) is nn.PReLU and module.num_parameters == 1:
            module.__class__ = OneSlopePReLU
    return network


def _is_quick(x: Tensor) -> bool:
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return x.device.type == "cpu" and torch.is_grad_enabled() and not traced


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.leaky_relu(x, slope.item())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (dy,) = gradients
        x, slope = ctx.saved_tensors
        needs_x, needs_slope = ctx.needs_input_grad
        dx: Tensor | None = None
        if needs_x and torch.is_grad_enabled():  # `create_graph`: the kernel's slope is a number without a gradient
            dx = torch.where(x > 0, dy, dy * slope)
        elif needs_x:
            dx = torch.ops.aten.leaky_relu_backward(dy, x, slope.item(), False)
        da = (dy * x.clamp_max(0)).sum().view_as(slope) if needs_slope else None
        return dx, da
