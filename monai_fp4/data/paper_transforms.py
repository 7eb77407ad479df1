"""Normalisation and augmentation of arXiv 2605.27616, for 8-bit pictures of three channels.

The paper reads RGB files in the order BGR and then applies ImageNet's RGB mean and deviation in tensor order, so the
constants of red meet the last channel of the file. Reading in the file's order would be another experiment.

Its augmentation is albumentations' on 8-bit numbers, and differs from the bundles' own in what comes of the details:
brightness is rounded down and reaches the background, rotated pictures are filled with 0 *before* normalisation (which
is not 0 afterwards), the two axes are scaled apart, and shifts are whole pixels. One thing is not kept: the paper's
random state repeats the same draws in every epoch and every worker, and depends on nothing that is recorded. Here each
item of each epoch has draws of its own, from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from monai_fp4.data.batched import sampling_grid
from monai_fp4.data.transforms import Scale
from monai_fp4.errors import DataError

__all__ = ["PaperAugmentationd", "PaperNormalization", "normalize_imagenet"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalize_imagenet(image: Tensor) -> Tensor:
    """Reverse the channels of 0 to 255, ``[..., 3, H, W]``, and apply ImageNet's constants in tensor order.

    >>> normalize_imagenet(torch.tensor([0.0, 0.0, 255.0]).view(3, 1, 1)).flatten()
    tensor([ 2.2489, -2.0357, -1.8044])
    """
    mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (_MEAN, _STD))
    return (image.flip(-3) / 255 - mean) / std


class PaperNormalization:
    """What a data set does with a volume's intensities under the paper's protocol.

    Args:
        raw: leave 0 to 255 as they are, for training, where `PaperAugmentationd` normalises after its changes.
    """

    def __init__(self, raw: bool = False) -> None:
        self.raw = raw

    def scales(self, image: Tensor) -> list[Scale]:
        """Check a volume ``[3, H, W, D]``; nothing is measured: the constants are ImageNet's.

        Raises:
            DataError: another number of channels, or values that no 8-bit picture has.
        """
        if len(image) != 3 or image.min() < 0 or image.max() > 255 or not torch.equal(image, image.round()):
            raise DataError(
                f"the paper's protocol expects 8-bit pictures of three channels, found {len(image)} channels from "
                f"{image.min().item():g} to {image.max().item():g}; use protocols/lgg.json for this data"
            )
        return [Scale(0, 255, 255 * mean, 255 * std) for mean, std in zip(_MEAN[::-1], _STD[::-1], strict=True)]

    def scale(self, image: Tensor, scales: list[Scale], out: Tensor) -> Tensor:
        """Normalise a slice ``[3, H, W]`` or a volume ``[3, H, W, D]`` into ``out``, which may be the image itself."""
        if self.raw:
            return image if out is image else out.copy_(image)
        volume = image.ndim == 4
        done = normalize_imagenet(image.movedim(-1, 0) if volume else image)
        return out.copy_(done.movedim(0, -1) if volume else done)


class PaperAugmentationd(RandomizableTransform, MapTransform):
    """Flips, brightness, affine, then normalisation; a data set applies it to whole batches.

    Args:
        keys: image ``[3, H, W]`` of 0 to 255, and label ``[1, H, W]``.
    """

    def __init__(self, keys: KeysCollection = ("image", "label")) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change one item."""
        batch = {key: torch.as_tensor(data[key])[None].clone() for key in self.keys}
        self.apply(batch, [self.draw(2)])
        return {**data, **{key: values[0] for key, values in batch.items()}}

    def draw(self, _dims: int) -> dict[str, float]:
        """Draw an item's changes: as many numbers whatever comes of them."""
        u = dict(zip(_DRAWN, self.R.random_sample(len(_DRAWN)), strict=True))
        return {name: low + (high - low) * u[name] for name, (low, high) in _DRAWN.items()}

    def apply(self, batch: dict[str, Tensor], drawn: Sequence[Mapping[str, float]]) -> None:
        """Change a batch of images ``[B, 3, H, W]`` and labels ``[B, 1, H, W]``, an item by its draw."""
        image_key, label_key = self.keys
        image, label = batch[image_key], batch[label_key]
        for name, axis in (("flip_columns", -1), ("flip_rows", -2)):
            for values in (image, label):
                if rows := [row for row, d in enumerate(drawn) if d[name] < 0.5]:
                    values[rows] = values[rows].flip(axis)
        for row, d in enumerate(drawn):
            if d["brighten"] < 0.3:
                image[row] = image[row].mul(d["factor"]).add_(255 * d["offset"]).clamp_(0, 255).floor_()
        if rows := [row for row, d in enumerate(drawn) if d["move"] < 0.3]:
            height, width = image.shape[-2:]
            matrices = np.stack([_backwards(drawn[row], height, width) for row in rows])
            grid = sampling_grid(torch.tensor(matrices, dtype=torch.float32, device=image.device), (height, width))
            image[rows] = functional.grid_sample(image[rows], grid, "bilinear", "zeros", align_corners=False).round_()
            label[rows] = functional.grid_sample(label[rows], grid, "nearest", "zeros", align_corners=False)
        batch[image_key] = normalize_imagenet(image)


_DRAWN = {
    "flip_columns": (0.0, 1.0),
    "flip_rows": (0.0, 1.0),
    "brighten": (0.0, 1.0),
    "factor": (0.8, 1.2),
    "offset": (-0.2, 0.2),
    "move": (0.0, 1.0),
    "angle": (-15.0, 15.0),
    "scale_rows": (0.9, 1.1),
    "scale_columns": (0.9, 1.1),
    "shift_rows": (-0.1, 0.1),
    "shift_columns": (-0.1, 0.1),
}
"""What is drawn, uniformly from low to high."""


def _backwards(drawn: Mapping[str, float], height: int, width: int) -> np.ndarray:
    """``[2, 3]``: from a pixel of the result to where it comes from, rows before columns, about the centre."""
    angle = math.radians(drawn["angle"])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forwards = turn @ np.diag([drawn["scale_rows"], drawn["scale_columns"]])
    shift = np.trunc([drawn["shift_rows"] * height, drawn["shift_columns"] * width])
    inverse = np.linalg.inv(forwards)
    return np.column_stack([inverse, -inverse @ shift])
