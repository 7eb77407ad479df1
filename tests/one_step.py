"""A trainer of one step of a small network, for what the step does."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import nn

from monai_fp4.engines import (
    TrainingStep,
)


def trainer(network: nn.Module, batches: list[dict[str, torch.Tensor]], **step: Any) -> SupervisedTrainer:
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=nn.BCEWithLogitsLoss(),
        iteration_update=TrainingStep(**step),
        decollate=False,
    )


def batch(value: float = 0.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 8, 8, generator=generator) + value
    return {"image": image, "label": (torch.rand(2, 1, 8, 8, generator=generator) < 0.3).float()}


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))


def moody() -> nn.Sequential:
    """A network that answers otherwise in training than in evaluation, by its batch norm and by its dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))
