"""The layout in memory of weights, images and gradients: channels last.

Convolutions in BF16 are quickest on it, and it is the order in which FP4 blocks along channels are read. A network and
its images are both laid out so, once, before anything is computed.

>>> images = channels_last(torch.zeros(2, 3, 8, 8))
>>> images.shape, images.stride()
(torch.Size([2, 3, 8, 8]), (192, 1, 24, 3))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["channels_last", "to_channels_last", "match_layouts"]


def channels_last(tensor: Tensor) -> Tensor:
    """Lay images out with the channels innermost, as convolutions in BF16 and blocks along channels want them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor


def to_channels_last(network: nn.Module, image_size: Sequence[int]) -> nn.Module:
    """Lay a network's weights out as `channels_last` does its images."""
    layout = torch.channels_last if len(image_size) == 2 else torch.channels_last_3d
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def match_layouts(parameters: Iterable[nn.Parameter]) -> None:
    """Give every gradient the memory layout of its parameter.

    Autograd does so by itself; a gradient that a handler has assigned need not. Torch's fused Adam on a CPU walks both
    as they lie in memory without looking, and would update the wrong weights.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
