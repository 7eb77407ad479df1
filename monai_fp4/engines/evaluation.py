"""One patient evaluated: the whole scan segmented, slice by slice or as a volume, at its own resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys
from torch import nn

from monai_fp4.bundle.options import flag
from monai_fp4.data.readers.masks import IGNORED
from monai_fp4.engines.network import autocast, unwrap_ddp
from monai_fp4.engines.nonfinite import first_nonfinite_layer
from monai_fp4.errors import NumericsError
from monai_fp4.networks.memory_format import channels_last

__all__ = ["EvaluationStep"]


class EvaluationStep:
    """Segment one patient: ``iteration_update`` of MONAI's SupervisedEvaluator.

    A 2D network sees the patient's slices in chunks, a 3D network the whole volume. The logits are brought to the
    scan's own size before the sigmoid, so that every metric is one of the scan, not of ``image_size``. The evaluator's
    ``state.output`` becomes a list of one dict: ``image`` [C, h, w, D] as the network saw it, ``label`` uint8 (2: does
    not count) and ``pred`` (probabilities, FP32) [1, H, W, D] at the scan's size, ``patient``, ``loss``.

    Args:
        image_size: the size that the network takes; two numbers mean slices, three a whole volume.
        amp: BF16 autocast.
        chunk: slices a forward pass.
        loss: loss to report, on the logits at the scan's own size; None reports none.
        flips: average the logits over the four flips of the slice plane, at four times the cost.
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        amp: bool = True,
        chunk: int = 64,
        loss: nn.Module | None = None,
        flips: bool = False,
    ) -> None:
        self.spatial_dims = len(image_size)
        self.amp = flag("amp", amp)
        self.chunk = chunk
        self.loss = loss
        self.flips: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3)) if flag("flips", flips) else ((),)

    def __call__(self, engine: SupervisedEvaluator, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Segment the patient.

        Raises:
            NumericsError: when the network answers NaN or infinity.
        """
        device, patient = engine.state.device, item["patient"]
        image, label = item[Keys.IMAGE], item[Keys.LABEL]
        flat = image.ndim == 4 and self.spatial_dims == 2
        batch = image.movedim(-1, 0) if flat else image[None]
        native = tuple(label.shape[1:3]) if flat else tuple(label.shape[1:])
        # Not DDP's forward, which waits for the other ranks at every call: they may have fewer patients.
        network = unwrap_ddp(engine.network)
        pieces = []
        with engine.mode(engine.network), autocast(device, self.amp):
            for chunk in batch.split(self.chunk):
                images = channels_last(chunk.to(device, torch.float32))
                views = [engine.inferer(images.flip(dims), network).flip(dims).float() for dims in self.flips]
                logits = torch.stack(views).mean(0) if len(views) > 1 else views[0]
                pieces.append(functional.interpolate(logits, size=native, mode="bilinear" if flat else "trilinear"))
        logits = torch.cat(pieces)
        logits = logits.movedim(0, -1) if flat else logits[0]
        if not torch.isfinite(logits).all():
            layer = first_nonfinite_layer(network, channels_last(batch.to(device, torch.float32)), self.amp)
            raise NumericsError(
                f"the network must answer finite numbers, but for patient {patient} it did not, from layer '{layer}'"
                " on; check the scan and the checkpoint"
            )
        label = label.to(device)
        output = {Keys.IMAGE: image, Keys.LABEL: label, Keys.PRED: torch.sigmoid(logits), "patient": patient}
        if self.loss is not None:
            output[Keys.LOSS] = self.loss(logits[None], _truth(label)[None]).item()
        engine.state.output = [output]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [output]


def _truth(label: torch.Tensor) -> torch.Tensor:
    """A label as losses take it: NaN where it does not count."""
    ignored = label == IGNORED
    return label.float().masked_fill(ignored, torch.nan) if ignored.any() else label
