"""What the backward pass will read is a saved tensor: hooks see it, checkpointing frees it, save_on_cpu moves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stand_ins import image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_fp4.quantization import convert, seed_rounding

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(32, 48), (5, 32)),
    "convolution": (lambda: nn.Conv2d(32, 32, 3), (1, 32, 6, 6)),
    "groups": (lambda: nn.Conv2d(32, 32, 3, groups=2), (1, 32, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(32, 16, 2, stride=2), (1, 32, 6, 6)),
}
RECIPES: list[Any] = ["sr_2d", "sr_rht_2d", "chain_rule", {"base": "2d", "format": "mxfp4"}]


def step(layer: nn.Module, x: Tensor, run: Callable[..., Tensor]) -> list[Tensor]:
    seed_rounding(layer, 0)
    leaf = x.clone().requires_grad_()
    layer.zero_grad()
    run(layer, leaf).square().sum().backward()
    return [leaf.grad, layer.weight.grad.clone()]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_kept_beside_the_saved_tensors(name: str, recipe: Any) -> None:
    build, shape = LAYERS[name]
    layer, _ = convert(build(), recipe)
    x = image(*shape)

    def packed(layer: nn.Module, leaf: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.clone(), lambda saved: saved):
            y = layer(leaf)
        node, held = y.grad_fn, []
        while node is not None:
            held += [key for key, value in getattr(node, "__dict__", {}).items() if isinstance(value, Tensor)]
            held += [key for key, value in getattr(node, "__dict__", {}).items() if hasattr(value, "scales")]
            node = next((step for step, _ in node.next_functions if step is not None), None)
        assert not held
        return y

    def on_cpu(layer: nn.Module, leaf: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return layer(leaf)

    def recomputed(layer: nn.Module, leaf: Tensor) -> Tensor:
        return checkpoint(layer, leaf, use_reentrant=False)

    expected = step(layer, x, lambda layer, leaf: layer(leaf))
    for run in (packed, on_cpu, recomputed):
        assert all(map(torch.equal, step(layer, x, run), expected)), run.__name__
