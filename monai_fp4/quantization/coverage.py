"""Which of the layers that `convert` swapped really compute in FP4, once the network runs.

A swapped layer is no promise. A network may read a layer's weight and multiply past it (torchvision's Swin passes
``qkv.weight`` to a function of its own), hold a bound ``forward`` of the class that the layer had before, or never call
the layer at all. :class:`Coverage` looks on:

* `observe` runs one forward pass and says of every layer whether it computed in FP4, was bypassed or never ran;
* in training it looks on by itself until the first step is over (an optimizer of torch has made one, or weights have
  changed), and warns once of layers whose weights were trained although their FP4 products never ran.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

from monai_fp4.quantization.layers.history import history_of

__all__ = ["Coverage", "Use"]


class Use(StrEnum):
    """What a swapped layer did while somebody looked on."""

    FP4 = "ran in FP4"
    INACTIVE = "switched off"
    """It was in high precision, by `monai_fp4.quantization.set_active`, or converted back, or again, since."""
    BYPASSED = "bypassed"
    """Its weight was used, and not by its FP4 products."""
    NEVER = "never ran"


_looking: weakref.WeakSet[Coverage] = weakref.WeakSet()


class Coverage:
    """What the swapped layers of one model do.

    Args:
        layers: each layer and attention block by name; they are not kept alive.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        # A layer that was converted again, or back, since has another history, or none, and is no affair of this one.
        self._layers = {name: (weakref.ref(layer), history_of(layer)) for name, layer in layers.items()}
        self._before: dict[int, tuple[int, bool]] | None = (
            None  # of each weight: its version, whether it had a gradient
        )
        for layer in layers.values():
            history_of(layer).observer = functools.partial(self._trains, weakref.ref(layer))

    def uses(self) -> dict[str, Use]:
        """What each layer did since it was converted; a layer that was never seen in FP4 counts as never run."""
        return {name: Use.FP4 if history.passes else Use.NEVER for name, (_, history) in self._layers.items()}

    def observe(self, forward: Callable[[], Any]) -> dict[str, Use]:
        """Run ``forward`` once, without a compiler, and say what each layer did in it."""
        passes = {name: history.passes for name, (_, history) in self._layers.items()}
        with torch.compiler.set_stance("force_eager"), _Touched() as touched:
            forward()
        uses = dict.fromkeys(passes, Use.INACTIVE)
        for name, layer in self._alive():
            if history_of(layer).passes > passes[name]:
                uses[name] = Use.FP4
            elif layer.active:
                weights = {id(parameter) for parameter in layer.parameters(recurse=False) if parameter.ndim > 1}
                uses[name] = Use.BYPASSED if weights & touched.parameters else Use.NEVER
        return uses

    def _alive(self) -> Iterator[tuple[str, nn.Module]]:
        for name, (reference, history) in self._layers.items():
            layer = reference()
            if layer is not None and layer.__dict__.get("history") is history:
                yield name, layer

    def _trains(self, reference: weakref.ref[nn.Module]) -> None:
        """Take note of a forward pass in training, and look on until a step of the optimizer is over."""
        if self._before is None:
            self._before = {id(each.weight): _version(each) for _, each in self._weighted()}
            _watch_optimizers()
            _looking.add(self)
        elif (layer := reference()) is not None and self._trained(layer):  # by hand, or by no optimizer of torch
            self._tell(self._trained)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """Say who was bypassed, if a step trained some of the weights."""
        groups = (group["params"] for group in optimizer.param_groups)
        trained = {id(weight) for weights in groups for weight in weights if weight.grad is not None}
        if trained & (self._before or {}).keys():
            self._tell(lambda layer: id(layer.weight) in trained)

    def _tell(self, trained: Callable[[nn.Module], bool]) -> None:
        """Warn of layers that were trained and did not run, and look away."""
        layers = list(self._weighted())
        reached = {id(each.weight) for _, each in layers if history_of(each).passes}  # tied weights count as reached
        bypassed = [
            name
            for name, each in layers
            if each.active and not history_of(each).passes and id(each.weight) not in reached and trained(each)
        ]
        _looking.discard(self)
        for _, each in self._alive():
            history_of(each).observer = None
        if bypassed:
            warnings.warn(
                f"{len(bypassed)} of {len(layers)} layers that convert swapped were trained without computing in"
                f" FP4, for something reads their weights past them: {', '.join(bypassed[:5])}"
                f"{', ...' if len(bypassed) > 5 else ''}; look at them with ConversionReport.after, and leave them"
                " out with convert(..., skip=[...])",
                stacklevel=2,
            )

    def _weighted(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, each) for name, each in self._alive() if isinstance(each._parameters.get("weight"), Tensor))

    def _trained(self, layer: nn.Module) -> bool:
        weight = layer._parameters.get("weight")
        if self._before is None or weight is None or id(weight) not in self._before:
            return False
        version, had_gradient = self._before[id(weight)]
        return _version(layer)[0] != version or (weight.grad is not None and not had_gradient)


def _version(layer: nn.Module) -> tuple[int, bool]:
    weight = layer._parameters["weight"]
    assert weight is not None
    # What was made in inference mode cannot be trained, and has no version.
    return 0 if weight.is_inference() else weight._version, weight.grad is not None


@functools.cache
def _watch_optimizers() -> None:
    """Tell whoever looks on of each step of any optimizer; fused ones leave no other trace."""

    def after(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        for coverage in list(_looking):
            coverage._stepped(optimizer)

    register_optimizer_step_post_hook(after)


class _Touched(TorchFunctionMode):
    """Collects the parameters that functions of torch compute with."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor | tuple | list):  # what reads a shape or a dtype does not compute
            given = [*args, *kwargs.values()]
            nested = (item for value in given for item in (value if isinstance(value, tuple | list) else (value,)))
            self.parameters.update(id(item) for item in nested if isinstance(item, nn.Parameter))
        return result
