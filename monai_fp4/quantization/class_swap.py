"""Give a layer the class of its FP4 counterpart, in place, and take it back; and carry along what went past its class.

Whatever refers to a layer sees its new class. What refers to one of its *methods* does not: a bound method, such as a
``layer.forward`` that a network kept in an attribute or in a list, holds the function of the class that the layer had.
:func:`rebind_methods` finds those that the modules of a model keep, and binds them anew. And torch's encoder layers
evaluate past their layers, by a fused function of their weights: :func:`leave_fused_paths` switches that off.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections import Counter
from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import nn

from monai_fp4.quantization.layers import NVFP4Layer, sharded_class
from monai_fp4.quantization.layers.attention import FP4Attention
from monai_fp4.quantization.layers.base import ADDED_ATTRIBUTES

__all__ = [
    "become",
    "become_float",
    "float_type_of",
    "has_own_forward",
    "leave_fused_paths",
    "rebind_methods",
    "restore_fused_paths",
]

_FUSED = ((nn.TransformerEncoderLayer, "activation_relu_or_gelu"), (nn.TransformerEncoder, "use_nested_tensor"))
"""Modules of torch that evaluate past their layers, and the attribute that allows it where it is not 0."""

_DEPTH = 3  # lists within lists, and no further


def float_type_of(module: nn.Module) -> type[nn.Module] | None:
    """The high-precision class behind an FP4 module (a backend may subclass the emulated layer), else None."""
    return module.float_type if isinstance(module, (NVFP4Layer, FP4Attention)) else None


def become(module: nn.Module, twin: nn.Module) -> None:
    """Give a module the class of its FP4 twin and what the twin has beside; every reference to the module sees that."""
    before, after = type(module), type(twin)
    sharded_from = sharded_class(before)
    if sharded_from is not None:
        after = _rebased(before, sharded_from, after)
    added = {key: value for key, value in twin.__dict__.items() if key not in module.__dict__}
    module.__dict__.update(added)
    if vars(after).get("float_type") is not before:  # else the class itself tells the way back
        module.__dict__["_float_class"] = (before, after)
    module.__class__ = after


def become_float(module: nn.Module) -> None:
    """Undo `become`; also for a layer that was made as an FP4 layer, and one that was parametrized since."""
    float_type = float_type_of(module)
    assert float_type is not None, "only FP4 modules are asked for"
    made_so = next(base for base in type(module).__mro__ if "float_type" in vars(base))
    float_type, fp4_type = module.__dict__.pop("_float_class", (float_type, made_so))
    module.__class__ = _rebased(type(module), fp4_type, float_type)
    for key in ADDED_ATTRIBUTES:
        module.__dict__.pop(key, None)


def has_own_forward(module: nn.Module) -> bool:
    """Whether somebody replaced the forward of this instance, and not by the very one that its class has.

    (accelerate leaves that one behind when it takes its hooks off.)
    """
    return any(
        name in module.__dict__ and not _is_method_of(module.__dict__[name], module, type(module))
        for name in ("forward", "_conv_forward")
    )


def rebind_methods(model: nn.Module, before: Mapping[nn.Module, type[nn.Module]]) -> None:
    """Bind anew the methods of modules that changed their class, wherever a module of the model keeps them.

    Args:
        model: attributes of its modules are looked through, and lists, tuples, dicts and partial functions in them.
        before: the class that each module had.
    """
    if before:
        for module in model.modules():
            for key in [key for key in module.__dict__ if key not in ("_parameters", "_buffers", "_modules")]:
                _replace(module.__dict__, key, before, _DEPTH)


def leave_fused_paths(model: nn.Module) -> list[str]:
    """Switch off the fused evaluation of torch's encoder layers that hold FP4 layers, and say so in notes."""
    found: Counter[str] = Counter()
    for module in model.modules():
        for kind, attribute in _FUSED:
            if isinstance(module, kind) and any(float_type_of(each) is not None for each in module.modules()):
                module.__dict__["_before_fp4"] = {attribute: getattr(module, attribute, 0)}
                setattr(module, attribute, 0)
                found[kind.__name__] += 1
    return [
        f"{number} x {kind}: torch's fused evaluation is off, so that evaluation computes in FP4 as training does"
        for kind, number in found.items()
    ]


def restore_fused_paths(model: nn.Module) -> None:
    """Undo `leave_fused_paths`."""
    for module in model.modules():
        module.__dict__.update(module.__dict__.pop("_before_fp4", {}))


def _rebound(value: Any, before: Mapping[nn.Module, type[nn.Module]], depth: int) -> Any:
    """The same value, with the methods in it bound anew; lists and dicts are changed in place."""
    if isinstance(value, MethodType):
        layer = value.__self__
        if isinstance(layer, nn.Module) and layer in before and _is_method_of(value, layer, before[layer]):
            return MethodType(getattr(type(layer), value.__name__), layer)
    elif depth and type(value) is tuple:
        items = tuple(_rebound(item, before, depth - 1) for item in value)
        return value if all(map(operator.is_, items, value)) else items
    elif depth and type(value) is functools.partial:
        called = _rebound(value.func, before, depth - 1)
        return value if called is value.func else functools.partial(called, *value.args, **value.keywords)
    elif depth and isinstance(value, list | dict):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            _replace(value, key, before, depth - 1)
    return value


def _replace(container: Any, key: Any, before: Mapping[nn.Module, type[nn.Module]], depth: int) -> None:
    value = container[key]
    new = _rebound(value, before, depth)
    if new is not value:
        container[key] = new


def _is_method_of(value: Any, module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a value is the method that the class gives the module under the method's own name."""
    return (
        isinstance(value, MethodType)
        and value.__self__ is module
        and inspect.getattr_static(kind, value.__name__, None) is value.__func__
    )


def _rebased(cls: type, old: type, new: type) -> type:
    """``cls`` with another class for its base ``old``: torch derives classes of its own to parametrize and to shard."""
    if cls is old:
        return new
    bases = tuple(_rebased(base, old, new) if issubclass(base, old) else base for base in cls.__bases__)
    space = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__.replace(old.__name__, new.__name__), bases, space)
