"""What happens to a scan before a network sees it: normalisation per volume, resizing, and random augmentation.

All are MONAI dictionary transforms over the keys ``image`` and ``label``, so that they can stand in a bundle by
``_target_`` and be exchanged there. The one transform of our own is the normalisation: scanners give arbitrary
units, and MONAI's ``NormalizeIntensity`` takes either all voxels, so that the share of air decides the result, or
all that are not exactly zero, which the noisy air of a magnitude image never is.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    MapTransform,
    RandAffined,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Resized,
)
from monai.transforms import Transform as MonaiTransform

from monai_fp4.errors import ConfigError

__all__ = ["NormalizeForegroundd", "augmentation", "check_size", "resize_to"]


class NormalizeForegroundd(MapTransform):
    """Scale each channel of a volume to mean 0 and standard deviation 1 over its foreground.

    The foreground are the voxels above the channel's mean (the rule of Nyul and Udupa, Magnetic Resonance in
    Medicine 42, 1999), which leaves out air, noisy or not. Its values are first clipped to two percentiles of the
    foreground, and air at the lower end to its own value, so that a bright vessel does not squeeze the brain into a
    few grey levels.

    Args:
        keys: which entries; each ``[C, ...]``.
        lower: percentile of the whole channel below which values are clipped.
        upper: percentile of the foreground above which values are clipped.
        allow_missing_keys: pass over keys that are not there.

    >>> import torch
    >>> scan = torch.cat([torch.zeros(1, 50), torch.linspace(80, 120, 50)[None]], dim=1)
    >>> image = NormalizeForegroundd("image", upper=100)({"image": scan})["image"]
    >>> round(image[scan > 0].mean().item(), 4), round(image[scan > 0].std(correction=0).item(), 4)
    (0.0, 1.0)
    """

    def __init__(
        self, keys: KeysCollection, lower: float = 0.5, upper: float = 99.5, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0 <= lower < upper <= 100:
            raise ConfigError(
                f"expected percentiles 0 <= lower < upper <= 100, found lower={lower} and upper={upper}; correct them"
            )
        self.lower, self.upper = lower, upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of ``data`` with the normalised entries as float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = torch.as_tensor(result[key], dtype=torch.float32)
            result[key] = scaled = torch.empty_like(image)
            for channel, out in zip(image, scaled, strict=True):
                low, high, mean, spread = self._statistics(channel.numpy())
                torch.clamp(channel, low, high, out=out).sub_(mean).div_(spread)
        return result

    def _statistics(self, channel: np.ndarray) -> tuple[float, float, float, float]:
        """Bounds to clip to, then mean and standard deviation of the foreground."""
        # A quarter of a million voxels tell as much as all of them, in a fraction of the time; all slices take part.
        step = max(1, int((channel.size / 2**18) ** 0.5))
        values = channel[::step, ::step] if channel.ndim > 1 else channel
        low, peak = (float(bound) for bound in np.percentile(values, [self.lower, self.upper]))
        # The mean without the very brightest, or a few hot voxels of a small volume would be the foreground.
        inside = values[values > values.clip(max=peak).mean(dtype=np.float64)]
        if inside.size == 0:  # one value everywhere: a channel that is not there
            return low, low, low, 1.0
        high = float(np.percentile(inside, self.upper))
        inside = inside.clip(low, high)
        # A foreground of one value has no spread of its own; any scale will do.
        return low, high, float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64)) or 1.0


def check_size(image_size: Sequence[int]) -> tuple[int, ...]:
    """Check an image size: two numbers for networks that take slices, three for those that take volumes.

    Raises:
        ConfigError: anything else.
    """
    size = tuple(image_size) if isinstance(image_size, Sequence) and not isinstance(image_size, str) else ()
    if len(size) not in (2, 3) or any(isinstance(edge, bool) or not isinstance(edge, int) or edge < 1 for edge in size):
        raise ConfigError(
            f"expected image_size to be 2 or 3 positive whole numbers, found {image_size!r}; write [128, 128]"
        )
    return size


def resize_to(spatial_size: Sequence[int], keys: KeysCollection, old_size: Sequence[int]) -> MonaiTransform:
    """The transform that brings a volume from ``old_size`` to ``spatial_size``, both of three numbers.

    Averages areas where every side shrinks, so that nothing is lost between the pixels that a network sees;
    interpolates linearly otherwise. Masks come out as shares between 0 and 1.
    """
    shrinks = all(new <= old for new, old in zip(spatial_size, old_size, strict=True))
    return Resized(keys, tuple(spatial_size), mode="area" if shrinks else "trilinear")


def augmentation(spatial_dims: int = 2, keys: tuple[str, str] = ("image", "label")) -> Compose:
    """The study's random changes: flips, rotation, scale and shift, brightness and contrast; all of them MONAI's.

    Args:
        spatial_dims: 2 for slices, 3 for volumes.
        keys: image ``[C, ...]`` and label ``[1, ...]``.
    """
    image, _ = keys
    return Compose(
        [
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(2)),
            RandAffined(
                keys,
                prob=0.5,
                # Radians; in three dimensions only in the plane of the slices, which lie far apart.
                rotate_range=[0.26] if spatial_dims == 2 else [0.0, 0.0, 0.26],
                scale_range=[0.1] * spatial_dims,
                mode="bilinear",
                padding_mode=("border", "zeros"),
            ),
            RandScaleIntensityd(image, factors=0.15, prob=0.5),
            RandShiftIntensityd(image, offsets=0.15, prob=0.5),
        ]
    )
