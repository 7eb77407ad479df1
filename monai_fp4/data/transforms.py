"""Transform a scan before a network sees it: normalisation per volume, and resizing.

The random augmentation is a list of MONAI's dictionary transforms in the bundle itself (``train#preprocessing``; in
Python, :func:`monai_fp4.bundle.augmentation`). The one transform of our own is the normalisation: scanners give
arbitrary units, and MONAI's ``NormalizeIntensity`` takes either all voxels, so that the share of air decides the
result, or all that are not exactly zero, which the noisy air of a magnitude image never is.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_fp4.errors import ConfigError

__all__ = ["NormalizeForegroundd", "Scale", "percentiles", "resize"]

_SMALL_BLOCK = 4
"""Up to so many pixels a block, adding them up ourselves takes half of torch's time; above it, torch is quicker."""
_FARTHEST = 100.0
"""How many standard deviations of the foreground air may be away from it; usual scans stay far below."""
_PIECE = 2**20
"""Values that are counted at once."""
_NO_SPREAD = 1e-30
"""A spread that float32 cannot divide by."""


class Scale(NamedTuple):
    """Normalisation of one channel: bounds to clip to, then what to subtract and what to divide by."""

    low: float
    high: float
    mean: float
    spread: float


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
            result[key] = self.scale(image, self.scales(image), torch.empty_like(image))
        return result

    def scales(self, image: torch.Tensor) -> list[Scale]:
        """Compute the normalisation of each channel of a volume, float32 ``[C, ...]``."""
        return [self._scale(channel.numpy()) for channel in image]

    @staticmethod
    def scale(image: torch.Tensor, scales: Sequence[Scale], out: torch.Tensor) -> torch.Tensor:
        """Normalise a volume, or a part of it, into ``out``, which may be the volume itself."""
        for channel, place, (low, high, mean, spread) in zip(image, out, scales, strict=True):
            torch.clamp(channel, low, high, out=place).sub_(mean).div_(spread)
        return out

    def _scale(self, channel: np.ndarray) -> Scale:
        # A quarter of a million voxels tell as much as all of them, in a fraction of the time; all slices take part.
        step = max(1, int((channel.size / 2**18) ** 0.5))
        # In one order whatever the layout in memory, since the sums below depend on it in their last bits.
        values = np.ascontiguousarray(channel[::step, ::step] if channel.ndim > 1 else channel)
        low, peak = (float(bound) for bound in percentiles(values, [self.lower, self.upper]))
        # The mean without the very brightest, or a few hot voxels of a small volume would be the foreground.
        inside = values[values > values.clip(max=peak).mean(dtype=np.float64)]
        if inside.size == 0:  # one value everywhere: a channel that is not there
            return Scale(low, low, low, 1.0)
        high = float(percentiles(inside, self.upper))
        inside = inside.clip(low, high)
        mean = float(inside.mean(dtype=np.float64))
        # A foreground of (nearly) one value has no spread of its own, and air would be thousands of them away.
        spread = max(float(inside.std(dtype=np.float64)), (mean - low) / _FARTHEST)
        if inside.min() == inside.max():
            spread = mean - low
        return Scale(low, high, mean, spread if spread > _NO_SPREAD else 1.0)


def percentiles(values: np.ndarray, percents: float | list[float]) -> Any:
    """``np.percentile`` to the last bit; whole numbers of 16 bits, as most scanners give, are counted, not sorted."""
    first, last = values.min(), values.max()
    counts = _counts(values, int(first), int(last)) if first >= -(2**15) and last < 2**16 else None  # no NaN
    if counts is None:
        return np.percentile(values, percents)
    up_to = np.cumsum(counts)  # how many are at most so large

    def percentile(percent: float) -> tuple[np.ndarray, float]:
        """The two values that are next to it, and which share of the way it lies from one to the other."""
        place = (values.size - 1) * (percent / 100)
        below = math.floor(place)
        pair = np.searchsorted(up_to, (below, min(below + 1, values.size - 1)), side="right") + int(first)
        return pair.astype(values.dtype), place - below

    # NumPy interpolates in float64 for a list and in the values' own type for a number.
    if isinstance(percents, list):
        return [np.quantile(pair, [share])[0] for pair, share in map(percentile, percents)]
    return np.quantile(*percentile(percents))


def _counts(values: np.ndarray, first: int, last: int) -> np.ndarray | None:
    """How often each whole number is there, from the first to the last; ``None`` where there are others."""
    flat = values.ravel(order="K")
    counts = np.zeros(last - first + 1, np.int64)
    for start in range(0, len(flat), _PIECE):  # as indices all of them would take twice the memory of the image
        piece = flat[start : start + _PIECE]
        whole = piece.astype(np.intp)
        if not np.array_equal(whole, piece):
            return None
        counts += np.bincount(whole - first, minlength=len(counts))
    return counts


def resize(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring a slice ``[C, H, W]`` or a volume ``[C, H, W, D]`` of float32 to ``size``, two or three numbers.

    Averages areas along the sides that shrink, so that nothing is lost between the pixels that a network sees; then
    interpolates linearly along those that grow. Masks come out as shares between 0 and 1. The same as MONAI's
    ``Resize`` of one step and the other, without what that does around it, which takes as long for a slice.

    >>> resize(torch.eye(4)[None], (2, 2))
    tensor([[[0.5000, 0.0000],
             [0.0000, 0.5000]]])
    """
    old, size = tuple(image.shape[1:]), tuple(size)
    if old == size:
        return image
    shrinks = all(new <= side for new, side in zip(size, old, strict=True))
    if shrinks and len(size) == 2:
        (rows, row_rest), (columns, column_rest) = map(divmod, old, size)
        if not (row_rest or column_rest) and rows * columns <= _SMALL_BLOCK:
            return _block_means(image, rows, columns)
    if (smaller := tuple(map(min, size, old))) not in (old, size):
        return resize(resize(image, smaller), size)
    if not shrinks and len(size) == 2:  # as a volume of one slice, since torch's bilinear rounds otherwise
        return resize(image[..., None], (*size, 1))[..., 0]
    return torch.nn.functional.interpolate(image[None], size, mode="area" if shrinks else "trilinear")[0]


def _block_means(image: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Means of whole blocks, added up in torch's order and so the same bits as its averages of areas."""
    corners = [image[:, row::rows, column::columns] for row in range(rows) for column in range(columns)]
    total = corners[0] + 0.0
    for corner in corners[1:]:
        total += corner
    return total.div_(rows).div_(columns)
