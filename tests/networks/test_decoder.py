"""The light decoder: every input is read, and no convolution runs at full resolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_fp4.networks import LightDecoder, build_network, network_table

CELLS = [pytest.param(cell.arch, cell.scale, id=f"{cell.arch}_{cell.scale}") for cell in network_table()]


@pytest.mark.parametrize(("arch", "scale"), [param.values for param in CELLS if param.values[0] in ("swin", "vit")])
def test_no_convolution_of_the_decoder_runs_at_full_resolution(arch: str, scale: str) -> None:
    network = build_network(arch, scale, image_size=(64, 64)).eval()
    sides: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, out, name=name: sides.update({name: out.shape[-1]}))
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    assert len(sides) >= 4
    assert max(sides.values()) == 32


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_head_gives_each_pixel_its_own_logit(spatial_dims: int) -> None:
    torch.manual_seed(0)
    decoder = LightDecoder(
        spatial_dims=spatial_dims, in_channels=1, out_channels=2, feature_channels=[8, 16], feature_strides=[4, 8],
        width=32, detail_width=16,
    ).eval()  # fmt: skip
    size = (16,) * spatial_dims
    features = [torch.randn(1, *(side // s for side in size), c) for c, s in ((8, 4), (16, 8))]
    logits = decoder(torch.randn(1, 1, *size), features)
    assert logits.shape == (1, 2, *size)
    corner = logits[(0, 1, *[slice(0, 2)] * spatial_dims)]
    assert corner.unique().numel() == 2**spatial_dims


@pytest.mark.parametrize("tap", range(2))
def test_decoder_reads_every_feature_and_the_image(tap: int) -> None:
    torch.manual_seed(0)
    decoder = LightDecoder(
        spatial_dims=2, in_channels=1, out_channels=1, feature_channels=[8, 8], feature_strides=[8, 8], width=32,
        detail_width=16,
    ).eval()  # fmt: skip
    features = [torch.randn(1, 4, 4, 8) for _ in range(2)]
    image = torch.randn(1, 1, 32, 32)
    before = decoder(image, features)
    assert not torch.equal(before, decoder(image + torch.randn_like(image), features))
    features[tap] = torch.randn(1, 4, 4, 8)
    assert not torch.equal(before, decoder(image, features))
