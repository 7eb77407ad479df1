"""Find where a NaN or an infinity came from: the first layer, gradient or input in which it stands.

A training step looks at its loss and the norm of its gradient, two numbers that are computed anyway. Only when one of
them is not finite is the network run once more, layer by layer, to say where that began.

>>> network = nn.Sequential(nn.Identity(), nn.Threshold(0, torch.inf), nn.Identity())
>>> first_nonfinite_layer(network, -torch.ones(1), amp=False)
'1'
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
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


def nonfinite_tensors(state: Mapping[str, Any], infinite: Collection[str] = ()) -> list[str]:
    """Name the tensors and numbers in a tree of them in which NaN or infinity stands.

    Args:
        state: such as a network's or an optimizer's ``state_dict``, or a whole checkpoint.
        infinite: names where infinity may stand, such as a mask; NaN may not.

    >>> nonfinite_tensors({"lr": [0.1, math.nan], "moments": {0: torch.ones(2), 1: torch.tensor([1, torch.nan])}})
    ['lr.1', 'moments.1']
    """
    found: list[tuple[str, Tensor | float]] = list(_numbers(state, ""))
    tensors = [value for _, value in found if isinstance(value, Tensor)]
    # One pass at the speed of memory. A norm may also overflow, so it only says that there is something to look for.
    with torch.no_grad():
        suspicious = bool(tensors) and not torch.isfinite(get_total_norm(tensors))
        return [
            name
            for name, value in found
            if (suspicious if isinstance(value, Tensor) else not math.isfinite(value))
            and not _is_finite(value, name in infinite)
        ]


def _is_finite(value: Tensor | float, infinite: bool) -> bool:
    tensor = torch.as_tensor(value)
    return not tensor.isnan().any() if infinite else bool(tensor.isfinite().all())


def _numbers(value: Any, name: str) -> Iterator[tuple[str, Tensor | float]]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield name, value
    elif isinstance(value, float):
        yield name, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _numbers(item, f"{name}.{key}" if name else str(key))


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
