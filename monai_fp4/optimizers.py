"""Optimizers beside AdamW: Muon for the matrices of a network, AdamW for the rest.

Muon orthogonalises the update of a weight matrix (Jordan et al., 2024). Torch has it for matrices only, so here a
convolution's weight is seen as the matrix of its output channels by everything else, and what is no matrix (biases,
normalisation, a head with one output) is left to AdamW, as its authors do. With ``match_rms_adamw`` (Liu et al., 2025,
arXiv 2502.16982) its updates are as large as AdamW's, so it takes AdamW's learning rate.

>>> import torch
>>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 1, 1))
>>> optimizer = MuonAdamW(network.named_parameters(), lr=0.001)
>>> [len(group["params"]) for group in optimizer.param_groups]
[1, 3]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adamax, AdamW, Muon, Optimizer

from monai_fp4.errors import unknown_name

__all__ = ["MuonAdamW", "paper_optimizer"]


class MuonAdamW(Optimizer):
    """Two optimizers behind the interface of one.

    Args:
        params: the named parameters of a network.
        lr: learning rate of both.
        weight_decay: decoupled, of both.
        momentum: Muon's.
        betas: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        named = [(name, parameter) for name, parameter in params if parameter.requires_grad]
        matrices = [parameter for name, parameter in named if _is_matrix(name, parameter)]
        chosen = set(map(id, matrices))
        others = [parameter for _, parameter in named if id(parameter) not in chosen]
        groups = [{"params": group} for group in (matrices, others)]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas})
        # Views: what Muon writes into them stands in the network's own weights.
        self._views = [nn.Parameter(_as_matrix(parameter.detach(), parameter)) for parameter in matrices]
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._muon = (
            Muon(self._views, momentum=momentum, adjust_lr_fn="match_rms_adamw", **options) if matrices else None
        )
        self._adamw = AdamW(others, betas=betas, **options) if others else None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy needs beside what torch copies."""
        return {**super().__getstate__(), "_views": self._views, "_muon": self._muon, "_adamw": self._adamw}

    def _inner(self) -> list[tuple[str, Optimizer, dict[str, Any]]]:
        """Name, optimizer and the group that a schedule changes."""
        both = (("muon", self._muon, self.param_groups[0]), ("adamw", self._adamw, self.param_groups[1]))
        return [(name, optimizer, group) for name, optimizer, group in both if optimizer is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter, view in zip(self.param_groups[0]["params"], self._views, strict=True):
            # Taken anew: a network that is moved or laid out otherwise meanwhile has its weights somewhere else.
            view.data = _as_matrix(parameter.detach(), parameter)
            view.grad = None if parameter.grad is None else _as_matrix(parameter.grad, parameter)
        for _, optimizer, group in self._inner():
            inner = optimizer.param_groups[0]
            inner.update({name: group[name] for name in ("lr", "weight_decay", "momentum", "betas") if name in inner})
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The groups, and the state of both."""
        return {**super().state_dict(), **{name: optimizer.state_dict() for name, optimizer, _ in self._inner()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        for name, optimizer, _ in self._inner():
            optimizer.load_state_dict(state_dict[name])


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """A weight with two sides; tables of positions are none, whatever their shape."""
    if parameter.ndim < 2 or name.rpartition(".")[2] != "weight":
        return False
    return min(parameter.shape[0], parameter[0].numel()) > 1


def _as_matrix(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A parameter ``[O, I, *kernel]``, or its gradient, as ``[O, columns]``, without a copy where the memory allows it.

    The columns are in the order of the parameter's memory: ``[I, *kernel]``, or ``[*kernel, I]`` when the channels are
    innermost. Muon does not mind, since it acts from the left.
    """
    if not parameter.is_contiguous() and tensor.ndim > 2:
        tensor = tensor.movedim(1, -1)
    return tensor.reshape(tensor.shape[0], -1)


def paper_optimizer(params: Iterable[nn.Parameter], name: str, lr: float) -> Optimizer:
    """Make one of the two optimizers of arXiv 2605.27616; decay reaches every parameter, norms and biases too.

    Args:
        params: of a network.
        name: ``"adamax"`` (no decay: the paper's CNN and one of its ViTs) or ``"adamw"`` (decay 1e-4: Swin and the
            other ViT).
        lr: learning rate; the paper's are 5e-4 for Adamax and 1e-4 for AdamW.

    Raises:
        ConfigError: another name.
    """
    if name == "adamax":
        return Adamax(params, lr=lr)
    if name == "adamw":
        return AdamW(params, lr=lr, weight_decay=1e-4)
    raise unknown_name("optimizer", name, ["adamax", "adamw"])
