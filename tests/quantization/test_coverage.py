"""What the report says of layers when the network runs: reached in FP4, bypassed, switched off, never run."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from stand_ins import WindowBlock, image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_fp4.quantization import ConversionReport, convert, set_active, unconvert


def uses(report: object) -> dict[str, str]:
    return {layer.name: str(layer.use) for layer in report.layers if layer.use}


class Bound(nn.Module):
    """Keeps a bound ``forward`` of the class that its layer has at construction, where nobody can look for it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(32, 32), nn.Linear(32, 32)
        forward = self.linear.forward
        self.project = lambda x: forward(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.project(x))


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "weights given to a function": (
        WindowBlock,
        {"qkv": "bypassed", "proj": "bypassed", "mlp.0": "ran in FP4", "mlp.2": "ran in FP4"},
    ),
    "a bound forward": (Bound, {"linear": "bypassed", "other": "ran in FP4"}),
    "a layer that nothing calls": (Idle, {"used": "ran in FP4", "idle": "never ran"}),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_report_says_what_ran(name: str, grad: bool) -> None:
    build, expected = CASES[name]
    model, report = convert(build(), "full", heads=[])
    claimed = report.quantized_parameters
    with torch.set_grad_enabled(grad):
        seen = report.after(lambda: model(image(2, 4, 32)))
    assert uses(seen) == expected
    reached = [layer for layer in seen.layers if layer.use == "ran in FP4"]
    assert seen.quantized_parameters == sum(layer.parameters for layer in reached) < claimed
    assert uses(report) == {}, "a report is a record, and stays as it was"
    idle = next(use for use in expected.values() if use != "ran in FP4")
    assert idle in seen.summary() and idle in str(seen)
    assert json.loads(json.dumps(seen.to_dict()))["layers"]


def test_layers_that_are_switched_off_are_said_to_be() -> None:
    model, report = convert(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), "full", heads=[])
    set_active(model, False)
    assert set(uses(report.after(lambda: model(image(4, 32)))).values()) == {"switched off"}
    set_active(model, True)
    assert set(uses(report.after(lambda: model(image(4, 32)))).values()) == {"ran in FP4"}


class ByHand:
    """A step that no optimizer of torch makes."""

    def __init__(self, parameters: Iterable[Tensor], rate: float) -> None:
        self.parameters, self.rate = list(parameters), rate

    def zero_grad(self, *, set_to_none: bool) -> None:
        for parameter in self.parameters:
            parameter.grad = None if set_to_none or parameter.grad is None else torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self) -> None:
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter -= self.rate * parameter.grad


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": torch.optim.AdamW,
    "fused": functools.partial(torch.optim.AdamW, fused=True),
    "by hand": ByHand,
}


def train(model: nn.Module, steps: int, x: Tensor, *, to_none: bool = True, by: str = "adam") -> list[str]:
    optimizer = OPTIMIZERS[by](model.parameters(), 1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=to_none)
            model(x).square().mean().backward()
            optimizer.step()
    return [str(warning.message) for warning in caught if "without computing in FP4" in str(warning.message)]


@pytest.mark.parametrize("by", OPTIMIZERS)
@pytest.mark.parametrize("to_none", [True, False])
def test_a_training_that_bypasses_layers_warns_once(to_none: bool, by: str) -> None:
    model, report = convert(nn.Sequential(WindowBlock(), WindowBlock()), "full", heads=[])
    other = nn.Linear(4, 4)
    torch.optim.SGD(other.parameters(), 1e-3).step()
    said = train(model, 4, image(2, 4, 32), to_none=to_none, by=by)
    assert len(said) == 1
    assert "4 of 8 layers" in said[0] and "0.qkv, 0.proj, 1.qkv, 1.proj" in said[0]
    assert uses(report.so_far())["0.qkv"] == "never ran"
    assert uses(report.so_far())["0.mlp.0"] == "ran in FP4"
    assert all(layer.history.observer is None for layer in model.modules() if hasattr(layer, "history"))
    assert not train(model, 3, image(2, 4, 32))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, self.block(x), use_reentrant=False)


@pytest.mark.parametrize("build", [Idle, Tied, Checkpointed])
def test_a_training_that_bypasses_nothing_does_not_warn(build: Callable[[], nn.Module]) -> None:
    model, _ = convert(build(), "sr", heads=[])
    assert not train(model, 3, image(4, 32))
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert not train(model, 3, image(4, 32))


def test_layers_left_out_or_switched_off_are_not_warned_of() -> None:
    model, _ = convert(WindowBlock(), "full", skip=["qkv", "proj"], heads=[])
    assert not train(model, 3, image(2, 4, 32))
    model, _ = convert(WindowBlock(), "full", heads=[])
    set_active(model, False)
    assert not train(model, 3, image(2, 4, 32))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("container", [False, True])
def test_evaluation_is_in_the_precision_of_training(container: bool, norm_first: bool) -> None:
    """torch's encoder layers evaluate by a fused function that reads their weights."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first) if container else layer
    x, mask = image(2, 6, 32), torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 4:] = True
    plain = copy.deepcopy(model).eval()
    model, report = convert(model, "full", heads=[])
    trained = model(x, src_key_padding_mask=mask)
    model.eval()
    with torch.no_grad():
        seen = report.after(lambda: model(x, src_key_padding_mask=mask))
        evaluated = model(x, src_key_padding_mask=mask)
    assert set(uses(seen).values()) == {"ran in FP4"}
    torch.testing.assert_close(evaluated[~mask], trained[~mask])
    assert any("fused evaluation is off" in note for note in report.notes)
    unconvert(model)
    assert model.__dict__.keys() == plain.__dict__.keys()
    with torch.no_grad():
        restored, expected = (each(x, src_key_padding_mask=mask) for each in (model, plain))
    assert torch.equal(restored, expected), "the fused path is back, to the last bit"


@pytest.mark.parametrize("then", [unconvert, lambda layer: convert(layer, "full", heads=[])], ids=["back", "again"])
def test_a_part_that_is_converted_back_or_again_since(then: Callable[[nn.Module], object]) -> None:
    model, report = convert(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), "sr", heads=[])
    model(image(4, 32))
    then(model[0])
    assert not train(model, 3, image(4, 32))
    assert uses(report.so_far()) == {"0": "ran in FP4", "1": "ran in FP4"}
    assert uses(report.after(lambda: model(image(4, 32)))) == {"0": "switched off", "1": "ran in FP4"}
    unconvert(model)
    assert set(uses(report.after(lambda: model(image(4, 32)))).values()) == {"switched off"}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda report: pickle.loads(pickle.dumps(report))])
def test_a_report_that_is_copied_or_stored_is_a_record(again: Callable[[ConversionReport], ConversionReport]) -> None:
    model, report = convert(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)), "sr", heads=[])
    seen = again(report.after(lambda: model(image(4, 32))))
    assert set(uses(seen).values()) == {"ran in FP4"} and seen.coverage is None
    assert seen.so_far() is seen and str(again(report)) == str(report)
    assert report.coverage is not None, "the report itself looks on"
