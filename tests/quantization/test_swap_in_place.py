"""A swapped layer is the object that it was: whatever refers to it, hooks it or wraps it sees the FP4 layer."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
import weakref
from typing import Any

import pytest
import torch
from stand_ins import LoRALinear, image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import convert, set_active, unconvert
from monai_fp4.quantization.layers import NVFP4Conv2d, NVFP4Linear


def layers(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


class Listed(nn.Module):
    """Keeps its layers in a plain list too, and runs them from there."""

    def __init__(self) -> None:
        super().__init__()
        self.registered = layers(32, 32, 32)
        self.plain = list(self.registered)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.plain:
            x = layer(x)
        return x


def test_every_reference_sees_the_layer() -> None:
    model = Listed()
    reference = weakref.ref(model.plain[0])
    called = model.plain[0].__call__
    model, report = convert(model, "full", heads=[])
    assert isinstance(reference(), NVFP4Linear)
    x = image(4, 32)
    report = report.after(lambda: (model(x), called(x)))
    assert [str(layer.use) for layer in report.layers] == ["ran in FP4", "ran in FP4"]
    assert reference().history.passes == 2


def test_a_layer_alone_is_converted_in_place_and_back() -> None:
    layer = nn.Linear(32, 48)
    before = dict(layer.__dict__)
    model, _ = convert(layer, "full")
    assert model is layer
    assert isinstance(layer, NVFP4Linear)
    assert unconvert(layer) is layer
    assert type(layer) is nn.Linear
    assert layer.__dict__.keys() == before.keys()


def test_hooks_from_before_can_be_removed_and_those_of_loading_live() -> None:
    model = layers(32, 32, 32)
    seen: list[str] = []
    handles = [
        model[0].register_forward_hook(lambda *_: seen.append("forward")),
        model[0].register_forward_pre_hook(lambda *_: seen.append("pre")),
        model[0].register_full_backward_hook(lambda *_: seen.append("backward")),
        model[0].register_load_state_dict_pre_hook(lambda module, *_: seen.append(type(module).__name__)),
    ]
    convert(model, "full", heads=[])
    model(image(4, 32).requires_grad_()).sum().backward()
    model.load_state_dict(model.state_dict())
    assert seen == ["pre", "forward", "backward", "NVFP4Linear"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(image(4, 32)).sum().backward()
    model.load_state_dict(model.state_dict())
    unconvert(model)
    model(image(4, 32))
    assert not seen


def replaced_forward(layer: nn.Module) -> None:
    """As accelerate's ``add_hook_to_module`` does."""
    old = layer.forward

    def new_forward(module: nn.Module, *args: Any) -> Any:
        return 2 * old(*args)

    layer.forward = functools.update_wrapper(functools.partial(new_forward, layer), old)


def test_a_layer_whose_forward_was_replaced_is_left_and_named() -> None:
    model = layers(32, 32, 32)
    replaced_forward(model[0])
    expected = model[0](image(4, 32))
    model, report = convert(model, "full", heads=[])
    assert type(model[0]) is nn.Linear
    assert "forward was replaced" in report.layers[0].reason
    assert torch.equal(model[0](image(4, 32)), expected)


def test_a_forward_replaced_after_convert_calls_the_fp4_layer_and_stops_unconvert() -> None:
    model, _ = convert(layers(32, 32, 32), "full", heads=[])
    plain = model[0](image(4, 32))
    replaced_forward(model[0])
    assert torch.equal(model[0](image(4, 32)), 2 * plain)
    for call in (unconvert, lambda model: convert(model, "sr")):
        with pytest.raises(ConfigError, match="forward of '0' was replaced"):
            call(model)
    assert isinstance(model[1], NVFP4Linear)
    del model[0].forward
    assert type(unconvert(model)[0]) is nn.Linear


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
def test_parametrizations_after_convert(names: tuple[str, ...]) -> None:
    x = image(4, 32)
    model, _ = convert(layers(32, 32, 32), "full", heads=[])
    for name in names:
        parametrize.register_parametrization(model[0], name, Doubled())
    doubled = model(x)
    assert model[0].history.passes == 1
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), doubled)
    unconvert(model)
    assert isinstance(model[0], nn.Linear)
    assert not isinstance(model[0], NVFP4Linear)
    assert type(model[0]).__name__ == "ParametrizedLinear"
    expected = layers(32, 32, 32)
    for name in names:
        parametrize.register_parametrization(expected[0], name, Doubled())
    assert torch.equal(model(x), expected(x))
    model, report = convert(model, "sr", heads=[])
    assert report.layers[-1].quantized
    for name in names:
        parametrize.remove_parametrizations(model[0], name)
    assert type(model[0]) is nn.Linear
    assert convert(model, "sr", heads=[])[1].layers[0].quantized


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: nn.Linear(32, 32), (4, 32)),
        (lambda: nn.Conv2d(32, 32, 3, padding="same"), (1, 32, 4, 4)),
        (lambda: nn.Conv1d(32, 32, 3, padding=1, padding_mode="circular"), (1, 32, 4)),
        (lambda: nn.ConvTranspose2d(32, 32, 2, stride=2), (1, 32, 4, 4)),
    ],
)
def test_a_parametrization_is_computed_once_a_call_as_torch_does(
    build: Any, size: tuple[int, ...], name: str, grad: bool
) -> None:
    """One that counts, draws noise or iterates, as spectral norm does, would give another weight the second time."""
    layer, _ = convert(build(), "full")
    parametrize.register_parametrization(layer, name, Counted())
    counted = layer.parametrizations[name][0]
    for active in (True, False):
        set_active(layer, active)
        counted.calls = 0
        with torch.set_grad_enabled(grad):
            layer(image(*size))
        assert counted.calls == 1


@pytest.mark.parametrize("how", ["prune", "spectral_norm", "weight_norm"])
def test_weights_that_hooks_compute_since_convert(how: str) -> None:
    """torch's older way: a hook sets a plain tensor in the weight's place before each call."""
    from torch.nn.utils import prune

    model, _ = convert(layers(32, 32, 32), "full", heads=[])
    if how == "prune":
        prune.l1_unstructured(model[0], "weight", 0.5)
    else:
        getattr(nn.utils, how)(model[0])
    model(image(4, 32)).sum().backward()
    assert model[0].history.passes == 1
    assert type(unconvert(model)[0]) is nn.Linear
    assert model(image(4, 32)).shape == (4, 32)
    _, report = convert(model, "full", heads=[])
    assert "computed from other parameters" in report.layers[0].reason


def test_a_parametrization_taken_off_again_leaves_the_fp4_layer() -> None:
    model, _ = convert(layers(32, 32, 32), "full", heads=[])
    parametrize.register_parametrization(model[0], "weight", Doubled())
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is NVFP4Linear
    assert type(unconvert(model)[0]) is nn.Linear


def test_copies_and_pickles_go_back_too() -> None:
    model, _ = convert(nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 32, 3)), "sr", heads=[])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin[0], NVFP4Conv2d)
        assert twin[0] is not model[0]
        unconvert(twin)
        assert type(twin[0]) is nn.Conv2d
    assert isinstance(model[0], NVFP4Conv2d)


@pytest.mark.parametrize("rank", [8, 16])
def test_low_rank_factors_are_swapped_or_said_to_be_left(rank: int) -> None:
    model = nn.Sequential(LoRALinear(nn.Linear(32, 32), rank), nn.LayerNorm(32))
    model, report = convert(model, "sr")
    found = {layer.name: layer for layer in report.layers}
    assert found["0.base_layer"].quantized
    for name in ("0.lora_A", "0.lora_B"):
        assert found[name].quantized == (rank == 16)
        assert rank == 16 or "8" in found[name].reason
    model(image(4, 32)).square().sum().backward()
    assert model[0].lora_A.weight.grad.abs().sum() > 0
    assert model[0].base_layer.weight.grad is None


def test_a_model_of_doubles_is_left_and_says_why() -> None:
    model, report = convert(layers(32, 32, 32).double(), "full", heads=[])
    assert not any(layer.quantized for layer in report.layers)
    assert "torch.float64" in report.layers[0].reason
    assert model(image(4, 32).double()).dtype is torch.float64


def test_a_model_without_memory_is_converted_and_filled_later() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32 * 16, 32))
    model, report = convert(model, "sr", heads=[])
    assert "device meta" in report.notes[0]
    assert model(torch.empty(2, 16, 6, 6, device="meta")).shape == (2, 32)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    assert model(image(2, 16, 6, 6)).isfinite().all()


def test_the_schedule_switches_what_every_reference_sees() -> None:
    model, _ = convert(Listed(), "full", heads=[])
    assert set_active(model, False) == 2
    assert torch.equal(model(image(4, 32)), Listed()(image(4, 32)))
