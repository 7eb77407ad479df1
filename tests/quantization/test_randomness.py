"""Stochastic rounding has its own stream: by seed, rank, layer and draw, and at no cost to the caller's generator."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from stand_ins import image
from torch import Tensor, nn

from monai_fp4 import convert
from monai_fp4.errors import ConfigError
from monai_fp4.quantization import quantize, seed_rounding, unconvert


def network(recipe: Any = "sr", seed: int = 0, stream: int | None = None) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.2), nn.GELU(), nn.Linear(64, 64), nn.Linear(64, 32))
    return convert(model, recipe, heads=[], stream=stream)[0]


def train(model: nn.Module, steps: int, *, seed: int | None = None) -> list[Tensor]:
    """The gradients of the first weight in each step; shuffling and dropout draw from torch's generator."""
    if seed is not None:
        torch.manual_seed(seed)
    data, gradients = image(16, 32), []
    for _ in range(steps):
        model.zero_grad()
        model(data[torch.randperm(16)[:8]]).square().sum().backward()
        gradients.append(model[0].weight.grad.clone())
    return gradients


def different(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)


@pytest.mark.parametrize("recipe", ["sr", "sr_rht", {"base": "sr", "attention": "fp4"}])
def test_the_callers_generator_is_not_touched(recipe: Any) -> None:
    states = []
    for each in ("full", recipe):
        model = network(each)
        train(model, 3, seed=1)
        states.append(torch.get_rng_state())
    assert torch.equal(*states), "full and sr shuffle and drop out alike"


def test_a_training_can_be_repeated_and_another_seed_is_another() -> None:
    first, again, other = (train(network(seed=seed), 3) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    model = network()
    torch.manual_seed(5)
    assert different(train(copy.deepcopy(model), 1)[0], train(model, 1, seed=6)[0])
    assert different(first[0], other[0])


def same_step(model: nn.Module, layer: int = 0) -> Tensor:
    """A gradient in which only the rounding can differ from call to call."""
    model[layer].zero_grad()
    x = image(256, model[layer].in_features)
    model[layer](x).backward(image(256, model[layer].out_features, seed=1))
    return model[layer].weight.grad.clone()


def test_steps_layers_and_ranks_round_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].load_state_dict(model[0].state_dict())
    exact = same_step(model)
    model, _ = convert(model, "sr", heads=[])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    errors = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        for layer in (0, 1):
            seed_rounding(model, 7)
            errors += [same_step(model, layer) - exact for _ in range(2)]
    common = torch.stack(errors).mean(0)
    correlation = torch.corrcoef(torch.stack([(error - common).flatten() for error in errors]))
    assert correlation.fill_diagonal_(0).abs().max() < 0.3


def halves(*streams: int | None) -> tuple[nn.Module, list[Tensor]]:
    """Two equal layers, converted one by one, and the error of the same step of each."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].load_state_dict(model[0].state_dict())
    exact = same_step(model)
    for layer, stream in zip(model, streams, strict=True):
        convert(layer, "sr", stream=stream)
    seed_rounding(model, 7)
    return model, [same_step(model, layer) - exact for layer in (0, 1)]


def test_models_that_live_at_once_round_independently() -> None:
    model, errors = halves(None, None)
    assert torch.corrcoef(torch.stack(errors).flatten(1)).fill_diagonal_(0).abs().max() < 0.6, (
        "the rest is quantization"
    )
    assert different(*errors)
    assert different(*halves(None, None)[1]), "beside two that live already, too"
    assert not different(*halves(0, 0)[1]), "unless one asks for it"
    del model


def test_the_stream_of_a_model_does_not_depend_on_those_that_are_gone() -> None:
    first = train(network(), 2)
    circle = network()
    circle.itself = [circle]  # which only the collector of garbage takes away
    del circle
    assert all(map(torch.equal, first, train(network(), 2)))
    kept = network()
    assert all(map(different, first, train(network(), 2)))
    convert(kept, "sr", heads=[])
    torch.manual_seed(0)
    again = network()
    assert different(train(kept, 1, seed=3)[0], train(again, 1, seed=3)[0])


def test_a_model_gives_its_stream_back_with_its_layers() -> None:
    first, kept = train(network(), 2), network()
    convert(kept, "full", heads=[])  # rounds nothing stochastically
    assert all(map(torch.equal, first, train(network(), 2)))
    kept, report = convert(kept, "sr", heads=[])
    assert not report.notes
    beside, report = convert(network("full"), "sr", heads=[])
    assert "stream 1" in report.notes[0]
    unconvert(kept)
    kept, report = convert(kept, "sr", heads=[])
    assert not report.notes, "0 is free again"
    del beside


@pytest.mark.parametrize("stream", [-1, 2**32, 1.0, True, "0"])
def test_what_is_no_stream_is_refused(stream: Any) -> None:
    with pytest.raises(ConfigError, match="stream expected"):
        network(stream=stream)


def test_seeding_anew_gives_the_same_bits_again() -> None:
    model = network()
    seed_rounding(model, 3, 0)
    first = [same_step(model) for _ in range(2)]
    seed_rounding(model, 3, 1)
    second = same_step(model)
    seed_rounding(model, 3, 0)
    assert torch.equal(same_step(model), first[0])
    assert torch.equal(same_step(model), first[1])
    assert different(first[0], second) and different(first[0], first[1])


@pytest.mark.parametrize("by", ["torch", "seed_rounding"])
def test_a_resumed_training_rounds_as_the_uninterrupted_one(by: str) -> None:
    def epoch(model: nn.Module, number: int) -> list[Tensor]:
        torch.manual_seed(100 + number)
        if by == "seed_rounding":
            seed_rounding(model, 0, number)
        return train(model, 2)

    whole = network(stream=0)
    expected = [epoch(whole, number) for number in range(3)][-1]
    resumed = network(stream=0)  # as it would be if the other had ended with its process
    resumed.load_state_dict(whole.state_dict())
    assert all(map(torch.equal, epoch(resumed, 2), expected))


def test_seeds_that_alternate_never_give_the_same_bits_twice() -> None:
    """As when an evaluation runs under a seed of its own, and the training goes on under the first."""
    model, seen = network(), []
    for _ in range(3):
        for seed in (0, 1):
            torch.manual_seed(seed)
            seen.append(same_step(model))
    assert all(different(a, b) for index, a in enumerate(seen) for b in seen[:index])


def test_evaluations_do_not_move_the_stream() -> None:
    model, twin = network(stream=0), network(stream=0)
    for _ in range(3):
        twin(image(4, 32))
    assert torch.equal(same_step(model), same_step(twin))


def test_copies_go_their_own_way_and_from_the_same_place() -> None:
    model = network()
    same_step(model)
    twin = copy.deepcopy(model)
    a, b = same_step(model), same_step(twin)
    assert torch.equal(a, b)
    same_step(model)
    assert different(same_step(model), same_step(twin))


def test_who_quantizes_a_tensor_gives_the_generator() -> None:
    x = image(16, 32)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    first, second = (quantize(x, stochastic=True, generator=generator) for generator in generators)
    assert torch.equal(first.codes, second.codes)
