"""What all NVFP4 layers share: how a float layer becomes one, when it is active, and how a call enters it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from monai_fp4.errors import ConfigError
from monai_fp4.quantization.formats.philox import keys_from
from monai_fp4.quantization.layers.custom_operator import observed
from monai_fp4.quantization.layers.guards import check_not_onnx, check_untransformed
from monai_fp4.quantization.layers.history import LayerHistory
from monai_fp4.quantization.recipes import Recipe

__all__ = ["PLAIN", "NVFP4Layer", "add_bias", "check_image", "leaves_to_torch", "working_dtype"]


ADDED_ATTRIBUTES = ("recipe", "active", "history", "_te")
"""What FP4 layers and attention blocks keep beside what the float class has; ``_te`` is Transformer Engine's layer."""

PLAIN = (Tensor, nn.Parameter, FakeTensor)
"""Types of tensors that may be computed on directly; subclasses of them dispatch on their own."""


class NVFP4Layer(nn.Module):
    """Mixin over a float layer class: same parameters, same ``state_dict`` keys, same results while inactive.

    Like the float layer it reads its public attributes and the shape of its weight at each call, so what is changed
    after construction counts.

    Attributes:
        recipe: which GEMMs are quantized and how.
        active: False runs the layer as its float class would, bit for bit; the precision schedule sets it.
        history: how often it ran in FP4, and its stream of random bits.
    """

    float_type: ClassVar[type[nn.Module]]
    recipe: Recipe
    active: bool
    history: LayerHistory
    weight: Tensor

    def __init__(self, *args: Any, recipe: Recipe | str, **kwargs: Any) -> None:
        """Create the layer; all arguments but ``recipe`` are those of the float class."""
        super().__init__(*args, **kwargs)
        self.recipe, self.active, self.history = Recipe.from_config(recipe), True, LayerHistory()
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
        layer.recipe, layer.active, layer.history = Recipe.from_config(recipe), True, LayerHistory()
        layer.check()
        return layer

    def check(self) -> None:
        """Raise ConfigError if this layer has a shape that cannot be quantized."""

    @property
    def quantizing(self) -> bool:
        """Whether the next forward pass is quantized."""
        return self.active and self.recipe.quantizes

    def in_fp4(
        self, input: Tensor, weight: Tensor, compute: Callable[[Tensor], Tensor], *, operators: bool = True
    ) -> Tensor:
        """Run the quantized forward pass ``compute`` of an input, which may be of any subclass of Tensor.

        Args:
            input: what the layer was given.
            weight: what it multiplies with. Layers read their attribute ``weight`` once a call, as torch's do: where it
                is parametrized, that computes it, counts a power iteration or draws a noise.
            compute: the pass of a plain tensor.
            operators: whether it consists of operators of torch, which a compiler can follow.

        Raises:
            ConfigError: input or weight are no tensors of plain memory, or this is a transform of `torch.func`.
        """
        if torch.compiler.is_dynamo_compiling():
            if operators and type(input) in PLAIN and type(weight) in PLAIN:
                return compute(input)
            # One break of the graph. Here and no decorator, which would import the compiler, and Triton, with this.
            answer: Tensor = torch.compiler.disable(self._in_fp4)(input, weight, compute, operators)
            return answer
        if isinstance(input, torch.fx.Proxy):  # torch.fx keeps torch's own layers whole too
            path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
            node: Tensor = input.tracer.create_proxy("call_module", path, (input,), {})
            return node
        return self._in_fp4(input, weight, compute, operators)

    def _in_fp4(self, input: Tensor, weight: Tensor, compute: Callable[[Tensor], Tensor], operators: bool) -> Tensor:
        seen = observed()
        if not (operators and seen):  # operators count when they run
            self.history.record()
        check_untransformed()
        if seen:
            check_not_onnx()
        _check_memory(input, "input")
        _check_memory(weight, "weight")
        with keys_from(self.history.next_key):
            # MONAI's MetaTensor, say: it answers as it answers for torch's own layers.
            if type(input) not in PLAIN and has_torch_function_unary(input):
                answer: Tensor = handle_torch_function(_on_plain, (input,), input, compute)
                return answer
            return compute(input)

    def quantized_operands(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what the forward GEMM of ``x`` reads: name -> (original, decoded from FP4), for health reports."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Append the recipe to the float layer's own description."""
        state = "" if self.quantizing else ", inactive"
        return f"{super().extra_repr()}, recipe={self.recipe.name}{state}"

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse `torch.jit.script`, which asks every module for a form that it can compile."""
        raise ConfigError(
            f"torch.jit.script cannot compile FP4 layers, found {type(self).__name__}: script the network that"
            " monai_fp4.quantization.unconvert gives back, or record this one with torch.jit.trace"
        )


def _on_plain(input: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    return compute(input.as_subclass(Tensor))


def _check_memory(tensor: Tensor, what: str) -> None:
    """Refuse what holds its numbers elsewhere: DTensor, nested and quantized tensors, and the like."""
    if type(tensor) in PLAIN:
        plain = tensor.layout is torch.strided or type(tensor) is FakeTensor
    else:
        plain = not (tensor.is_nested or is_traceable_wrapper_subclass(tensor))
    if not plain:
        raise ConfigError(
            f"an FP4 layer expected its {what} in plain memory, found a {type(tensor).__name__} of layout"
            f" {tensor.layout}: make it dense, gather it (fully_shard does, before each layer runs), or leave the layer"
            " in high precision with convert(..., skip=[...])"
        )


def add_bias(y: Tensor, bias: Tensor | None, axes: int = 0) -> Tensor:
    """Add a bias of the channels to a fresh result ``[N, channels, *spatial]`` of that many spatial axes.

    Raises:
        ConfigError: there are not as many biases as channels.
    """
    if bias is None:
        return y
    channels = y.shape[-1 - axes]
    if not torch.jit.is_tracing() and bias.shape != (channels,):
        raise ConfigError(
            f"an FP4 layer whose weight has {channels} outputs expected as many biases, found shape"
            f" {tuple(bias.shape)}: shorten both when outputs are pruned"
        )
    return y.add_(bias.to(y.dtype).view(-1, *(1,) * axes))


def check_image(x: Tensor, channels: int, dims: int) -> None:
    """Refuse, with a ConfigError, what is no ``[N, channels, *spatial]`` or ``[channels, *spatial]``.

    The compiled products read memory by the sizes that they are given: a wrong one must not reach them.
    """
    if torch.jit.is_tracing():  # sizes are no numbers then; what is recorded looks at them itself
        return
    if x.dim() not in (dims + 1, dims + 2):
        raise ConfigError(
            f"a {dims}D convolution expected {dims + 2} axes [N, {channels}, ...], or {dims + 1} without N, found shape"
            f" {tuple(x.shape)}: check what precedes it"
        )
    if x.shape[-1 - dims] != channels:
        raise ConfigError(
            f"a convolution whose weight takes {channels} channels found an image of {x.shape[-1 - dims]} (shape"
            f" {tuple(x.shape)}): check what precedes it"
        )


def leaves_to_torch(x: object) -> bool:
    """Whether an input is torch's affair: one with nothing to multiply, or no tensor at all.

    While a tracer records, nothing is known to be empty, and what `torch.fx` passes for a tensor has no size.
    """
    if isinstance(x, Tensor):
        return not torch.jit.is_tracing() and x.numel() == 0
    return not isinstance(x, torch.fx.Proxy)


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that a float layer would work in: autocast's where it is on, else that of ``x``.

    It is the dtype of the output and of both gradients, and of the operands of whatever is multiplied in high
    precision, and what the input is cast to before it is quantized (see `monai_fp4.quantization.layers.operands`).
    """
    device = x.device.type
    if device == "meta":  # where only shapes are computed; autocast does not know it
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
