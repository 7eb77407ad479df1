"""The ViT encoder computes what MONAI's computes, from the same weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.nets import ViT

from monai_fp4.networks import build_network, find_cell


def test_vit_encoder_equals_monai() -> None:
    torch.manual_seed(0)
    config = find_cell("vit", "500k").config
    ours = build_network("vit", "500k", image_size=(64, 96)).encoder
    theirs = ViT(
        3, (64, 96), config.patch_size, config.width, 4 * config.width, config.taps[-1], config.num_heads,
        pos_embed_type="sincos", spatial_dims=2, qkv_bias=True,
    )  # fmt: skip
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert unexpected == []
    assert all("norm_cross_attn" in name or "position_embeddings" in name for name in missing)
    x = torch.randn(2, 3, 64, 96)
    last, hidden = theirs(x)
    outputs = ours(x)
    torch.testing.assert_close(outputs[-1].flatten(1, 2), last, rtol=1e-4, atol=1e-5)
    expected = F.layer_norm(hidden[0], hidden[0].shape[-1:])
    torch.testing.assert_close(outputs[0].flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_vit_draws_the_weights_of_monais() -> None:
    torch.manual_seed(4)
    ours = build_network("vit", "500k", image_size=(32, 32)).encoder
    torch.manual_seed(4)
    theirs = ViT(3, (32, 32), 8, 96, 384, 3, 3, pos_embed_type="sincos", spatial_dims=2, qkv_bias=True).state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)


def test_vit_weights_do_not_depend_on_the_image_size() -> None:
    network = build_network("vit", "500k", image_size=(64, 64))
    build_network("vit", "500k", image_size=(128, 96)).load_state_dict(network.state_dict())
    assert not any("norm_cross_attn" in name for name in network.state_dict())
