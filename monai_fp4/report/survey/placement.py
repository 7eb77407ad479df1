"""Masks that seem to lie beside the lesion: moved, mirrored, turned, or in the reverse order of slices.

How well a mask fits its scan is the correlation of mask and intensities within the lesion and a rim around it: a
lesion that is brighter than its rim gives a number near 1, a mask anywhere else one near 0. Each mask is tried where
it is, moved by up to an eighth of the picture, and turned in the ways that a lost header turns it. What is compared is
one channel and one sign, those in which the masks of the whole set agree best.

* The rule is used on a set of at least five masks of which two thirds fit best in one and the same place. Where lesions
  are neither brighter nor darker than what is around them, it says nothing.
* A mask is suspected if it fits somewhere else by 0.4 or more, by 0.3 better than where it is, and by 0.1 better than
  in any third place.
* Where most masks fit best in another place than their own, all of them are suspected together.

Moves of less than a thirtieth of the picture are not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from monai_fp4.data.transforms import resize

__all__ = ["FITS", "BETTER", "CLEARER", "Fit", "Placement", "Verdict", "fit_of", "judge"]

FITS = 0.4
"""How well a mask must fit elsewhere."""
BETTER = 0.3
"""How much better than where it is."""
CLEARER = 0.1
"""How much better than in any third place."""
ENOUGH = 5
"""Masks that the rule needs."""
AGREE = 2 / 3
"""The share of them that must fit best in the same place."""

_SIDE, _REACH, _NEAR, _SLICES = 128, 16, 2, 8
_PEAK, _TRIED = 6, 20
"""Pixels around a place that belong to it and are no third one; places that may be the common one."""
_GIVEN = "moved"
_TURNS = {"mirrored top to bottom": (1,), "mirrored left to right": (2,), "turned by 180 degrees": (1, 2)}


@dataclass(frozen=True)
class Fit:
    """How well one mask fits in each place.

    Attributes:
        maps: by turn, ``[C, moves along rows, moves along columns]``; ``"moved"`` is the mask without a turn.
        middles: of the mask, by turn, in moves from the first row and column.
        step: pixels of the scan that one move is.
    """

    maps: Mapping[str, NDArray[np.float32]] = field(repr=False)
    middles: Mapping[str, tuple[float, float]]
    step: float


@dataclass(frozen=True)
class Placement:
    """A place in which a mask fits: turned, then moved by so many pixels along rows and columns of the scan."""

    turn: str
    down: float
    right: float
    fit: float

    def __str__(self) -> str:
        """In words.

        >>> print(Placement("moved", -12.0, 4.0, 0.7))
        moved by 12 pixels up and 4 to the right
        """
        ways = [(self.down, "down", "up"), (self.right, "to the right", "to the left")]
        moves = [(abs(pixels), forth if pixels > 0 else back) for pixels, forth, back in ways if round(pixels)]
        unit = ["pixels ", ""]
        words = " and ".join(f"{pixels:.0f} {unit[at]}{way}" for at, (pixels, way) in enumerate(moves))
        if self.turn != _GIVEN:
            return self.turn + (f", then moved by {words}" if words else "")
        return f"moved by {words}" if words else "where it is"


@dataclass(frozen=True)
class Verdict:
    """What the rule says of a set.

    Attributes:
        masks: how many were looked at.
        channel: the channel in which they agree best, by number; -1 where there are too few masks.
        brighter: whether lesions are brighter than their rim there.
        agreeing: share of the masks that fit best in one place.
        common: that place, where it is another than the masks' own.
        suspects: by number of the patient, where its mask fits as it is, and the better place.
    """

    masks: int
    channel: int = -1
    brighter: bool = True
    agreeing: float = 0.0
    common: Placement | None = None
    suspects: Mapping[int, tuple[float, Placement]] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the rule can be used on this set."""
        return self.masks >= ENOUGH and self.agreeing >= AGREE


def fit_of(image: NDArray[np.float32], mask: NDArray[np.bool_]) -> Fit | None:
    """Try a mask in all places.

    Args:
        image: ``[C, H, W, D]``.
        mask: ``[H, W, D]``.

    Returns:
        ``None`` where the mask is empty or everything.
    """
    height, width, depth = mask.shape
    amounts = mask.sum((0, 1))
    order = np.argsort(-amounts, kind="stable")[:_SLICES]
    slices = order[(amounts[order] > 0) & (amounts[order] < height * width)]
    if not len(slices):
        return None
    scale = _SIDE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    planes, reverse = (_planes(image[..., which], size) for which in (slices, depth - 1 - slices))
    small = resize(torch.from_numpy(np.moveaxis(mask[..., slices], -1, 0).astype(np.float32)), size)
    turned = {_GIVEN: small} | {turn: small.flip(axes) for turn, axes in _TURNS.items()}
    if height == width:
        turned["with rows and columns exchanged"] = small.transpose(1, 2)
    maps = {turn: _map(planes, masks, _REACH if turn == _GIVEN else _NEAR) for turn, masks in turned.items()}
    middles = {turn: _middle(masks) for turn, masks in turned.items()}
    if depth > 2:
        name = "with its slices in reverse order"
        maps[name], middles[name] = _map(reverse, small, _NEAR), middles[_GIVEN]
    return Fit(maps, middles, 1 / scale)


def _middle(masks: torch.Tensor) -> tuple[float, float]:
    rows, columns = masks.sum((0, 2)), masks.sum((0, 1))
    down, right = (float((each * torch.arange(len(each))).sum() / each.sum()) for each in (rows, columns))
    return down, right


def _planes(image: NDArray[np.float32], size: tuple[int, int]) -> torch.Tensor:
    """Slices ``[S, C, h, w]``, each channel with mean 0 and deviation 1 over all of them."""
    planes = []
    for channel in image:
        stack = np.moveaxis(channel, -1, 0)
        stack = (stack - stack.mean(dtype=np.float64)) / (stack.std(dtype=np.float64) or 1.0)
        planes.append(resize(torch.from_numpy(stack.astype(np.float32)), size))
    return torch.stack(planes, dim=1)


def _map(planes: torch.Tensor, masks: torch.Tensor, reach: int) -> NDArray[np.float32]:
    """Correlation of masks ``[S, h, w]`` with slices ``[S, C, h, w]`` within lesion and rim, by move."""
    moves = 2 * reach + 1
    together, spread = (torch.zeros(planes.shape[1], moves, moves, dtype=torch.float64) for _ in range(2))
    own = 0.0
    for plane, mask in zip(planes, masks, strict=True):
        lesion = mask > 0
        rim = max(2, round(0.5 * float(mask.sum() / torch.pi) ** 0.5))
        inside = ndimage.binary_dilation(lesion.numpy(), iterations=rim)
        rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        window = torch.from_numpy(inside[box]).float()
        count = float(window.sum())
        weights = (mask[box] - mask[box][window > 0].mean()) * window
        padded = functional.pad(plane[:, None], (reach,) * 4, mode="replicate")
        area = padded[:, :, box[0].start : box[0].stop + 2 * reach, box[1].start : box[1].stop + 2 * reach]
        sums, squares = (functional.conv2d(values, window[None, None])[:, 0].double() for values in (area, area**2))
        together += functional.conv2d(area, weights[None, None])[:, 0].double()
        spread += (squares - sums**2 / count).clamp(min=1e-4 * count)
        own += float(weights.square().sum())
    return (together / (own * spread).sqrt().clamp(min=1e-9)).float().numpy()  # type: ignore[no-any-return]


def judge(fits: Mapping[int, Fit]) -> Verdict:
    """Judge the masks of a set by the rule of this module.

    Args:
        fits: of every patient that has a lesion, by number.
    """
    if len(fits) < ENOUGH:
        return Verdict(len(fits))
    every = list(fits.values())
    best: tuple[float, int, int] = (-1.0, 0, 1)
    for turn in dict.fromkeys(turn for fit in every for turn in fit.maps):
        maps = [fit.maps[turn] for fit in every if turn in fit.maps]
        if 2 * len(maps) > len(every):
            middle = np.median(maps, axis=0)
            channel = int(np.abs(middle).max((1, 2)).argmax())
            peak = middle[channel].ravel()[np.abs(middle[channel]).argmax()]
            best = max(best, (float(abs(peak)), channel, 1 if peak > 0 else -1))
    _, channel, sign = best
    maps_of = {n: {turn: sign * values[channel] for turn, values in fit.maps.items()} for n, fit in fits.items()}
    places = {n: _best(each, fits[n]) for n, each in maps_of.items()}
    common, agreeing = _common(list(places.values()), every)
    suspects = {}
    for number, (place, third) in places.items():
        given = float(maps_of[number][_GIVEN][_REACH, _REACH])
        if place.fit >= FITS and place.fit - given >= BETTER and place.fit - third >= CLEARER:
            suspects[number] = given, place
    usable = agreeing >= AGREE
    return Verdict(len(fits), channel, sign > 0, agreeing, common if usable else None, suspects if usable else {})


def _best(maps: Mapping[str, NDArray[np.float32]], fit: Fit) -> tuple[Placement, float]:
    """The place in which a mask fits best, and how well it fits where it lies elsewhere, turned or not."""
    turn = max(maps, key=lambda name: float(maps[name].max()))
    reach = len(maps[turn]) // 2
    down, right = (int(at) - reach for at in np.unravel_index(maps[turn].argmax(), maps[turn].shape))
    lies = fit.middles[turn][0] + down, fit.middles[turn][1] + right
    third = -1.0
    for name, values in maps.items():  # a round lesion mirrored lies where the same one moved does
        moves = np.arange(len(values)) - len(values) // 2
        rows, columns = (np.abs(moves + at - here) for at, here in zip(fit.middles[name], lies, strict=True))
        elsewhere = np.maximum(rows[:, None], columns) > _PEAK
        third = max(third, float(np.where(elsewhere, values, -1).max()))
    return Placement(turn, down * fit.step, right * fit.step, float(maps[turn].max())), third


def _common(places: Sequence[tuple[Placement, float]], fits: Sequence[Fit]) -> tuple[Placement | None, float]:
    """The place in which most masks fit best, if it is not where they are, and the share of these masks."""

    def near(one: Placement, other: Placement, step: float) -> bool:
        reach = _NEAR * step + 1e-6
        return one.turn == other.turn and max(abs(one.down - other.down), abs(one.right - other.right)) <= reach

    own = Placement(_GIVEN, 0.0, 0.0, 0.0)
    every = [place for place, _ in places]
    steps = [fit.step for fit in fits]
    where = Counter((place.turn, place.down, place.right) for place in every)
    tried = [own, *(Placement(*place, 0.0) for place, _ in where.most_common(_TRIED))]
    counts = [sum(near(each, one, step) for each, step in zip(every, steps, strict=True)) for one in tried]
    most = int(np.argmax(counts))  # of equals the first, their own place
    found = None if near(tried[most], own, max(steps)) else tried[most]
    return found, counts[most] / len(every)
