"""The Swin encoder computes what MONAI's computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor

from monai_fp4.networks import SwinConfig, SwinEncoder, swin


def small_swin(spatial_dims: int = 2) -> SwinEncoder:
    config = SwinConfig(16, (2, 2, 2), (2, 2, 4), 32, 32, patch_size=2, window_size=4)
    return SwinEncoder(config=config, in_channels=2, spatial_dims=spatial_dims)


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (8, 8), (16, 16, 24)], ids=str)
def test_swin_encoder_equals_monai_before_each_merging(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours = small_swin(len(size)).eval()
    dims = len(size)
    theirs = SwinTransformer(
        2, 16, (4,) * dims, (2,) * dims, (2, 2, 2, 1), (2, 2, 4, 4), spatial_dims=dims, downsample="mergingv2"
    ).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith(("layers3.0.downsample", "layers4")) for name in missing)
    captured: list[Tensor] = []
    for stage in (theirs.layers1[0], theirs.layers2[0], theirs.layers3[0]):
        stage.blocks[-1].register_forward_hook(lambda module, args, output: captured.append(output))
    x = torch.randn(2, 2, *size)
    with torch.no_grad():
        theirs(x)
        outputs = ours(x)
    assert len(outputs) == len(captured) == 3
    for output, expected in zip(outputs, captured, strict=True):
        torch.testing.assert_close(output, F.layer_norm(expected, expected.shape[-1:]))


def test_mask_made_in_inference_mode_serves_training() -> None:
    swin._shift_mask.cache_clear()
    encoder = small_swin()
    x = torch.randn(1, 2, 24, 24)
    with torch.inference_mode():
        first = [output.clone() for output in encoder(x)]
    # An inference tensor in the cache would fail in training wherever autograd saves it.
    assert not swin._shift_mask((12, 12), (4, 4), (2, 2), x.device).is_inference()
    made = swin._shift_mask.cache_info().misses
    outputs = encoder(x)
    sum(output.square().mean() for output in outputs).backward()
    assert swin._shift_mask.cache_info().misses == made
    torch.testing.assert_close([output.detach() for output in outputs], first)
