from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_fp4.quantization.conversion import convert, set_active
from monai_fp4.quantization.layers import NVFP4Conv2d, NVFP4ConvTranspose2d, NVFP4Linear
from monai_fp4.quantization.monitor.health import operand_health, quantization_health
from monai_fp4.quantization.numerics import scaled_values

GRID = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def by_hand(x: torch.Tensor) -> tuple[float, float, float]:
    """One row of whole blocks, slowly: the contract's scales, the nearest grid value, counted one by one."""
    amax = x.abs().max()
    lost = clipped = nonzero = 0
    noise = signal = 0.0
    for block in x.reshape(-1, 16):
        scale = (block.abs().max() / 6 * (448 * 6 / amax)).to(torch.float8_e4m3fn).float()
        step = float(scale * amax / 2688)
        for value in block.tolist():
            encoded = abs(value) / step
            code = float(GRID[(GRID - min(encoded, 6)).abs().argmin()])
            clipped += encoded > 6.002
            nonzero += value != 0
            lost += value != 0 and code == 0
            noise += (abs(value) - code * step) ** 2
            signal += value**2
    return 10 * math.log10(signal / noise), lost / nonzero, clipped / x.numel()


def test_numbers_are_those_of_a_slow_count():
    x = torch.randn(64 * 16, generator=torch.Generator().manual_seed(1))
    health = operand_health(x)
    snr, lost, clipped = by_hand(x)
    assert health.snr_db == pytest.approx(snr, abs=0.01)
    assert health.underflow == pytest.approx(lost) and health.clipped == pytest.approx(clipped)
    assert 0.02 < health.clipped < 0.05, "about half of the blocks clip their maximum"


def test_an_outlier_hides_the_rest_of_its_block():
    x = torch.ones(4, 16)
    x[0, 0] = 1e3
    assert operand_health(x).underflow == pytest.approx(15 / 64)


def test_values_on_the_grid_are_exact_and_zeros_undefined():
    exact = torch.tensor([6.0, 3, 1.5, 0] * 8)
    health = operand_health(exact)
    assert (health.snr_db, health.underflow, health.clipped) == (math.inf, 0, 0)
    assert math.isnan(operand_health(torch.zeros(2, 16)).snr_db)


def test_two_d_blocks_are_measured_as_such():
    x = torch.randn(16, 16)
    x[0, 0] = 1e3
    assert operand_health(x, two_d=True).underflow == pytest.approx(255 / 256)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (NVFP4Linear(32, 48, recipe="full"), (64, 32)),
        (NVFP4Conv2d(32, 64, 3, padding=1, groups=2, recipe="full"), (2, 32, 5, 5)),
        (NVFP4ConvTranspose2d(32, 16, 2, stride=2, recipe="2d"), (2, 32, 5, 5)),
    ],
)
def test_layout_of_blocks_is_that_of_the_layer(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Outliers along the reduction axis hide only their own block; along any other axis each would hide a block.
    with torch.no_grad():
        layer.weight.fill_(1.0)
    with quantization_health(layer) as health:
        layer(x).sum().backward()
    operands = health[""]
    assert operands["weight"].snr_db == math.inf
    assert 17 < operands["input"].snr_db < 24 and 0.01 < operands["input"].clipped < 0.06
    assert operands["gradient"].snr_db == math.inf, "the gradient of a sum is all ones"


def test_clipped_of_a_convolution_counts_blocks_along_its_channels():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 4, 4, generator=generator)
    layer = NVFP4Conv2d(16, 16, 1, recipe="forward_only")
    with quantization_health(layer) as health:
        layer(x)
    assert health[""]["input"].clipped == pytest.approx(by_hand(x.movedim(1, -1).reshape(-1))[2])
    assert "gradient" not in health[""]


def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(inplace=True), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 2, 1))
    return convert(made, "sr_rht", backend="emulated", stream=0)[0]


def test_watching_changes_no_gradient():
    x = torch.randn(2, 16, 8, 8)
    gradients = []
    for watched in (False, True):
        model = network()
        torch.manual_seed(1)
        if watched:
            with quantization_health(model) as health:
                model(x).square().sum().backward()
            assert len(health) >= 2 and all("gradient" in operands for operands in health.values())
        else:
            model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_inactive_layers_are_left_out_and_hooks_removed():
    model = network()
    set_active(model, False)
    with quantization_health(model) as health:
        model(torch.randn(1, 16, 8, 8))
    assert health == {}
    assert not any(module._forward_hooks for module in model.modules())


def test_under_autocast_the_bf16_operands_are_measured():
    model = network()
    with quantization_health(model) as health, torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(1, 16, 8, 8))
    assert all(10 < h.snr_db < 30 for operands in health.values() for h in operands.values())


def test_measures_what_scaled_values_gives():
    x = torch.randn(8, 40)
    lost = ((scaled_values(x).values == 0) & (x != 0)).sum() / x.numel()
    assert operand_health(x).underflow == pytest.approx(float(lost))
