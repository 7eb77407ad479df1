"""Base of all NVFP4 layers: how a float layer becomes one, when it is active and which dtype it works in."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.recipes import Recipe

__all__ = ["NVFP4Layer", "check_image", "check_untransformed", "working_dtype"]


class NVFP4Layer(nn.Module):
    """Mixin over a float layer class: same parameters, same ``state_dict`` keys, same results while inactive.

    Attributes:
        recipe: which GEMMs are quantized and how.
        active: False runs the layer as its float class would, bit for bit; the precision schedule sets it.
    """

    float_type: ClassVar[type[nn.Module]]
    recipe: Recipe
    active: bool

    def __init__(self, *args: Any, recipe: Recipe | str, **kwargs: Any) -> None:
        """Create the layer; all arguments but ``recipe`` are those of the float class."""
        super().__init__(*args, **kwargs)
        self.recipe = Recipe.from_config(recipe)
        self.active = True
        self.check()

    @classmethod
    def from_float(cls, module: nn.Module, recipe: Recipe | str) -> Self:
        """Make the NVFP4 layer of a float layer.

        The two share their Parameters (so that an optimizer that holds them stays valid), their hooks and their mode.

        Args:
            module: a layer of `float_type`.
            recipe: what to quantize, and how.

        Raises:
            ConfigError: the module is of another type or of a shape that NVFP4 cannot take.
        """
        if not isinstance(module, cls.float_type):
            raise ConfigError(f"{cls.__name__} expected a {cls.float_type.__name__}, found a {type(module).__name__}")
        layer = cls.__new__(cls)
        for key, value in module.__dict__.items():
            layer.__dict__[key] = value.copy() if isinstance(value, dict) else value
        layer.recipe = Recipe.from_config(recipe)
        layer.active = True
        layer.check()
        return layer

    def check(self) -> None:
        """Raise ConfigError if this layer has a shape that cannot be quantized."""

    @property
    def quantizing(self) -> bool:
        """Whether the next forward pass is quantized."""
        return self.active and self.recipe.quantizes

    def quantized_operands(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what the forward GEMM of ``x`` reads: name -> (original, decoded from FP4), for health reports."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Append the recipe to the float layer's own description."""
        state = "" if self.quantizing else ", inactive"
        return f"{super().extra_repr()}, recipe={self.recipe.name}{state}"


def check_image(x: Tensor, channels: int, dims: int) -> None:
    """Refuse, with a ConfigError, what is no ``[N, channels, *spatial]`` or ``[channels, *spatial]``.

    The compiled products read memory by the sizes that they are given: a wrong one must not reach them.
    """
    if x.dim() not in (dims + 1, dims + 2):
        raise ConfigError(
            f"a {dims}D convolution expected {dims + 2} axes [N, {channels}, ...], or {dims + 1} without N, found shape"
            f" {tuple(x.shape)}: check what precedes it"
        )
    if x.shape[-1 - dims] != channels:
        raise ConfigError(
            f"a convolution expected an image of {channels} channels, found {x.shape[-1 - dims]} (shape"
            f" {tuple(x.shape)}): check what precedes it"
        )


def check_untransformed() -> None:
    """Refuse, with a ConfigError, to be run inside a transform of `torch.func`, which torch refuses less clearly.

    `vmap` would have to give each example a maximum of its own, and rounding has no forward-mode derivative.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise ConfigError(
            "FP4 layers expected a plain forward pass, found one inside torch.func (vmap, grad, jvp): use autograd and"
            " whole batches there, or switch the layers off with monai_fp4.quantization.conversion.set_active"
        )


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that a float layer would work in: autocast's where it is on, else that of ``x``.

    It is the dtype of the output and of both gradients, and of the operands of whatever is multiplied in high
    precision, and what the input is cast to before it is quantized (see `monai_fp4.quantization.layers.operands`).
    """
    device = x.device.type
    if device == "meta":  # where only shapes are computed; autocast does not know it
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
