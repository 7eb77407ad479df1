"""Small networks built as those of torchvision and others are, where those do not install without CUDA parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowBlock(nn.Module):
    """As torchvision's ``swin_t``: a function that is given the weights of the projections multiplies with them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = self.norm(x + F.linear(attended, self.proj.weight, self.proj.bias))
        return x + self.mlp(x)


class DeepLab(nn.Module):
    """As torchvision's FCN and DeepLab: a dilated backbone, a classifier and an auxiliary one that is defined last."""

    def __init__(self, classes: int = 21, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.dilated = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.classifier, self.aux_classifier = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = self.stem(x)
        return {"out": self.classifier(self.dilated(early)), "aux": self.aux_classifier(early)}


class SameConv2d(nn.Conv2d):
    """As timm's ``Conv2dSame``: a subclass with padding of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias)


class LoRALinear(nn.Module):
    """As peft's: a frozen layer and a low-rank detour."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x) + self.lora_B(self.lora_A(x))
        return result


def image(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))
