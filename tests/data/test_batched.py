"""Batch-wise augmentation against MONAI's own transforms, item by item, from the same random states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import set_track_meta
from monai.transforms import (
    Compose,
    Flip,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)

from monai_fp4.bundle import augmentation
from monai_fp4.data.batched import batch_transform

BOTH = ["image", "label"]
COUNT = 24
AUGMENTATION_OF_VOLUMES = Compose(
    [
        *(RandFlipd(BOTH, prob=0.5, spatial_axis=axis) for axis in range(2)),
        RandAffined(
            BOTH,
            prob=0.5,
            rotate_range=[0.0, 0.0, 0.26],
            scale_range=[0.1] * 3,
            mode="bilinear",
            padding_mode=("border", "zeros"),
        ),
        RandScaleIntensityd("image", factors=0.15, prob=0.5),
        RandShiftIntensityd("image", offsets=0.15, prob=0.5),
    ]
)
CHAINS: dict[str, Any] = {
    "the study's": lambda dims: augmentation() if dims == 2 else AUGMENTATION_OF_VOLUMES,
    "all axes flipped": lambda dims: RandFlipd(BOTH, prob=0.5),
    "negative axis": lambda dims: RandFlipd("label", prob=0.5, spatial_axis=-1),
    "every kind of matrix": lambda dims: RandAffined(
        BOTH,
        prob=0.7,
        rotate_range=[0.4] * (1 if dims == 2 else 3),
        shear_range=[0.2] * (2 if dims == 2 else 6),
        translate_range=[(0, 5)] * dims,
        scale_range=[0.3] * dims,
        mode=("bilinear", "nearest"),
        padding_mode="reflection",
    ),
    "intensity between shapes": lambda dims: Compose(
        [
            RandScaleIntensityd(BOTH, factors=(0.5, 0.9), prob=0.5),
            Compose([RandAffined("image", prob=1.0, rotate_range=0.3)]),
            RandShiftIntensityd("image", offsets=0.5, prob=1.0),
            RandFlipd("image", prob=0.5, spatial_axis=[0, 1]),
        ]
    ),
}


@pytest.fixture(autouse=True)
def _no_history() -> Any:
    set_track_meta(False)
    yield
    set_track_meta(True)


def batch(dims: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    size = (21, 18, 7)[:dims]
    return {"image": torch.randn(COUNT, 2, *size), "label": torch.rand(COUNT, 1, *size)}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("chain", CHAINS)
def test_does_what_monai_does_to_each_item(chain: str, dims: int) -> None:
    transform = CHAINS[chain](dims)
    state = np.random.RandomState()

    def seed(item: int) -> None:
        state.seed([7, item])
        leaves = transform.flatten().transforms if isinstance(transform, Compose) else [transform]
        for each in leaves:
            each.set_random_state(state=state)

    given = batch(dims)
    wanted = []
    for item in range(COUNT):
        seed(item)
        wanted.append(transform({key: values[item].clone() for key, values in given.items()}))
    batched = batch_transform(transform)
    assert batched is not None
    result = batched(
        {key: values.clone() for key, values in given.items()}, [lambda i=i: seed(i) for i in range(COUNT)]
    )
    moved = 0
    for key, values in result.items():
        expected = torch.stack([torch.as_tensor(item[key]) for item in wanted])
        differing = (values - expected).abs() > 1e-4 * expected.abs().clamp(min=1)
        # A sample that falls between two pixels may be taken from either under "nearest".
        assert differing.float().mean() < (1e-3 if "matrix" in chain and key == "label" else 1e-9)
        moved += int((values != given[key]).flatten(1).any(dim=1).sum())
    assert moved > COUNT / 4


def test_a_batch_does_not_change_what_becomes_of_an_item() -> None:
    transform = augmentation()
    batched = batch_transform(transform)
    assert batched is not None

    def seed(item: int) -> None:
        for each in transform.transforms:
            each.set_random_state(state=np.random.RandomState(item)) if each is transform.transforms[0] else None
        for each in transform.transforms[1:]:
            each.set_random_state(state=transform.transforms[0].R)

    def run(rows: list[int]) -> torch.Tensor:
        part = {key: values[rows].clone() for key, values in batch(2).items()}
        return batched(part, [lambda i=i: seed(i) for i in rows])["image"]

    whole = run(list(range(COUNT)))
    for rows in ([5], [9, 4, 17], list(range(11))):
        assert torch.equal(run(rows), whole[rows])


@pytest.mark.parametrize(
    "transform",
    [
        lambda item: item,
        Flip(0),
        RandGaussianNoised("image"),
        Compose([RandFlipd(BOTH), RandGaussianNoised("image")]),
        RandFlipd(["image", "other"]),
        RandFlipd(BOTH, lazy=True),
        Compose([RandFlipd(BOTH)], lazy=True),
        RandAffined(BOTH, spatial_size=8),
        RandAffined(BOTH, mode=3),
        RandScaleIntensityd("image", factors=0.1, channel_wise=True),
        RandShiftIntensityd("image", offsets=0.1, channel_wise=True),
        RandShiftIntensityd("image", offsets=0.1, factor_key="mean"),
        type("Own", (RandFlipd,), {})(BOTH),
    ],
)
def test_what_it_does_not_know_it_leaves_to_monai(transform: Any) -> None:
    assert batch_transform(transform) is None
