"""Measure how well each NVFP4 layer represents its operands: where to look when a recipe trains badly.

Three numbers for the input, the weight and the output's gradient of each layer:

- signal to noise in dB, `10 log10(sum(x^2) / sum((x - q)^2))`; Gaussian values have about 20;
- the share of non-zero values that became zero: beside a large value in their block, or in blocks so much smaller
  than the tensor's maximum that their E4M3 scale is zero;
- the share that was clipped: where a block's E4M3 scale was rounded down, its largest values land beyond 6, the end of
  the FP4 grid.

The gradient is looked at as the dgrad GEMM reads it, but rounded to nearest, so that looking draws no random numbers
and a run that is watched gives the same weights as one that is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_fp4.quantization.layers import NVFP4Layer, NVFP4Linear
from monai_fp4.quantization.numerics import STANDARD, Scheme, decode, prepare_blocks, scaled_values
from monai_fp4.quantization.recipes import Backward, Operand

__all__ = ["OperandHealth", "operand_health", "quantization_health"]

_GRID_END = 6.0
# The block's maximum itself lands within an FP32 rounding of 6 where the scale is exact; that is no clipping.
_TOLERANCE = 2**-12


@dataclass(frozen=True, kw_only=True)
class OperandHealth:
    """Health of one operand.

    Attributes:
        snr_db: signal to noise in dB; infinite where the quantized values are exact, NaN where all are zero.
        underflow: share of the non-zero values that became zero, 0 to 1.
        clipped: share of the values beyond the end of the grid, 0 to 1.
    """

    snr_db: float
    underflow: float
    clipped: float


def operand_health(
    blocked: Tensor,
    *,
    two_d: bool = False,
    pair: tuple[Tensor, Tensor] | None = None,
    scheme: Scheme = STANDARD,
) -> OperandHealth:
    """Measure what quantizing a tensor does to it.

    Args:
        blocked: `[..., K]`, floating, with the axis that the blocks of 16 lie on last.
        two_d: 16x16 blocks over the last two axes.
        pair: the original and the decoded tensor, if they are known; else `blocked` is quantized here.
        scheme: the format.

    Returns:
        Its health.

    Example:
        >>> one_outlier = torch.tensor([100.0] + 15 * [0.1])
        >>> health = operand_health(one_outlier)
        >>> health.underflow, health.clipped
        (0.9375, 0.0)
    """
    if pair is None:
        pair = blocked, decode(scaled_values(blocked, two_d=two_d, scheme=scheme))
    original, decoded = pair
    x, q = original.detach().double(), decoded.detach().double()
    signal, noise = float(x.square().sum()), float((x - q).square().sum())
    snr = math.nan if signal == 0 else math.inf if noise == 0 else 10 * math.log10(signal / noise)
    nonzero = int(torch.count_nonzero(x))
    lost = int(torch.count_nonzero((q == 0) & (x != 0)))
    quantized = prepare_blocks(blocked.detach(), two_d=two_d, rht=False, scheme=scheme)
    beyond = (quantized.blocks.float() * quantized.encode).abs() > _GRID_END * (1 + _TOLERANCE)
    clipped = int(torch.count_nonzero(beyond)) / max(blocked.numel(), 1)
    return OperandHealth(snr_db=snr, underflow=lost / max(nonzero, 1), clipped=clipped)


@contextmanager
def quantization_health(network: nn.Module, *, gradients: bool = True) -> Iterator[dict[str, dict[str, OperandHealth]]]:
    """Watch every NVFP4 layer that quantizes, for the forward and backward passes within the context.

    Args:
        network: any module.
        gradients: also measure the gradient of each layer's output, where the recipe quantizes it.

    Yields:
        Layer name -> "input", "weight" or "gradient" -> health; filled as the passes run, the last pass counts.

    Example:
        >>> from monai_fp4.quantization.layers import NVFP4Linear
        >>> network = nn.Sequential(NVFP4Linear(32, 16, recipe="full"))
        >>> with quantization_health(network) as health:
        ...     network(torch.randn(8, 32)).sum().backward()
        >>> {name: sorted(operands) for name, operands in health.items()}
        {'0': ['gradient', 'input', 'weight']}
    """
    health: dict[str, dict[str, OperandHealth]] = {}
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, NVFP4Layer):
                hooks.enter_context(module.register_forward_hook(_Watch(name, health, gradients)))
        yield health


class _Watch:
    """Forward hook of one layer."""

    def __init__(self, name: str, health: dict[str, dict[str, OperandHealth]], gradients: bool) -> None:
        self.name, self.health, self.gradients = name, health, gradients

    def __call__(self, layer: NVFP4Layer, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not layer.quantizing:
            return
        entry = self.health.setdefault(self.name, {})
        with torch.no_grad():
            operands = layer.quantized_operands(inputs[0])
            x, weight = operands["input"][0], operands["weight"][0]
            recipe = layer.recipe
            scheme = recipe.scheme_of(Operand.INPUT)
            entry["input"] = operand_health(_pixels(layer, x), pair=operands["input"], scheme=scheme)
            scheme = recipe.scheme_of(Operand.WEIGHT)
            taps, two_d = _taps(layer, weight), recipe.two_d_weights
            entry["weight"] = operand_health(taps, two_d=two_d, pair=operands["weight"], scheme=scheme)
        if self.gradients and output.requires_grad and layer.recipe.backward is Backward.FP4:
            # A hook of the tensor and not of the module, whose views would forbid the in-place activations that follow.
            output.register_hook(lambda gradient: entry.update(gradient=_gradient_health(layer, gradient)))


def _gradient_health(layer: NVFP4Layer, gradient: Tensor) -> OperandHealth:
    with torch.no_grad():
        return operand_health(_pixels(layer, gradient), scheme=layer.recipe.scheme_of(Operand.GRADIENT))


def _pixels(layer: NVFP4Layer, x: Tensor) -> Tensor:
    """Bring the channels last, where fprop's and dgrad's blocks lie, and apart by group."""
    if isinstance(layer, NVFP4Linear):
        return x
    pixels, groups = x.movedim(1, -1), int(layer.groups)  # type: ignore[arg-type]
    return pixels.unflatten(-1, (groups, -1)) if groups > 1 else pixels


def _taps(layer: NVFP4Layer, weight: Tensor) -> Tensor:
    """Bring the axis last that fprop sums over, one matrix a kernel tap and group."""
    if isinstance(layer, NVFP4Linear):
        return weight
    taps = weight.unflatten(0, (int(layer.groups), -1)).movedim((1, 2), (-2, -1))  # type: ignore[arg-type]
    return taps.mT if isinstance(layer, nn.modules.conv._ConvTransposeNd) else taps
