"""Window attention with one addition computes what MONAI's computes."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.swin_unetr import WindowAttention, compute_mask

from monai_fp4.networks import BiasedWindowAttention


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [16, 9], ids=["whole", "shrunk"])
def test_window_attention_equals_monai(masked: bool, tokens: int) -> None:
    torch.manual_seed(0)
    theirs = WindowAttention(32, 4, (4, 4), qkv_bias=True)
    ours = BiasedWindowAttention(32, 4, (4, 4), qkv_bias=True)
    ours.load_state_dict(theirs.state_dict())
    side = int(tokens**0.5)
    mask = compute_mask([2 * side] * 2, (side, side), (side // 2,) * 2, torch.device("cpu")) if masked else None
    x = torch.randn(12, tokens, 32)
    for amp in (False, True):
        gradients, outputs = [], []
        for module in (theirs, ours):
            module.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                outputs.append(module(x, mask))
            outputs[-1].float().square().sum().backward()
            gradients.append([p.grad.clone() for p in module.parameters()])
        assert outputs[0].dtype == outputs[1].dtype
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(gradients[1], gradients[0], rtol=2e-2 if amp else 1e-5, atol=1e-2 if amp else 1e-5)
