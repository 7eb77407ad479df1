"""Muon for matrices, AdamW for the rest, and one interface for schedules and checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from monai_fp4 import build_network
from monai_fp4.networks import channels_last, to_channels_last
from monai_fp4.optimizers import MuonAdamW


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 6), nn.Linear(6, 1))
    return nn.Sequential(*layers)


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)


@pytest.mark.parametrize(("momentum", "betas"), [(0.95, (0.9, 0.999)), (0.8, (0.7, 0.9))])
def test_a_matrix_moves_as_muon_says_and_the_rest_as_adamw_says(momentum: float, betas: tuple[float, float]) -> None:
    model, reference = network(), network()
    options = {} if momentum == 0.95 else {"momentum": momentum, "betas": betas}
    optimizer = MuonAdamW(model.named_parameters(), lr=0.01, weight_decay=0.1, **options)
    weights = [reference[0].weight, reference[3].weight]
    flat = [nn.Parameter(weight.detach().clone().flatten(1)) for weight in weights]
    muon = torch.optim.Muon(flat, lr=0.01, weight_decay=0.1, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    others = [parameter for parameter in reference.parameters() if not any(parameter is w for w in weights)]
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=0.1, betas=betas)
    for seed in range(4):
        gradients(model, seed)
        gradients(reference, seed)
        for view, weight in zip(flat, weights, strict=True):
            view.grad = weight.grad.flatten(1)
        optimizer.step()
        muon.step()
        adamw.step()
    for view, weight in zip(flat, (model[0].weight, model[3].weight), strict=True):
        assert torch.equal(weight.detach().flatten(1), view.detach())
    own = [p for n, p in model.named_parameters() if n not in ("0.weight", "3.weight")]
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True)) and len(own) == 6


def test_the_layout_of_the_memory_does_not_matter() -> None:
    plain, laid_out = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
    laid_out.load_state_dict(plain.state_dict())
    laid_out = to_channels_last(laid_out, (8, 8))
    assert not laid_out.weight.is_contiguous()
    for model in (plain, laid_out):
        optimizer = MuonAdamW(model.named_parameters(), lr=0.01)
        for seed in range(3):
            gradients(model, seed)
            optimizer.step()
    torch.testing.assert_close(laid_out.weight, plain.weight, rtol=0, atol=2e-4)  # Muon iterates in BF16
    assert channels_last(laid_out.weight).data_ptr() == laid_out.weight.data_ptr()


def test_a_network_that_is_laid_out_afterwards_is_trained_all_the_same() -> None:
    early, late = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
    late.load_state_dict(early.state_dict())
    optimizers = [MuonAdamW(to_channels_last(early, (8, 8)).named_parameters(), lr=0.01)]
    optimizers.append(MuonAdamW(late.named_parameters(), lr=0.01))
    to_channels_last(late, (8, 8))  # the weights lie somewhere else now
    for model, optimizer in zip((early, late), optimizers, strict=True):
        gradients(model, 1)
        optimizer.step()
    assert torch.equal(early.weight, late.weight)


def test_a_gradient_may_lie_in_memory_otherwise_than_its_weight() -> None:
    usual, assigned = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3)
    assigned.load_state_dict(usual.state_dict())
    for model in (usual, assigned):
        optimizer = MuonAdamW(to_channels_last(model, (8, 8)).named_parameters(), lr=0.01)
        gradients(model, 1)
        if model is assigned:  # as a handler may
            model.weight.grad = model.weight.grad.contiguous()
        optimizer.step()
    assert torch.equal(usual.weight, assigned.weight)


@pytest.mark.parametrize("arch", ["unet", "swin", "vit"])
def test_every_parameter_of_the_study_s_networks_moves(arch: str) -> None:
    model = to_channels_last(build_network(arch, "500k", image_size=(64, 64)), (64, 64))
    before = copy.deepcopy(model.state_dict())
    optimizer = MuonAdamW(model.named_parameters(), lr=0.01)
    matrices, others = (len(group["params"]) for group in optimizer.param_groups)
    assert matrices >= 8 and matrices + others == len(list(model.parameters()))
    gradients(model, 0)
    optimizer.step()
    assert not [name for name, value in model.named_parameters() if torch.equal(value.detach(), before[name])]
    tables = {id(p) for n, p in model.named_parameters() if "position" in n}
    assert not tables & {id(parameter) for parameter in optimizer.param_groups[0]["params"]}


def test_a_checkpoint_goes_on_as_if_nothing_had_happened() -> None:
    first, second = network(), network()
    optimizers = [MuonAdamW(model.named_parameters(), lr=0.01) for model in (first, second)]
    for seed in range(2):
        gradients(first, seed)
        optimizers[0].step()
    for group in optimizers[0].param_groups:  # as a schedule does
        group["lr"] = 0.003
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip((first, second), optimizers, strict=True):
        gradients(model, 9)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_matrix_has_two_sides() -> None:
    model = nn.ModuleDict({f"{i}x{o}": nn.Linear(i, o) for i, o in ((2, 2), (3, 2), (2, 1), (1, 2), (1, 1))})
    chosen = {id(parameter) for parameter in MuonAdamW(model.named_parameters()).param_groups[0]["params"]}
    assert {name for name, layer in model.items() if id(layer.weight) in chosen} == {"2x2", "3x2"}


def test_a_schedule_reaches_both() -> None:
    model = network()
    optimizer = MuonAdamW(model.named_parameters(), lr=0.01, weight_decay=0.0)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=10)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients(model, 0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
