"""Measure how widely attention looks: the mean entropy of the attention weights of every attention block.

A query's weights over N tokens sum to one. Their entropy ``-sum(p log p)`` is 0 where one token gets all the weight,
and ``log N`` where all tokens get the same; divided by ``log N`` it can be compared between blocks with windows of
different sizes. Fused attention never shows its weights, so queries and keys are multiplied once more, for a few images
or windows of one forward pass: a fraction of the work of that pass. Where a recipe says ``attention="fp4"`` the product
is made in FP4, as the block does it; a tensor's maximum is then that of the few images.

Looking changes nothing: no gradients, no random numbers, no state.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

from monai_fp4.quantization.layers.attention import FP4Attention, self_scores, window_scores
from monai_fp4.quantization.layers.attention_product import fp4_product

__all__ = ["AttentionEntropy", "attention_entropy"]

_MOST_SCORES = 2**21
"""Scores of one look, over all heads: 8 MiB in FP32."""
_MOST_ITEMS = 64
"""Windows; of images, whose attention is between many more tokens, `_MOST_SCORES` leaves few."""


@dataclass(frozen=True)
class AttentionEntropy:
    """Mean over queries, heads and the images looked at.

    Attributes:
        nats: the entropy.
        share: the entropy as a share of ``log(tokens)``, 0 to 1; NaN for a single token.
    """

    nats: float
    share: float


@contextmanager
def attention_entropy(network: nn.Module) -> Iterator[dict[str, AttentionEntropy]]:
    """Look at every attention block (MONAI's ``SABlock`` and ``WindowAttention``) in the first forward pass within.

    Args:
        network: any module; one without attention costs nothing.

    Yields:
        Block name -> entropy; filled as the pass runs.

    Example:
        >>> block = SABlock(hidden_size=16, num_heads=2)
        >>> for parameter in block.parameters():
        ...     _ = torch.nn.init.zeros_(parameter)
        >>> with attention_entropy(nn.Sequential(block)) as entropy:
        ...     output = block(torch.zeros(1, 8, 16))
        >>> round(entropy["0"].nats, 4) == round(math.log(8), 4), round(entropy["0"].share, 4)
        (True, 1.0)
    """
    found: dict[str, AttentionEntropy] = {}
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, (SABlock, WindowAttention)):
                hooks.enter_context(module.register_forward_hook(_Look(name, found), with_kwargs=True))
        yield found


class _Look:
    """Forward hook of one block."""

    def __init__(self, name: str, found: dict[str, AttentionEntropy]) -> None:
        self.name, self.found = name, found

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Tensor) -> None:
        if self.name in self.found:
            return
        given = (*args, *kwargs.values())
        x, mask = given[0], given[1] if len(given) > 1 else None
        places = _few(x, block.num_heads)  # type: ignore[arg-type]
        if mask is not None:  # of images, or of windows that repeat with each image
            mask = mask[places % len(mask)]
        scores_of = window_scores if isinstance(block, WindowAttention) else self_scores
        with torch.no_grad():
            scores, _ = scores_of(block, x[places], mask, functools.partial(_product, block))
            # In FP32 whatever the block computes in, so that the sum over many small weights is one.
            logs = scores.float().log_softmax(dim=-1)
            # A token that is masked out has the weight 0, and 0 log 0 is 0.
            nats = float(-(logs.exp() * logs.clamp(min=-1e30)).sum(-1).mean())
        tokens = scores.shape[-1]
        self.found[self.name] = AttentionEntropy(nats, nats / math.log(tokens) if tokens > 1 else math.nan)


def _few(x: Tensor, heads: int) -> Tensor:
    """Places of some images or windows, evenly over the batch: the first ones often hold nothing but background."""
    most = max(1, min(_MOST_ITEMS, _MOST_SCORES // (heads * x.shape[1] ** 2)))
    count = min(most, len(x))
    return (torch.arange(count, device=x.device) * len(x)) // count


def _product(block: nn.Module, q: Tensor, k: Tensor) -> Tensor:
    return fp4_product(q, k, block.recipe) if isinstance(block, FP4Attention) and block.active else q @ k.mT
