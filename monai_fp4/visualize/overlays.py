"""Choose the slices to show of an evaluation, while patients stream by, so that no scan is read twice.

What a clinician looks for first are the largest tumours (is the outline right?), the worst misses (what was not
seen?) and the worst false alarms. The choice depends on the numbers alone, with ties broken by name, so that two runs
show the same slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from monai_fp4.data.readers.masks import IGNORED
from monai_fp4.metrics.confusion import Confusion
from monai_fp4.metrics.lesions import number_lesions

__all__ = ["Overlay", "Reason", "SliceGallery", "grey_slice"]


class Reason(StrEnum):
    """Why a slice is shown."""

    LARGEST = "largest lesions"
    MISSED = "worst misses"
    FALSE_ALARM = "worst false alarms"


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlay:
    """One slice of one patient.

    Attributes:
        patient: the patient's id.
        number: of the patient; it stands in the picture, since pictures are shown to others and the id may be a name.
        index: number of the slice, from 0.
        reason: why it is shown.
        amount: how strongly the reason holds, see `SliceGallery`.
        image: `[H, W]`, grey values in 0..1 at the scan's own size.
        label: `[H, W]`, bool.
        probability: `[H, W]`, float32; NaN where a pixel does not count.
        spacing: millimetres between rows and between columns; None where the files do not say. Where they do, columns
            run from the patient's right to the left.
    """

    patient: str
    number: int
    index: int
    reason: Reason
    amount: float
    image: NDArray[np.float32]
    label: NDArray[np.bool_]
    probability: NDArray[np.float32]
    spacing: tuple[float, float] | None = None

    def counts(self, threshold: float) -> Confusion:
        """Pixels that count, at a threshold."""
        called, passed = self.probability >= threshold, self.probability < threshold
        pairs = {"tp": (called, self.label), "fp": (called, ~self.label), "fn": (passed, self.label)}
        return Confusion(
            **{name: int(np.count_nonzero(one & other)) for name, (one, other) in pairs.items()},
            tn=int(np.count_nonzero(passed & ~self.label)),
        )


class SliceGallery:
    """Keeps the slices worth showing.

    They are those with the largest amount of:

    - tumour: its voxels;
    - miss: of each lesion, its voxels below the threshold times the share of it that they are, since the many voxels
      that a large lesion loses along its rim matter less than a small one that was overlooked, alone or beside it;
    - false alarm: the sum of p over the background voxels that reach the threshold.

    Args:
        each: how many of each reason, at most one a patient.
        threshold: from which on a voxel is called lesion; it may be set anew before a patient is added.

    Example:
        >>> import torch
        >>> gallery = SliceGallery(each=1)
        >>> label = torch.zeros(1, 4, 4, 3)
        >>> label[:, :2, :2, 1] = 1
        >>> gallery.add({"image": torch.rand(3, 2, 2, 3), "label": label, "pred": 0.25 * label, "patient": "anna"})
        >>> [(str(reason), o.patient, o.index, o.amount) for reason, (o,) in gallery.chosen(0.5).items()]
        [('largest lesions', 'anna', 1, 4.0), ('worst misses', 'anna', 1, 4.0)]
        >>> list(gallery.chosen(threshold=0.2))  # nothing is missed
        [<Reason.LARGEST: 'largest lesions'>]
    """

    def __init__(self, each: int = 3, threshold: float = 0.5) -> None:
        self.each, self.threshold = each, threshold
        self._clear()

    def _clear(self) -> None:
        self._kept: dict[Reason, list[Overlay]] = {reason: [] for reason in Reason}
        self._seen = 0

    def attach(self, engine: Engine) -> None:
        """Begin anew with each run of an evaluator, and look at every patient of its outputs."""
        engine.add_event_handler(Events.STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: [*map(self.add, engine.state.output)])

    def add(self, item: Mapping[str, Any]) -> None:
        """Look at a patient.

        Args:
            item: an evaluator's output: "image" `[C, h, w, D]` at the network's size, "label" and "pred" `[1, H, W,
                D]` at the scan's own, "patient", and "number", without which patients are counted as they come.
        """
        self._seen += 1
        number = item.get("number") or self._seen
        label, pred = (item[name][0].cpu().numpy() for name in ("label", "pred"))
        called, lesion = pred >= self.threshold, label == 1
        amounts = {
            Reason.LARGEST: lesion.sum((0, 1), dtype=np.float64),
            Reason.MISSED: _missed(lesion, ~called),
            Reason.FALSE_ALARM: np.sum(pred, (0, 1), where=called & (label == 0), dtype=np.float64),
        }
        for reason, by_slice in amounts.items():
            index = int(by_slice.argmax())
            amount = round(float(by_slice[index]), 3)
            kept = self._kept[reason]
            rank = (-amount, str(item["patient"]))
            if amount <= 0 or (len(kept) >= self.each and rank >= (-kept[-1].amount, kept[-1].patient)):
                continue
            kept.append(_overlay(item, int(number), index, reason, amount))
            kept.sort(key=lambda overlay: (-overlay.amount, overlay.patient))
            del kept[self.each :]

    def chosen(self, threshold: float) -> dict[Reason, list[Overlay]]:
        """The slices for each reason that there are any for at a threshold, from the largest amount down."""
        holds = {Reason.MISSED: lambda counts: counts.fn, Reason.FALSE_ALARM: lambda counts: counts.fp}
        found = {
            reason: [o for o in kept if reason is Reason.LARGEST or holds[reason](o.counts(threshold))]
            for reason, kept in self._kept.items()
        }
        return {reason: kept for reason, kept in found.items() if kept}


def _missed(lesion: NDArray[np.bool_], unseen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """By slice, the sum over its lesions of how many voxels are unseen of each, times the share of it."""
    numbers, box = number_lesions(lesion)
    found, count, depth = np.zeros(lesion.shape[2]), int(numbers.max(initial=0)) + 1, numbers.shape[2]
    at = (numbers * depth + np.arange(depth)).ravel()
    size, lost = (
        np.bincount(at, weights, minlength=count * depth).reshape(count, depth)[1:]
        for weights in (None, unseen[box].ravel())
    )
    found[box[2]] = (lost**2 / np.maximum(size, 1)).sum(0)
    return found


def _overlay(item: Mapping[str, Any], number: int, index: int, reason: Reason, amount: float) -> Overlay:
    label, pred = (item[name][0, ..., index].cpu().numpy() for name in ("label", "pred"))
    spacing = item.get("spacing")
    return Overlay(
        patient=str(item["patient"]),
        number=number,
        index=index,
        reason=reason,
        amount=amount,
        image=grey_slice(item["image"], index, tuple(item["label"].shape[1:])),
        label=label == 1,
        probability=np.where(label == IGNORED, np.float32(np.nan), pred.astype(np.float32)),
        spacing=None if spacing is None else (spacing[0], spacing[1]),
    )


def grey_slice(image: Tensor, index: int, native: tuple[int, ...]) -> NDArray[np.float32]:
    """One slice of a scan as grey values in 0..1.

    Args:
        image: `[C, h, w, D]` at the network's size.
        index: number of the slice at the scan's own size.
        native: that size, (H, W, D).
    """
    *size, depth = native
    # A network that works in 3D saw the scan at another depth.
    at = index if image.shape[-1] == depth else min(int((index + 0.5) * image.shape[-1] / depth), image.shape[-1] - 1)
    # The second of three channels is FLAIR in the study's scans; alone it shows a lesion better than false colours do.
    channel = 1 if image.shape[0] == 3 else 0
    plane = functional.interpolate(image[None, channel : channel + 1, ..., at].float(), size=size, mode="bilinear")
    grey = plane[0, 0].cpu().numpy()
    low, high = np.quantile(grey, [0.01, 0.995]).astype(np.float32)  # torch's takes 16 million pixels at most
    return ((grey - low) / max(high - low, np.float32(1e-6))).clip(0, 1)
