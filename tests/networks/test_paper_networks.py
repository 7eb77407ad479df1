"""The paper's networks: equal to the reference values of its public code, whatever the modules are called.

``tests/paper_reference.json`` holds parameter counts, outputs, initial values and optimizer steps of that code, made
with weights and images from a formula (its ``rule``); the order of the tensors is the forward order.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_fp4 import build_network, convert
from monai_fp4.errors import ConfigError

REFERENCE = json.loads((Path(__file__).parents[1] / "paper_reference.json").read_text())
NETWORKS: dict[str, dict[str, Any]] = REFERENCE["networks"]


def build(name: str, **options: Any) -> nn.Module:
    arch, scale = name.split("_")
    return build_network(f"paper_{arch}", scale, **options)


def tensors(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Kind and parameter, in canonical order."""

    def of(*modules: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for module in modules:
            norm = isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)
            yield "gain" if norm else "weight", module.weight
            yield "bias", module.bias

    if hasattr(network, "encoders"):
        for stage in (*network.encoders, *network.decoders):
            yield from of(stage.conv, stage.adn.N)
        yield from of(network.last)
        return
    yield from of(network.patch, network.patch_norm)
    if network.class_token is not None:
        yield "table", network.class_token
    yield "table", network.positions
    for block in network.blocks:
        attention = block.attention
        yield from of(block.norm1, attention.qkv)
        if hasattr(attention, "relative_position_bias_table"):
            yield "table", attention.relative_position_bias_table
        yield from of(getattr(attention, "proj", None) or attention.out_proj, block.norm2, block.mlp.linear1)
        yield from of(block.mlp.linear2)
    yield from of(network.norm, *(module for module in network.decoder if not isinstance(module, nn.GELU)))


def u(begin: int, numel: int, modulus: int) -> Tensor:
    k = torch.arange(begin, begin + numel, dtype=torch.int64)
    return 2 * ((7 * k * k + 13 * k + 5) % modulus).double() / (modulus - 1) - 1


@torch.no_grad()
def fill(network: nn.Module) -> nn.Module:
    """Give a network the reference's weights."""
    transposed = [module.weight for module in network.modules() if isinstance(module, nn.ConvTranspose2d)]
    k = 0
    for kind, parameter in tensors(network):
        values = u(k, parameter.numel(), 1009).view(parameter.shape)
        k += parameter.numel()
        if kind == "weight":
            out = parameter.shape[1 if any(parameter is weight for weight in transposed) else 0]
            values *= math.sqrt(3 * out / parameter.numel())
        elif kind != "table":
            values = (kind == "gain") + 0.2 * values
        parameter.copy_(values.float())
    return network


def image() -> Tensor:
    return 2 * u(0, 2 * 3 * 256 * 256, 1013).view(2, 3, 256, 256)


def six(y: Tensor) -> list[float]:
    numbers = (y[0, 0, 0, 0], y[0, 0, 100, 37], y[1, 0, 255, 255], y.mean(), y.std(correction=0), y.norm())
    return [number.item() for number in numbers]


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_by_kind(name: str) -> None:
    network, expected = build(name), NETWORKS[name]
    assert sum(p.numel() for p in network.parameters()) == expected["parameters"]
    assert len(list(network.parameters())) == expected["parameter_tensors"] == len(list(tensors(network)))
    modules: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for module in network.modules():
        if own := sum(p.numel() for p in module.parameters(recurse=False)):
            modules[type(module).__name__] += 1
            parameters[type(module).__name__] += own
    for kind, counts in expected["modules_and_parameters_by_kind"].items():
        if kind in ("Conv2d", "ConvTranspose2d", "Linear", "BatchNorm2d", "LayerNorm", "GroupNorm"):
            assert [modules[kind], parameters[kind]] == counts, kind


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_in_evaluation_and_in_training(name: str) -> None:
    network, expected = fill(build(name)).eval(), NETWORKS[name]
    with torch.no_grad():
        single = network(image().float())
        network.train()
        torch.manual_seed(0)
        dropped = network(image().float())
        drawn = torch.rand(1).item()
        double = fill(build(name)).eval().double()(image())
    assert single.shape == (2, 1, 256, 256)
    assert six(double) == pytest.approx(expected["eval_f64"], rel=1e-8, abs=1e-8)
    assert six(single)[:5] == pytest.approx(expected["eval_f32"][:5], abs=1e-5 if "cnn" in name else 1e-4)
    training = expected["train_mode_f32_seed_0"]
    assert drawn == training["next_torch_rand"]
    found = (dropped[0, 0, 0, 0].item(), dropped.mean().item(), dropped.std(correction=0).item())
    assert found == pytest.approx([training[key] for key in ("out_0_0_0_0", "mean", "std")], abs=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_values_and_random_numbers_drawn(name: str) -> None:
    torch.manual_seed(2026)
    network, expected = build(name), NETWORKS[name]["seed_2026_initialisation"]
    assert torch.rand(1).item() == expected["next_torch_rand"]
    parameters = [parameter.detach() for _, parameter in tensors(network)]
    assert sum(p.double().abs().sum().item() for p in parameters) == pytest.approx(expected["sum_abs_params"], rel=1e-9)
    fill(network)  # the reference's two single weights are those of the formula, not the initial ones
    for weight, value in ((parameters[0], "first_weight_0"), (parameters[-2], "last_weight_0")):
        assert weight.flatten()[0].item() == expected[value]


@pytest.mark.parametrize("case", REFERENCE["four_training_steps"]["networks"])
def test_four_optimizer_steps(case: str) -> None:
    name, _, optimizer = case.rpartition("_")
    expected = REFERENCE["four_training_steps"]["networks"][case]
    network = fill(build(name)).eval()
    x, mask = image().float(), torch.zeros(2, 1, 256, 256)
    mask[0, 0, 50:90, 60:130] = 1
    settings: dict[str, Any] = {"lr": 1e-4, "weight_decay": 1e-4} if optimizer == "adamw" else {"lr": 5e-4}
    update = {"adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}[optimizer](network.parameters(), **settings)
    losses, norms = [], []
    for _ in range(4):
        update.zero_grad()
        logits = network(x).clamp(-20, 20)
        p = logits.sigmoid()
        tp, fp, fn = (t.sum((1, 2, 3)) for t in (p * mask, p * (1 - mask), (1 - p) * mask))
        tversky = 1 - ((tp + 1e-5) / (tp + 0.3 * fp + 0.7 * fn + 1e-5)).mean()
        loss = F.binary_cross_entropy_with_logits(logits, mask) + tversky
        loss.backward()
        losses.append(loss.item())
        norms.append(nn.utils.clip_grad_norm_(network.parameters(), 1.0).item())
        update.step()
    assert losses == pytest.approx(expected["loss"], rel=1e-5)
    assert norms == pytest.approx(expected["gradient_norm_before_clipping"], rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_layers_are_the_papers(name: str) -> None:
    network = build(name, in_channels=32)  # a stem that is wide enough for FP4 stays in high precision too
    network, report = convert(network, "full")
    swapped = [layer for layer in report.layers if layer.quantized]
    assert len(swapped) == NETWORKS[name]["quantized_layers"]
    weights = sum(network.get_submodule(layer.name).weight.numel() for layer in swapped)
    assert weights == NETWORKS[name]["quantized_weight_elements"]


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("swin_500k", (240, 240), r"16 times a power of two and at least 64, .*nearest .* is \[256, 256\]"),
        ("swin_15m", (128, 128), r"at least 256, .* is \[256, 256\]"),
        ("vit_500k", (192, 64), r"16 times a power of two and at least 32, .* is \[256, 64\]"),
        ("cnn_500k", (250, 256), r"multiples of 16 and at least 32, .* is \[256, 256\]"),
    ],
)
def test_sizes_that_do_not_fit(name: str, size: tuple[int, int], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        build(name, image_size=size)


@pytest.mark.parametrize("name", ["cnn_500k", "swin_4m", "vit_15m"])
def test_in_3d_there_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match=f"spatial_dims of paper_{name} must be 2, found 3"):
        build(name, image_size=(64, 64, 64), spatial_dims=3)


def test_odd_blocks_of_swin_15m_attend_inside_quadrants() -> None:
    torch.manual_seed(0)
    block = build("swin_15m").blocks[1].eval()
    tokens = torch.randn(1, 256, 448)
    before = block(tokens)
    tokens[0, 0] += 1  # the corner token belongs to the quadrant of rows and columns 0 to 7
    changed = (block(tokens) != before).any(-1).view(16, 16)
    assert changed[:8, :8].all() and changed.sum() == 64


def test_branch_dropout_keeps_or_drops_whole_samples() -> None:
    from monai_fp4.networks.paper_transformer import BranchDropout

    torch.manual_seed(0)
    drop, x = BranchDropout(0.25), torch.ones(400, 3, 5)
    y = drop(x)
    assert sorted(set(y.flatten().tolist())) == pytest.approx([0, 4 / 3]) and 270 < (y[:, 0, 0] > 0).sum() < 330
    assert (y == y[:, :1, :1]).all()
    assert drop.eval()(x) is x
