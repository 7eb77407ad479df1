"""Subclasses of torch's layers, and layers that users register: swapped where they compute what their base does."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stand_ins import SameConv2d, image
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import convert, register_layer, set_active, unconvert
from monai_fp4.quantization.layers import NVFP4Conv2d, NVFP4Layer, NVFP4Linear, subclasses
from monai_fp4.quantization.layers.conv3d_guard import SafeConv3d


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten with it."""
    monkeypatch.setattr(subclasses, "_REGISTERED", {})


class Conv3DSimple(nn.Conv3d):
    """As torchvision's: a constructor with fewer arguments."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, (3, 3, 3), padding=1, bias=False)

    @staticmethod
    def get_downsample_stride(stride: int) -> tuple[int, int, int]:
        return stride, stride, stride


class Named(nn.Linear):
    """Describes and initializes itself otherwise, and computes what a linear layer does."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return "named, " + super().extra_repr()


class Slotted(nn.Linear):
    __slots__ = ("note",)


PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a constructor of its own": (lambda: Conv3DSimple(16, 32), (1, 16, 4, 4, 4)),
    "another initialization": (lambda: Named(32, 48), (4, 32)),
    "slots": (lambda: Slotted(32, 48), (4, 32)),
    "a guard of ours": (lambda: SafeConv3d(16, 32, 3, padding=1), (1, 16, 4, 4, 4)),
}


def base_of(layer: nn.Module) -> nn.Module:
    """The same layer as one of torch's own classes."""
    kind = next(kind for kind in type(layer).__mro__ if kind in subclasses.LAYER_TYPES)
    plain = kind.__new__(kind)
    plain.__dict__.update(copy.deepcopy(layer.__dict__))
    return plain


@pytest.mark.parametrize("name", PLAIN)
def test_a_subclass_that_multiplies_as_its_base_is_swapped(name: str) -> None:
    build, shape = PLAIN[name]
    torch.manual_seed(0)
    layer, x = build(), image(*shape)
    kind, exact, keys = type(layer), layer(x), set(layer.__dict__)
    expected = convert(base_of(layer), "full")[0](x)
    layer, report = convert(layer, "full")
    assert isinstance(layer, kind) and isinstance(layer, NVFP4Layer)
    assert report.layers[0].kind == kind.__name__
    seen = report.after(lambda: layer(x))
    assert str(seen.layers[0].use) == "ran in FP4"
    assert torch.equal(layer(x), expected), "as torch's own class"
    set_active(layer, False)
    assert torch.equal(layer(x), exact), "inactive, bit for bit"
    assert type(unconvert(layer)) is kind
    assert set(layer.__dict__) == keys


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), "torch"])
@pytest.mark.parametrize("build", [lambda: Named(32, 48), lambda: nn.Linear(32, 48)])
def test_copies_and_files_of_it_compute_the_same(build: Callable[[], nn.Module], again: Any) -> None:
    model, _ = convert(nn.Sequential(build(), build()), "full", heads=[])
    if again == "torch":
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    else:
        twin = again(model)
    x = image(4, 32)
    assert torch.equal(twin[0](x), model[0](x))
    assert twin[0].weight is not model[0].weight
    assert [type(layer) for layer in unconvert(twin)] == [type(build())] * 2


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Checked(nn.Linear):
    """Has a method that FP4 layers have too."""

    def check(self) -> bool:
        return True


class Unsized(nn.Linear):
    """Never asked its base to construct it, and so does not know its sizes."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = nn.Parameter(torch.ones(32, 32)), None


class Failing(nn.Linear):
    @property
    def in_features(self) -> int:
        raise ValueError("not here")

    @in_features.setter
    def in_features(self, size: int) -> None:
        pass


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Doubled(32, 32), "own forward, and may compute something else"),
        (lambda: SameConv2d(32, 32, 3), "own forward, and may compute something else"),
        (lambda: Checked(32, 32), "own check, and may"),
        (Unsized, "does not say how many channels"),
        (lambda: Failing(32, 32), "does not say how many channels"),
        (lambda: nn.MultiheadAttention(32, 2).out_proj, "fused attention reads its weights"),
        (lambda: nn.LazyLinear(32), "not initialised yet"),
    ],
)
def test_what_may_compute_something_else_is_left_and_says_why(build: Callable[[], nn.Module], reason: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32), build(), nn.Linear(32, 2))
    kinds = [type(layer) for layer in model]
    model, report = convert(model, "full")
    found = next(layer for layer in report.layers if layer.name == "1")
    assert not found.quantized and reason in found.reason, found.reason
    assert [type(layer) for layer in model][1:] == kinds[1:]


def test_a_registered_layer_has_the_product_of_its_base_in_fp4() -> None:
    register_layer(Doubled)
    torch.manual_seed(0)
    layer, x = Doubled(32, 32), image(4, 32)
    exact, expected = layer(x), 2 * convert(base_of(layer), "full")[0](x)
    layer, report = convert(layer, "full")
    assert str(report.after(lambda: layer(x)).layers[0].use) == "ran in FP4"
    assert torch.equal(layer(x), expected)
    twin = pickle.loads(pickle.dumps(layer))
    assert torch.equal(twin(x), expected)
    assert type(unconvert(twin)) is Doubled and torch.equal(twin(x), exact)


class Deeper(Doubled):
    pass


def test_a_subclass_of_a_registered_layer_is_not_meant() -> None:
    register_layer(Doubled)
    assert not convert(Deeper(32, 32), "full")[1].layers[0].quantized


def test_a_registered_layer_that_multiplies_past_its_base_is_bypassed_and_said_so() -> None:
    register_layer(SameConv2d)
    model, report = convert(SameConv2d(32, 32, 3), "full")
    assert str(report.after(lambda: model(image(1, 32, 8, 8))).layers[0].use) == "bypassed"


class StdConv2d(nn.Conv2d):
    """As timm's: the weight is standardized before it is used."""

    def standardized(self) -> Tensor:
        return F.layer_norm(self.weight, self.weight.shape[1:])

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.standardized(), self.bias, self.stride, self.padding)


class FP4StdConv2d(NVFP4Conv2d, StdConv2d):
    float_type = StdConv2d

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.standardized(), self.bias)


class StdLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight / self.weight.norm(), self.bias)


class FP4StdLinear(NVFP4Linear, StdLinear):
    float_type = StdLinear

    def forward(self, input: Tensor) -> Tensor:
        return self._linear_forward(input, self.weight / self.weight.norm(), self.bias)


class Transposed(nn.Module):
    """As the ``Conv1D`` of GPT-2 in transformers: no linear layer of torch's, and its weight lies the other way."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(image(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class FP4Transposed(NVFP4Layer, Transposed):
    float_type = Transposed

    def forward(self, x: Tensor) -> Tensor:
        if not self.quantizing:
            return super().forward(x)
        return NVFP4Linear._linear_forward(self, x, self.weight.T, self.bias)  # type: ignore[arg-type]

    _multiply = NVFP4Linear._multiply


OWN: dict[str, tuple[type[nn.Module], type[NVFP4Layer], Callable[[], nn.Module], tuple[int, ...]]] = {
    "a convolution": (StdConv2d, FP4StdConv2d, lambda: StdConv2d(16, 32, 3, padding=1), (2, 16, 6, 6)),
    "a linear layer": (StdLinear, FP4StdLinear, lambda: StdLinear(32, 48), (4, 32)),
    "neither": (Transposed, FP4Transposed, lambda: Transposed(32, 48), (4, 32)),
}


@pytest.mark.parametrize("name", OWN)
def test_a_counterpart_of_ones_own_trains_and_goes_back(name: str) -> None:
    kind, fp4, build, shape = OWN[name]
    register_layer(kind, fp4)
    torch.manual_seed(0)
    layer, x = build(), image(*shape)
    exact = layer(x)
    exact.square().mean().backward()
    gradient, layer.weight.grad = layer.weight.grad, None
    layer, report = convert(layer, "sr")
    assert type(layer) is fp4 and report.quantized_parameters == report.parameters > 0
    layer(x).square().mean().backward()
    assert F.cosine_similarity(layer.weight.grad.flatten(), gradient.flatten(), dim=0) > 0.95
    assert not torch.equal(layer(x), exact)
    set_active(layer, False)
    assert torch.equal(layer(x), exact)
    assert type(unconvert(pickle.loads(pickle.dumps(layer)))) is kind


class NoCounterpart(NVFP4Linear, Doubled):
    """Its ``float_type`` is still that of its base."""


@pytest.mark.parametrize(
    "arguments",
    [
        (nn.Linear,),
        (nn.Linear, NVFP4Linear),
        (nn.LayerNorm,),
        (Transposed,),
        (Checked,),
        (Doubled, NVFP4Linear),
        (Doubled, NoCounterpart),
        (Doubled, Doubled),
        (nn.Linear(2, 2),),
        ("Linear",),
    ],
)
def test_what_is_no_pair_of_classes_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError):
        register_layer(*arguments)
