"""The quick PReLU computes what torch's computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_fp4.networks import quicken_prelu


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_prelu_with_one_slope_equals_torch(amp: bool, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    ours, theirs = quicken_prelu(nn.Sequential(nn.PReLU(init=0.3))), nn.Sequential(nn.PReLU(init=0.3))
    x = torch.randn(2, 5, 8, 9)
    x[0, 0, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-40, 1e30, -1e30, 1])
    upstream = torch.randn(2, 5, 8, 9)
    outputs, gradients, slopes = [], [], []
    for module in (ours, theirs):
        leaf = x.clone(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs.append(module(leaf))
        outputs[-1].backward(upstream.to(outputs[-1].dtype))
        gradients.append(leaf.grad)
        slopes.append(module[0].weight.grad)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            torch.testing.assert_close(module(x), outputs[-1].detach(), rtol=0, atol=0)
    assert type(ours[0]) is not nn.PReLU
    assert outputs[0].dtype == outputs[1].dtype == (torch.bfloat16 if amp else torch.float32)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert slopes[0].shape == slopes[1].shape and slopes[0].dtype == slopes[1].dtype
    finite = x.isfinite() & (x.abs() < 1e20)  # the sums above hold infinities; this one has an answer to compare with
    small = torch.where(finite, x, 0.0)
    for module in (ours, theirs):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            (module(small).float() * upstream).sum().backward()
    expected = (upstream.double() * small.double().clamp(max=0)).sum().view(1).float()
    torch.testing.assert_close(ours[0].weight.grad, expected, rtol=1e-2 if amp else 1e-5, atol=1e-5)
    torch.testing.assert_close(theirs[0].weight.grad, expected, rtol=1e-2 if amp else 1e-5, atol=1e-5)


def test_prelu_with_one_slope_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(3, 4, 5, dtype=torch.double), torch.randn(3, 4, 5, dtype=torch.double)
    ours, theirs = quicken_prelu(nn.Sequential(nn.PReLU(init=0.3))).double(), nn.PReLU(init=0.3).double()

    def second_order(module: nn.Module) -> tuple[torch.Tensor, ...]:
        leaf, dy = x.clone().requires_grad_(), upstream.clone().requires_grad_()
        wanted = (leaf, *module.parameters())
        dx, da = torch.autograd.grad(module(leaf), wanted, dy, create_graph=True)
        return dx, da, *torch.autograd.grad((dx**2).sum() + (dx * x).sum() + da**2, (*wanted, dy))

    for found, expected in zip(second_order(ours), second_order(theirs), strict=True):
        torch.testing.assert_close(found, expected)
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(ours, leaf)
