"""Choose the slices to show, and draw them: the scan, the radiologist's contour and the model's.

What a clinician looks for first are the largest tumours (is the outline right?), the worst misses (what was not
seen?) and the worst false alarms. They are kept while patients stream by, so that no scan is read twice; the choice
depends on the numbers alone, with ties broken by name, so that two runs show the same slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

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
        probability: `[H, W]`, float32.
    """

    patient: str
    number: int
    index: int
    reason: Reason
    amount: float
    image: NDArray[np.float32]
    label: NDArray[np.bool_]
    probability: NDArray[np.float32]


class SliceGallery:
    """Keeps the slices worth showing.

    They are those with the largest amount of:

    - tumour: its voxels;
    - miss: voxels not seen (the sum of 1 - p over the tumour) times the share of the tumour that they are, since the
      many voxels that a large tumour loses along its rim matter less than a small tumour that was overlooked;
    - false alarm: the sum of p over the background voxels with p above one half.

    Args:
        each: how many of each reason, at most one a patient.

    Example:
        >>> gallery = SliceGallery(each=1)
        >>> label = torch.zeros(1, 4, 4, 3)
        >>> label[:, :2, :2, 1] = 1
        >>> gallery.add({"image": torch.rand(3, 2, 2, 3), "label": label, "pred": 0.5 * label, "patient": "anna"})
        >>> [(str(reason), o.patient, o.index, o.amount) for reason, (o,) in gallery.chosen().items()]
        [('largest lesions', 'anna', 1, 4.0), ('worst misses', 'anna', 1, 1.0)]
    """

    def __init__(self, each: int = 3) -> None:
        self.each = each
        self._kept: dict[Reason, list[Overlay]] = {reason: [] for reason in Reason}
        self._seen = 0

    def add(self, item: Mapping[str, Any]) -> None:
        """Look at a patient.

        Args:
            item: an evaluator's output: "image" `[C, h, w, D]` at the network's size, "label" and "pred" `[1, H, W,
                D]` at the scan's own, "patient", and "number", without which patients are counted as they come.
        """
        self._seen += 1
        number = item.get("number") or self._seen
        label, pred = (item["label"][0] == 1).float(), item["pred"][0].float()
        tumour, unseen = label.sum((0, 1)), (label * (1 - pred)).sum((0, 1))
        amounts = {
            Reason.LARGEST: tumour,
            Reason.MISSED: unseen.square() / tumour.clamp(min=1),
            Reason.FALSE_ALARM: ((1 - label) * pred * (pred > 0.5)).sum((0, 1)),
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

    def chosen(self) -> dict[Reason, list[Overlay]]:
        """The slices for each reason that there are any for, from the largest amount down."""
        return {reason: list(kept) for reason, kept in self._kept.items() if kept}


def _overlay(item: Mapping[str, Any], number: int, index: int, reason: Reason, amount: float) -> Overlay:
    label, pred = item["label"][0, ..., index], item["pred"][0, ..., index]
    return Overlay(
        patient=str(item["patient"]),
        number=number,
        index=index,
        reason=reason,
        amount=amount,
        image=grey_slice(item["image"], index, tuple(item["label"].shape[1:])),
        label=(label == 1).cpu().numpy(),
        probability=pred.float().cpu().numpy(),
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
    low, high = torch.quantile(plane, torch.tensor([0.01, 0.995], device=plane.device))
    grey = ((plane[0, 0] - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return grey.cpu().numpy()
