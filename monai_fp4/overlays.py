"""Which slices to show, and how: the scan, the radiologist's contour and the model's.

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

__all__ = ["Overlay", "Reason", "SliceGallery"]


class Reason(StrEnum):
    """Why a slice is shown."""

    LARGEST = "largest tumours"
    MISSED = "worst misses"
    FALSE_ALARM = "worst false alarms"


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlay:
    """One slice of one patient.

    Attributes:
        patient: the patient's id.
        index: number of the slice, from 0.
        reason: why it is shown.
        voxels: how many voxels speak for the reason: of tumour, tumour not seen (the sum of 1 - p), or called in error.
        image: `[H, W]`, grey values in 0..1 at the scan's own size.
        label: `[H, W]`, bool.
        probability: `[H, W]`, float32.
    """

    patient: str
    index: int
    reason: Reason
    voxels: float
    image: NDArray[np.float32]
    label: NDArray[np.bool_]
    probability: NDArray[np.float32]


class SliceGallery:
    """Keeps the slices worth showing.

    Args:
        each: how many of each reason, at most one a patient.

    Example:
        >>> gallery = SliceGallery(each=1)
        >>> label = torch.zeros(1, 4, 4, 3)
        >>> label[:, :2, :2, 1] = 1
        >>> gallery.add({"image": torch.rand(3, 2, 2, 3), "label": label, "pred": 0.5 * label, "patient": "anna"})
        >>> [(o.patient, o.index, str(o.reason), o.voxels) for o in gallery.chosen()]
        [('anna', 1, 'largest tumours', 4.0), ('anna', 1, 'worst misses', 2.0)]
    """

    def __init__(self, each: int = 3) -> None:
        self.each = each
        self._kept: dict[Reason, list[Overlay]] = {reason: [] for reason in Reason}

    def add(self, item: Mapping[str, Any]) -> None:
        """Look at a patient.

        Args:
            item: an evaluator's output: "image" `[C, h, w, D]` at the network's size, "label" and "pred" `[1, H, W,
                D]` at the scan's own, "patient".
        """
        label, pred = item["label"][0].float(), item["pred"][0].float()
        amounts = {
            Reason.LARGEST: label.sum((0, 1)),
            Reason.MISSED: (label * (1 - pred)).sum((0, 1)),
            Reason.FALSE_ALARM: ((1 - label) * pred * (pred > 0.5)).sum((0, 1)),
        }
        for reason, amount in amounts.items():
            index = int(amount.argmax())
            voxels = round(float(amount[index]), 3)
            kept = self._kept[reason]
            full = len(kept) >= self.each
            if voxels <= 0 or (full and (voxels, str(item["patient"])) <= (kept[-1].voxels, kept[-1].patient)):
                continue
            kept.append(_overlay(item, index, reason, voxels))
            kept.sort(key=lambda o: o.patient)
            kept.sort(key=lambda o: o.voxels, reverse=True)
            del kept[self.each :]

    def chosen(self) -> tuple[Overlay, ...]:
        """The slices, by reason and then from the most voxels down."""
        return tuple(overlay for reason in Reason for overlay in self._kept[reason])


def _overlay(item: Mapping[str, Any], index: int, reason: Reason, voxels: float) -> Overlay:
    label, pred = item["label"][0, ..., index], item["pred"][0, ..., index]
    image: Tensor = item["image"].float()
    depth = item["label"].shape[-1]
    # A network that works in 3D saw the scan at another depth.
    at = index if image.shape[-1] == depth else min(int((index + 0.5) * image.shape[-1] / depth), image.shape[-1] - 1)
    # The second of three channels is FLAIR in the study's scans; alone it shows a lesion better than false colours do.
    channel = 1 if image.shape[0] == 3 else 0
    grey_values = image[None, channel : channel + 1, ..., at]
    plane = functional.interpolate(grey_values, size=tuple(label.shape), mode="bilinear")
    low, high = torch.quantile(plane, torch.tensor([0.01, 0.995], device=plane.device))
    grey = ((plane[0, 0] - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return Overlay(
        patient=str(item["patient"]),
        index=index,
        reason=reason,
        voxels=voxels,
        image=grey.cpu().numpy(),
        label=(label > 0).cpu().numpy(),
        probability=pred.float().cpu().numpy(),
    )
