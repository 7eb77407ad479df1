"""Find the output heads of a network by running an example: along autograd's graph, back from the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from monai_fp4.errors import ConfigError

__all__ = ["reached_last"]


def reached_last(model: nn.Module, layers: Iterable[str], example: Any) -> set[str]:
    """The layers whose results reach an output along autograd's graph, past no norm and into no other layer.

    Args:
        model: is run once, in evaluation, and left as it was.
        layers: names of the layers that multiply.
        example: a tensor, a tuple or a mapping of the model's arguments.

    Raises:
        ConfigError: the model fails on the example.
    """
    made: dict[Any, str] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                made[output.grad_fn] = name

        return hook

    handles = [model.get_submodule(name).register_forward_hook(remember(name)) for name in layers]
    training = {module: module.training for module in model.modules()}
    state = torch.get_rng_state()
    inputs = tree_map(
        lambda leaf: (
            leaf.detach().clone().requires_grad_() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        ),
        example,
    )
    try:
        model.eval()
        with torch.enable_grad():
            output = model(**inputs) if isinstance(inputs, Mapping) else model(*_tuple(inputs))
    except Exception as error:
        raise ConfigError(
            f"example expected an input that {type(model).__name__} runs on, found one that it failed on with"
            f" {type(error).__name__}: {error}; give a tensor, a tuple or a mapping of its arguments"
        ) from error
    finally:
        torch.set_rng_state(state)
        for module, mode in training.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    ends = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
    fed = {name for node in made for name in _nearest([step for step, _ in node.next_functions], made)}
    groups = [_nearest([end], made, through_norms=False) for end in ends]
    # Where a layer that feeds others is added to the output too, the output is a stream of features and has no head.
    return {name for group in groups if not group & fed for name in group}


def _nearest(nodes: Iterable[Any], made: Mapping[Any, str], through_norms: bool = True) -> set[str]:
    """Walk back from some nodes of autograd's graph to the first layers on each way."""
    found, seen, queue = set(), set(), [node for node in nodes if node is not None]
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in made:
            found.add(made[node])
        elif through_norms or "Norm" not in node.name():
            queue += [step for step, _ in node.next_functions if step is not None]
    return found


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
