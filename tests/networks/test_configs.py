"""Each architecture alone: what a new one has to say, and that MONAI builds the same."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatch
from unittest import mock

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from monai_fp4.errors import ConfigError
from monai_fp4.networks import NetworkCell, NetworkConfig, build_network, network_table, table
from monai_fp4.quantization.layers import conv3d_guard
from monai_fp4.study.variants import grid_recipes, recipe_of


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [(32, 48), (32, 32, 32)], ids=["2d", "3d"])
def test_unet_is_monais(size: tuple[int, ...], amp: bool) -> None:
    torch.manual_seed(1)
    ours = build_network("unet", "4m", image_size=size, spatial_dims=len(size))
    torch.manual_seed(1)
    theirs = UNet(len(size), 3, 1, (48, 96, 144, 192, 288), (2,) * 4, num_res_units=2, norm="batch")
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    x = torch.randn(2, 3, *size)
    outputs = []
    for network in map(conv3d_guard.guard_conv3d, (ours, theirs)):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs.append(network(x))
        outputs[-1].float().square().mean().backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    for (name, ours_p), theirs_p in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_p, theirs_p, rtol=0, atol=0)
        largest = theirs_p.grad.abs().max().item()
        torch.testing.assert_close(ours_p.grad, theirs_p.grad, rtol=0, atol=largest * (1e-2 if amp else 1e-5), msg=name)


@pytest.mark.parametrize("cell", network_table(), ids=lambda cell: f"{cell.arch}_{cell.scale}")
def test_first_and_last_are_blocks_with_weights(cell: NetworkCell) -> None:
    network = build_network(cell.arch, cell.scale, image_size=(256, 256))
    names = [name for name, _ in network.named_parameters()]
    first, last = ([name for name in names if fnmatch(name, pattern)] for pattern in cell.config.first_and_last)
    assert first and last and not set(first) & set(last)


@dataclasses.dataclass(frozen=True)
class OneConvolution(NetworkConfig):
    width: int
    first_and_last = ("0", "1")
    stride = 8

    def build(self, in_channels: int, out_channels: int, image_size: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, self.width, 1), nn.Conv2d(self.width, out_channels, 1))


def test_new_architecture_is_one_class_and_one_line() -> None:
    rows = (*network_table(), NetworkCell("tiny", "500k", OneConvolution(16)))
    with mock.patch.multiple(table, ARCHITECTURES={**table.ARCHITECTURES, "tiny": "a test's"}, _TABLE=rows):
        assert build_network("tiny", "500k", image_size=(16, 24))(torch.zeros(1, 3, 16, 24)).shape == (1, 1, 16, 24)
        with pytest.raises(ConfigError, match=r"tiny_500k takes .* multiples of 8 and at least 16, .* is \[16, 24\]"):
            build_network("tiny", "500k", image_size=(15, 22))
        assert [
            row["pattern"] for row in recipe_of(grid_recipes("sr+ends")["sr+ends"], "tiny", "500k")["overrides"]
        ] == ["0", "1"]
    with pytest.raises(ConfigError, match="'tiny' is not known"):
        build_network("tiny", "500k")


def test_architecture_must_say_everything() -> None:
    with pytest.raises(TypeError, match="abstract"):
        NetworkConfig()  # type: ignore[abstract]
    assert {"build", "first_and_last", "stride"} == NetworkConfig.__abstractmethods__
