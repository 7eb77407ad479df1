"""The answer of one network or several on one scan, filled in slice by slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_fp4.metrics.lesions import missed_lesions

__all__ = ["Segmented"]


@dataclass
class Segmented:
    """What became of a scan; volumes ``[H, W, D]`` as the scan is looked at.

    Attributes:
        mask: uint8, 1 where the probability reaches the threshold.
        probability: float32, where it was asked for.
        disagreement: float32, where it was asked for and there is more than one network.
        alone: of several networks, uint8, 1 where any of them calls lesion at the threshold of its own run.
        seen: the scan as the first network saw it, ``[C, h, w, D]``.
        warnings: where the scan lies outside of what the networks were trained on.
    """

    mask: NDArray[np.uint8]
    probability: NDArray[np.float32] | None
    disagreement: NDArray[np.float32] | None
    alone: NDArray[np.uint8] | None
    seen: Tensor
    warnings: tuple[str, ...]
    _slices: int = field(default=0, repr=False)

    @classmethod
    def empty(
        cls, size: tuple[int, ...], seen: Tensor, warnings: tuple[str, ...], *, maps: bool, several: bool
    ) -> Segmented:
        """Room for the answer on a scan of ``(H, W, D)``, with maps or without, of one network or several."""

        def room(dtype: Any, there: bool = True) -> Any:
            return np.empty(size, dtype) if there else None

        disagreement, alone = room(np.float32, maps and several), room(np.uint8, several)
        return cls(room(np.uint8), room(np.float32, maps), disagreement, alone, seen, warnings)

    def add(self, scores: Tensor, threshold: float, thresholds: Sequence[float]) -> None:
        """Fill in the next slices.

        Args:
            scores: each network's probabilities, ``[networks, H, W, slices]``.
            threshold: of their mean.
            thresholds: of each network's own run.
        """
        place = slice(self._slices, self._slices + scores.shape[-1])
        self._slices = place.stop
        mean = scores.mean(0).cpu().numpy()  # the mean of one is the one, to the last bit
        self.mask[..., place] = mean >= np.float32(threshold)
        if self.probability is not None:
            self.probability[..., place] = mean
        if self.disagreement is not None:
            self.disagreement[..., place] = (scores.amax(0) - scores.amin(0)).cpu().numpy()
        if self.alone is not None:
            own = torch.tensor(thresholds, device=scores.device).reshape(-1, 1, 1, 1)
            self.alone[..., place] = (scores >= own).any(0).cpu().numpy()

    @property
    def lost_lesions(self) -> int | None:
        """Of several networks, how many lesions a single one calls, and their mean not in one voxel."""
        return None if self.alone is None else missed_lesions(self.alone > 0, self.mask > 0)[1]
