"""Patients made of numbers: images, masks and imperfect probabilities, without any file or network."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from torch import nn


def synthetic_patient(
    name: str, *, seed: int, radius: float = 8, depth: int = 6, size: int = 48, seen: float = 1.0
) -> dict:
    """A ball in noise; ``seen`` scales the probability given to it. Radius 0: no tumour."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.meshgrid(torch.arange(size), torch.arange(size), torch.arange(depth), indexing="ij")
    centre = (size * 0.4, size * 0.55, depth * 0.5)
    distance = sum((((g - c) / w) ** 2 for g, c, w in zip(grid, centre, (1, 1, 0.3), strict=True))) ** 0.5
    label = (distance < radius)[None]
    noise = torch.randn(1, size, size, depth, generator=generator)
    logits = 1.2 * noise - 4 + seen * 7 * torch.sigmoid((radius - distance) / 1.5)[None] * (radius > 0)
    brain = ((grid[0] - size / 2) ** 2 + (grid[1] - size / 2) ** 2 < (0.45 * size) ** 2).float()
    image = (brain * (0.5 + 0.05 * noise[0]) + 0.3 * label[0]).expand(3, -1, -1, -1)
    image = nn.functional.interpolate(image[None], size=(size // 2, size // 2, depth))[0]
    return {
        "image": image,
        "label": label.to(torch.uint8),
        "pred": torch.sigmoid(logits),
        "patient": name,
        "loss": 0.25 * seed,
    }


def synthetic_cohort() -> list[dict[str, Any]]:
    """Four patients with tumours of different sizes, one of them missed, and one without tumour."""
    return [
        synthetic_patient("large", seed=1, radius=14),
        synthetic_patient("middle", seed=2, radius=9),
        synthetic_patient("small", seed=3, radius=4),
        synthetic_patient("missed", seed=4, radius=6, seen=-1.0),
        synthetic_patient("healthy", seed=5, radius=0),
    ]


def evaluator_of(patients: list[dict[str, Any]], **kwargs: Any) -> SupervisedEvaluator:
    """MONAI's evaluator whose outputs are the given patients."""

    def step(_engine: Engine, item: dict[str, Any]) -> list[dict[str, Any]]:
        return [item]

    return SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=patients, network=nn.Identity(), iteration_update=step,
        decollate=False, **kwargs
    )  # fmt: skip
