"""Find where a NaN or an infinity came from: the first layer, gradient or input in which it stands.

A training step looks at its loss and the norm of its gradient, two numbers that are computed anyway. Only when one of
them is not finite is the network run once more, layer by layer, to say where that began.

>>> network = nn.Sequential(nn.Identity(), nn.Threshold(0, torch.inf), nn.Identity())
>>> first_nonfinite_layer(network, -torch.ones(1), amp=False)
'1'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from monai_fp4.engines.network import autocast, unwrap_ddp
from monai_fp4.errors import NumericsError

__all__ = ["first_nonfinite_layer", "nonfinite_tensors", "not_finite", "what_is_kept"]


def first_nonfinite_layer(
    network: nn.Module, images: Tensor, amp: bool, dtype: torch.dtype = torch.bfloat16
) -> str | None:
    """Run the network once more and name the first layer whose output is not finite, or None if all are."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with torch.no_grad(), autocast(images.device, amp, dtype):
            network(images)
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else None


def nonfinite_tensors(state: Mapping[str, Any]) -> list[str]:
    """Name the tensors in a tree of them in which NaN or infinity stands.

    Args:
        state: such as a network's or an optimizer's ``state_dict``, or a whole checkpoint.

    >>> nonfinite_tensors({"step": 3, "moments": {0: torch.ones(2), 1: torch.tensor([1, torch.nan])}})
    ['moments.1']
    """
    tensors = dict(_tensors(state, ""))
    # One pass at the speed of memory. A norm may also overflow, so it only says that there is something to look for.
    if not tensors or torch.isfinite(get_total_norm(list(tensors.values()))):
        return []
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def what_is_kept(epoch: int) -> str:
    """Say which epoch ``checkpoint.pt`` holds while ``epoch`` is being trained."""
    return f"checkpoint.pt keeps epoch {epoch - 1}" if epoch > 1 else "no epoch was finished before"


def not_finite(
    what: str, engine: SupervisedTrainer, images: Tensor, amp: bool, dtype: torch.dtype = torch.bfloat16
) -> NumericsError:
    """The error of a training step: what is not finite (``"loss"`` or ``"gradient"``), where it began, what is kept."""
    state = engine.state
    if not torch.isfinite(images).all():
        where = "the input image"
    elif what == "gradient":
        named = unwrap_ddp(engine.network).named_parameters()
        where = next(
            (f"the gradient of {n}" for n, p in named if p.grad is not None and not p.grad.isfinite().all()),
            "the norm of all gradients together, which is beyond FP32",
        )
    else:
        layer = first_nonfinite_layer(unwrap_ddp(engine.network), images, amp, dtype)
        where = f"the output of layer '{layer}'" if layer else "the loss function"
    if tensors := nonfinite_tensors(unwrap_ddp(engine.network).state_dict()):
        where += f" and in the network's '{tensors[0]}'"
    return NumericsError(
        f"the {what} must be finite, but at step {state.iteration} (epoch {state.epoch}) NaN or infinity first"
        f" stands in {where}; {what_is_kept(state.epoch)}; lower learning_rate or check the scans"
    )
