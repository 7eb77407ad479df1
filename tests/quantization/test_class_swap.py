"""Methods of layers that a network keeps beside them: they follow the layer to FP4 and back."""

from __future__ import annotations

import copy
import functools
from types import MethodType

import pytest
import torch
from stand_ins import image
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.quantization import convert, set_active, unconvert


class KeepsMethods(nn.Module):
    """Calls each of its layers by a method that it bound at construction, each kept in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
        self.convolution = nn.Conv2d(32, 32, 1)
        methods = [layer.forward for layer in self.layers]
        self.first, self.listed, self.pair = methods[0], [methods[1]], (methods[2], "name")
        self.named = {"third": [methods[3]]}
        self.part, self.call = functools.partial(methods[4]), self.layers[5].__call__
        self.convolve = self.convolution._conv_forward

    def forward(self, x: Tensor) -> Tensor:
        for function in (self.first, *self.listed, self.pair[0], self.named["third"][0], self.part, self.call):
            x = function(x)
        return self.convolve(x[..., None, None], self.convolution.weight, None).flatten(1)


def test_methods_that_a_network_keeps_follow_the_layer_and_go_back() -> None:
    torch.manual_seed(0)
    model, x = KeepsMethods(), image(4, 32)
    exact, listed, named = model(x), model.listed, model.named
    model, report = convert(model, "full", heads=[])
    seen = report.after(lambda: model(x))
    assert {str(layer.use) for layer in seen.layers} == {"ran in FP4"}
    assert model.listed is listed and model.named is named and model.pair[1] == "name"
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))
    set_active(model, False)
    assert torch.equal(model(x), exact)
    unconvert(model)
    assert torch.equal(model(x), exact)
    assert model.first.__func__ is nn.Linear.forward


def test_methods_of_others_and_functions_stay_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
    other, partial = nn.Linear(32, 32), functools.partial(torch.add, 1)
    kept = {"other": other.forward, "norm": model[1].forward, "partial": partial, "number": 3, "tuple": (1, 2)}
    model.kept, model.circle = kept, [model]
    model.circle.append(model.circle)
    before = dict(kept)
    convert(model, "full", heads=[])
    assert model.kept is kept and all(kept[key] is before[key] for key in before)


@pytest.mark.parametrize("before", [True, False])
def test_a_forward_that_a_hook_left_behind_is_the_layers_own(before: bool) -> None:
    """accelerate's ``remove_hook_from_module`` puts the bound forward of the class on the instance."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), image(4, 32)
    exact = model(x)
    if before:
        model[0].forward = MethodType(nn.Linear.forward, model[0])
    model, report = convert(model, "full", heads=[])
    if not before:
        model[0].forward = model[0].forward
    assert [str(layer.use) for layer in report.after(lambda: model(x)).layers] == ["ran in FP4"] * 2
    unconvert(model)
    assert torch.equal(model(x), exact)


def test_a_forward_that_is_another_is_left_and_stops_the_way_back() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[0].forward = model[1].forward
    model, report = convert(model, "full", heads=[])
    assert [layer.quantized for layer in report.layers] == [False, True]
    model[1].forward = lambda x: x
    with pytest.raises(ConfigError, match="was replaced since"):
        unconvert(model)
