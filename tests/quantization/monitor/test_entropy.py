"""Entropy of attention, against the weights that MONAI's own blocks keep or pass through their softmax."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.blocks import SABlock
from monai.networks.nets.swin_unetr import WindowAttention
from tiny_runs import Dataset, train
from torch import Tensor, nn

from monai_fp4.networks import build_network
from monai_fp4.quantization.conversion import convert
from monai_fp4.quantization.monitor.entropy import attention_entropy


def entropy_of(weights: Tensor) -> float:
    """Shannon entropy by its definition, in double precision."""
    p = weights.double()
    return float(torch.special.entr(p).sum(-1).mean())


def spread_out(network: nn.Module) -> nn.Module:
    """Larger weights, so that attention is far from even."""
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if "qkv" in name or "position_bias" in name:
            nn.init.normal_(parameter, std=0.3)
    return network.eval()


def weights_of(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The weights of every block, from MONAI's own forward pass."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: found.update({name: output})

    for name, module in network.named_modules():
        if isinstance(module, WindowAttention):
            module.softmax.register_forward_hook(keep(name))
        elif isinstance(module, SABlock):
            module.save_attn = True
            module.use_flash_attention = False
            module.register_forward_hook(lambda m, *_, name=name: found.update({name: m.att_mat}))
    with torch.no_grad():
        network(images)
    return found


@pytest.mark.parametrize("attention", ["high_precision", "fp4"])
@pytest.mark.parametrize("arch", ["vit", "swin"])
def test_it_is_that_of_the_weights_that_the_blocks_use(arch: str, attention: str) -> None:
    network = spread_out(build_network(arch, "500k", image_size=(32, 32)))
    convert(network, {"base": "full", "attention": attention}, backend="emulated")
    images = torch.randn(2, 3, 32, 32)
    with attention_entropy(network) as found, torch.no_grad():
        network(images)
    expected = weights_of(network, images)
    blocks = [n for n, m in network.named_modules() if isinstance(m, (SABlock, WindowAttention))]
    assert list(found) == blocks and len(blocks) > 2
    for name, weights in expected.items():
        tokens = weights.shape[-1]
        assert found[name].nats == pytest.approx(entropy_of(weights), rel=2e-3), name
        assert found[name].share == pytest.approx(found[name].nats / math.log(tokens))
    assert min(value.share for value in found.values()) < 0.95


def test_shifted_windows_are_masked_as_the_block_masks_them() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(WindowAttention(16, 2, (2, 2), qkv_bias=True))
    mask = torch.zeros(3, 4, 4)
    mask[1, :2, 2:] = mask[1, 2:, :2] = mask[2, 0, 1:] = -100.0
    x, kept = torch.randn(6, 4, 16), {}
    block[0].softmax.register_forward_hook(lambda _m, _i, output: kept.update(weights=output))
    with attention_entropy(block) as found:
        block[0](x, mask)
    assert found["0"].nats == pytest.approx(entropy_of(kept["weights"].detach()), rel=1e-5)
    with attention_entropy(block) as unmasked:
        block[0](x, None)
    assert unmasked["0"].nats > found["0"].nats


def test_a_large_batch_is_looked_at_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_fp4.quantization.monitor.entropy._MOST_SCORES", 2 * 8**2 * 3)
    torch.manual_seed(0)
    block = SABlock(16, 2).eval()
    nn.init.normal_(block.qkv.weight)
    x = torch.randn(9, 8, 16)
    with attention_entropy(block) as some:
        block(x)
    monkeypatch.undo()
    with attention_entropy(block) as three:
        block(x[[0, 3, 6]])
    assert some[""].nats == pytest.approx(three[""].nats, rel=1e-5)


def test_only_the_first_pass_is_looked_at_and_nothing_changes() -> None:
    torch.manual_seed(0)
    network = spread_out(build_network("vit", "500k", image_size=(32, 32)))
    convert(network, {"base": "full", "attention": "fp4"}, backend="emulated")
    images = torch.randn(2, 3, 32, 32)
    before, state = network(images), torch.get_rng_state()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    with attention_entropy(network) as found:
        assert torch.equal(network(images), before)
        first = dict(found)
        network(2 * images)
        assert found == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_convolutions_have_none() -> None:
    network = build_network("unet", "500k", image_size=(32, 32))
    with attention_entropy(network) as found:
        network(torch.zeros(1, 3, 32, 32))
    assert not found


def test_a_run_records_it_every_epoch(tiny: Dataset, tmp_path: Path) -> None:
    folder = train(tiny, tmp_path / "run", "vit_500k_sr")
    epochs = json.loads((folder / "health.json").read_text())["epochs"]
    assert [entry["epoch"] for entry in epochs] == [1, 2]
    for found in (block for entry in epochs for block in entry["attention"].values()):
        assert found["entropy"] > 0 and 0 < found["entropy_share"] <= 1.0001
