"""Which FP4 layer takes the place of a layer's class: one of torch's, a subclass of it, or one that was registered.

A subclass that overrides nothing that multiplies, such as torchvision's ``Conv3DSimple`` (a constructor with fewer
arguments), gets an FP4 class derived from both, so that it stays an instance of itself. A subclass with a ``forward``
of its own may compute something else. Whoever knows that it does not says so with :func:`register_layer`.
"""

from __future__ import annotations

import copyreg
import functools
import types
from typing import Any

from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.layers.base import NVFP4Layer
from monai_fp4.quantization.layers.conv import NVFP4Conv1d, NVFP4Conv2d, NVFP4Conv3d
from monai_fp4.quantization.layers.linear import NVFP4Linear
from monai_fp4.quantization.layers.transpose import NVFP4ConvTranspose1d, NVFP4ConvTranspose2d, NVFP4ConvTranspose3d

__all__ = ["LAYER_TYPES", "channels", "fp4_layer", "overridden", "register_layer", "sharded_class"]

LAYER_TYPES: dict[type[nn.Module], type[NVFP4Layer]] = {
    layer.float_type: layer
    for layer in (
        NVFP4Linear,
        NVFP4Conv1d,
        NVFP4Conv2d,
        NVFP4Conv3d,
        NVFP4ConvTranspose1d,
        NVFP4ConvTranspose2d,
        NVFP4ConvTranspose3d,
    )
}
"""The FP4 layer of each class of torch's."""

_REGISTERED: dict[type[nn.Module], type[NVFP4Layer]] = {}


def register_layer(kind: type[nn.Module], fp4_type: type[NVFP4Layer] | None = None) -> None:
    """Let `monai_fp4.quantization.convert` swap layers of a class of your own.

    Args:
        kind: the class, exactly: its subclasses are not meant.
        fp4_type: its FP4 counterpart, derived from an FP4 layer and from ``kind``, with ``float_type = kind``. If None,
            one is made for a subclass of a layer of torch's: the product that its ``forward`` asks the base class for,
            by ``super().forward(x)`` or ``self._conv_forward(x, weight, bias)``, is then in FP4. What it multiplies
            past the base class stays in high precision, and ``ConversionReport.after`` calls the layer bypassed.

    Raises:
        ConfigError: the classes are no such pair, or nothing is known to derive the counterpart from.

    >>> import torch
    >>> from monai_fp4.quantization import convert
    >>> class Doubled(nn.Linear):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> register_layer(Doubled)
    >>> layer, report = convert(Doubled(32, 32), "full")
    >>> isinstance(layer, Doubled), str(report.after(lambda: layer(torch.ones(4, 32))).layers[0].use)
    (True, 'ran in FP4')
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or kind in LAYER_TYPES:
        raise ConfigError(f"register_layer expected a class of layers other than torch's own, found {kind!r}")
    if fp4_type is None:
        base = _base(kind)
        if base is None:
            raise ConfigError(
                f"register_layer derives FP4 layers of linear layers and convolutions of torch's, found"
                f" {kind.__name__}, which is neither: give its FP4 counterpart as well"
            )
        if clashes := set(overridden(kind)) - {"forward", "_conv_forward"}:
            raise ConfigError(
                f"{kind.__name__} overrides {', '.join(sorted(clashes))}, which FP4 layers have too: rename them, or"
                " give its FP4 counterpart as well"
            )
        fp4_type = _derived((kind, LAYER_TYPES[base]))
    fits = isinstance(fp4_type, type) and issubclass(fp4_type, NVFP4Layer) and issubclass(fp4_type, kind)
    if not fits or fp4_type.float_type is not kind:
        raise ConfigError(
            f"register_layer expected a class derived from an FP4 layer and from {kind.__name__}, with float_type ="
            f" {kind.__name__}, found {fp4_type!r}"
        )
    _REGISTERED[kind] = fp4_type


def fp4_layer(kind: type[nn.Module]) -> type[NVFP4Layer] | None:
    """Find the FP4 layer for a class, or None where its layers stay in high precision."""
    kind = sharded_class(kind) or kind
    base = _base(kind)
    known = LAYER_TYPES.get(kind) or _REGISTERED.get(kind)
    if known is not None or base is None:
        return known
    if kind in LAYER_TYPES[base].__mro__:  # one of ours, which guards torch's and is the FP4 layer's base too
        return LAYER_TYPES[base]
    return None if overridden(kind) else _derived((LAYER_TYPES[base], kind))


def overridden(kind: type[nn.Module]) -> list[str]:
    """The names that a subclass of a layer of torch's defines anew and that decide what the layer computes."""
    base = _base(kind)
    if base is None:
        return []
    own = {name for each in kind.__mro__ if not issubclass(base, each) for name in vars(each)}
    ours = {name for each in LAYER_TYPES[base].__mro__ if not issubclass(base, each) for name in vars(each)}
    decisive = ours - {"extra_repr"} | {"forward", "_conv_forward"}
    return sorted(name for name in own & decisive if not name.startswith("__"))


def sharded_class(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The class of a layer before ``fully_shard`` was applied to it, which derives a class of its own; else None."""
    bases = kind.__bases__
    return bases[1] if len(bases) == 2 and bases[0].__module__.startswith("torch.distributed") else None


def channels(layer: nn.Module) -> tuple[int, int, int] | None:
    """Input channels, output channels and groups of a layer that multiplies, else None.

    Of a registered layer that is neither a linear layer nor a convolution they are read off its weight, ``[outputs,
    inputs, ...]``.
    """
    try:
        if isinstance(layer, nn.Linear):
            return int(layer.in_features), int(layer.out_features), 1
        if isinstance(layer, nn.modules.conv._ConvNd):
            return int(layer.in_channels), int(layer.out_channels), int(layer.groups)
        if type(layer) in _REGISTERED or isinstance(layer, NVFP4Layer):
            return layer.weight.shape[1], layer.weight.shape[0], 1  # type: ignore[index, union-attr, return-value]
    except Exception:  # a subclass that never asked its base to construct it, or whose properties fail
        return None
    return None


def _base(kind: type[nn.Module]) -> type[nn.Module] | None:
    return next((known for known in LAYER_TYPES if issubclass(kind, known)), None)


@functools.lru_cache(maxsize=256)  # a program may make classes without end
def _derived(bases: tuple[type, ...]) -> type[NVFP4Layer]:
    kind = next(base for base in bases if not issubclass(base, NVFP4Layer))

    def body(space: dict[str, Any]) -> None:
        space.update(float_type=kind, __module__=kind.__module__, __doc__=kind.__doc__, __reduce_ex__=_reduce)

    return types.new_class(f"NVFP4{kind.__name__}", bases, exec_body=body)


def _reduce(layer: NVFP4Layer, protocol: Any) -> Any:
    """Store a layer of a derived class by the class that it was derived from, which Python finds by its name."""
    reduced: Any = object.__reduce_ex__(layer, protocol)
    if reduced[0] is copyreg.__newobj__ and "float_type" in vars(type(layer)):  # type: ignore[attr-defined]
        return (_rebuild, (layer.float_type,), *reduced[2:])
    return reduced


def _rebuild(kind: type[nn.Module]) -> nn.Module:
    derived = fp4_layer(kind)
    assert derived is not None, "only layers of a class that has a counterpart are stored so"
    layer: nn.Module = derived.__new__(derived)
    return layer
