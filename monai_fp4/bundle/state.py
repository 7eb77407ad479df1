"""Whether what a file holds of a network, an optimizer, a schedule and a scaler is what this run could have written.

Torch takes most of what it is given. Moments of another shape meet fused Adam, which reads beyond their end; a schedule
that stands elsewhere trains on with wrong numbers. So it is compared with what this run would have written itself: the
names, the types, and of tensors shape, dtype and layout; numbers must be finite and in range. Tensors are copied, since
two of a file may share their memory, which an optimizer writes into.

>>> network = nn.Linear(2, 1)
>>> check_weights({"weight": torch.zeros(1, 2), "bias": torch.tensor([float("nan")])}, network)
Traceback (most recent call last):
    ...
ValueError: NaN or infinity stands in 'bias'
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from reprlib import repr as bounded  # a list of a list, ten times, of a list, ten times, has no end
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["check_optimizer", "check_scaler", "check_scheduler", "check_weights", "without_scalars"]

_CHANGING = ("lr", "momentum", "betas", "fused", "foreach", "params")
"""Options of a group that a schedule or the machine changes; all others are the config's."""
_FIXED = ("total_steps", "base_lrs", "_schedule_phases", "_anneal_func_type", "cycle_momentum", "use_beta1")
"""What a schedule is, rather than where it stands."""
_NOT_NEGATIVE = ("running_var", "exp_avg_sq", "num_batches_tracked", "step")


def check_weights(found: Any, network: nn.Module) -> dict[str, Tensor]:
    """Check the weights and buffers of a network whose names and shapes fit; returns copies.

    Raises:
        ValueError: saying what does not fit.
    """
    checked: dict[str, Tensor] = _like(found, network.state_dict(), "")
    return checked


def check_optimizer(found: Any, optimizer: Optimizer, steps: int) -> dict[str, Any]:
    """Check the state of an optimizer.

    Args:
        found: what its ``state_dict`` is said to have been.
        optimizer: the one that is to take it, as the config makes it.
        steps: steps that it has made.

    Returns:
        The state, its tensors copied.

    Raises:
        ValueError: saying what does not fit.
    """
    checked: dict[str, Any] = _like_optimizer(found, _state_after_a_step(optimizer), "optimizer")
    for name, value in _leaves(checked, "optimizer"):
        if name.endswith(".step") and not 0 <= float(value) <= steps:
            raise ValueError(f"'{name}' is {float(value):g} after {steps} steps")
    return checked


def without_scalars(state: Any) -> Any:
    """An optimizer's state with numbers in place of its tensors of no dimension, which cost as much as large ones.

    AdamW counts the steps of each parameter; pickling so many tensors takes a fifth of the time of a small checkpoint.

    >>> without_scalars({"state": {0: {"step": torch.tensor(3.0)}}})
    {'state': {0: {'step': 3.0}}}
    """
    if isinstance(state, dict):
        return {name: without_scalars(value) for name, value in state.items()}
    return state.item() if isinstance(state, Tensor) and not state.ndim else state


def check_scheduler(
    found: Any, scheduler: LRScheduler, optimizer_state: Mapping[str, Any], *counts: int
) -> dict[str, Any]:
    """Check the state of a learning-rate schedule.

    Args:
        found: what its ``state_dict`` is said to have been.
        scheduler: the one that is to take it.
        optimizer_state: the optimizer's, checked, whose rates must be the schedule's.
        counts: how often it may have been stepped, such as epochs and iterations.

    Raises:
        ValueError: saying what does not fit.
    """
    own = scheduler.state_dict()
    checked: dict[str, Any] = _like(found, own, "lr_scheduler")
    for name in _FIXED:
        if name in own and checked[name] != own[name]:
            raise ValueError(
                f"'lr_scheduler.{name}' is {bounded(checked[name])}, but this run's is {bounded(own[name])}"
            )
    if checked.get("last_epoch", counts[0]) not in counts:
        raise ValueError(f"'lr_scheduler.last_epoch' is {checked['last_epoch']}, but must be {counts[-1]}")
    rates = [group["lr"] for group in optimizer_state["param_groups"]]
    if "_last_lr" in checked and [float(rate) for rate in checked["_last_lr"]] != [float(rate) for rate in rates]:
        raise ValueError(f"the learning rate is {rates} in the optimizer and {checked['_last_lr']} in the schedule")
    return checked


def check_scaler(found: Any, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """Check the state of what scales the loss; one that is off takes nothing.

    Raises:
        ValueError: saying what does not fit.
    """
    own = scaler.state_dict()
    if not own:
        return {}
    checked: dict[str, Any] = _like(found, own, "scaler")
    changed = [
        name for name, value in own.items() if name.startswith(("growth_", "backoff")) and checked[name] != value
    ]
    if changed:
        raise ValueError(f"'scaler.{changed[0]}' is {checked[changed[0]]}, but this run's is {own[changed[0]]}")
    if not checked["scale"] > 0 or checked["_growth_tracker"] < 0:
        raise ValueError("'scaler' must hold a scale above 0 and a count from 0 on")
    return checked


def _state_after_a_step(optimizer: Optimizer) -> dict[str, Any]:
    """What the optimizer's state is like once it has made a step, made by a copy."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    type(twin).step(twin)  # a schedule puts a method of the original's into its place
    return twin.state_dict()


def _like_optimizer(found: Any, own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """As `_like`, but a parameter without a gradient has no state, and options must be the config's."""
    if not isinstance(found, dict) or set(found) != set(own):
        raise ValueError(f"'{where}' must hold {sorted(own)}")
    checked: dict[str, Any] = {}
    for name, part in own.items():
        if name == "state":
            if not isinstance(found[name], dict) or not set(found[name]) <= set(part):
                raise ValueError(f"'{where}.state' must hold the state of this network's parameters")
            states = found[name].items()
            checked[name] = {index: _like(state, part[index], f"{where}.state.{index}") for index, state in states}
        elif name == "param_groups":
            free = [{key: value for key, value in group.items() if key not in ("fused", "foreach")} for group in part]
            given = found[name] if isinstance(found[name], list) and len(found[name]) == len(part) else [{}] * len(part)
            checked[name] = []
            for number, (group, own_group, kept) in enumerate(zip(given, part, free, strict=True)):
                place = f"{where}.param_groups.{number}"
                if not isinstance(group, dict) or set(group) != set(own_group):
                    raise ValueError(f"'{place}' must hold {sorted(own_group)}")
                how = {key: group[key] for key in ("fused", "foreach") if key in group}
                if any(value not in (None, True, False) for value in map(_plain, how.values())):
                    raise ValueError(f"'{place}' must be fused or not")
                read = _like({key: value for key, value in group.items() if key not in how}, kept, place)
                for key, value in read.items():
                    if (key not in _CHANGING or key == "params") and value != own_group[key]:
                        raise ValueError(f"'{place}.{key}' is {bounded(value)}, but this run's is {own_group[key]!r}")
                if not 0 <= float(read.get("lr", 0)) < math.inf or any(
                    not 0 <= beta < 1 for beta in (*read.get("betas", ()), read.get("momentum", 0))
                ):
                    raise ValueError(f"'{place}' holds a learning rate or momentum that is out of range")
                checked[name].append(read | how)
        else:  # an optimizer within this one
            checked[name] = _like_optimizer(found[name], part, f"{where}.{name}")
    return checked


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | None) else "something else"


def _like(found: Any, own: Any, where: str) -> Any:
    """``found``, tensors copied, if it has the names, types and shapes of ``own``."""
    if isinstance(own, Tensor):
        if not own.ndim and isinstance(found, (int, float)) and abs(found) < 2**53:  # see `without_scalars`
            found = torch.tensor(found, dtype=own.dtype, device=own.device)
        return _tensor_like(found, own, where)
    if isinstance(own, Mapping):
        if not isinstance(found, dict) or set(found) != set(own):
            raise ValueError(f"'{where}' must hold {sorted(map(str, own))}")
        return {name: _like(found[name], own[name], f"{where}.{name}" if where else str(name)) for name in own}
    if isinstance(own, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(own):
            raise ValueError(f"'{where}' must hold {len(own)} values")
        return type(own)(
            _like(one, other, f"{where}.{n}") for n, (one, other) in enumerate(zip(found, own, strict=True))
        )
    if isinstance(own, (int, float)) and not isinstance(own, bool):
        number = isinstance(found, (int, float)) and not isinstance(found, bool)
        if not number or not (abs(found) < 2**53 or found == own):  # a plateau schedule holds an infinity
            raise ValueError(f"'{where}' must be a finite number")
        return found
    if type(found) is not type(own):
        raise ValueError(f"'{where}' must be a {type(own).__name__}, but is a {type(found).__name__}")
    return found


def _tensor_like(found: Any, own: Tensor, where: str) -> Tensor:
    plain = isinstance(found, Tensor) and found.layout is torch.strided and not (found.is_meta or found.is_quantized)
    if not plain or found.shape != own.shape or found.dtype != own.dtype:
        described = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"'{where}' must be a tensor {own.dtype} {list(own.shape)}, but is {described}")
    copied = found.detach().clone()
    bad = ~torch.isfinite(copied)
    if bad.any() and (bad & torch.isfinite(own).to(bad.device)).any():  # a network's mask may be infinite by design
        raise ValueError(f"NaN or infinity stands in '{where}'")
    if where.rpartition(".")[2] in _NOT_NEGATIVE and (copied < 0).any():
        raise ValueError(f"'{where}' holds a number below 0")
    return copied


def _leaves(value: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, (dict, list)):
        return [(where, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for name, item in items for leaf in _leaves(item, f"{where}.{name}")]
