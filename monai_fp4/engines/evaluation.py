"""Patients evaluated: whole scans segmented, slice by slice or as volumes, at their own resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn

from monai_fp4.bundle.options import flag
from monai_fp4.data import in_batches
from monai_fp4.data.patient_batches import FEW_SLICES
from monai_fp4.data.readers.masks import IGNORED
from monai_fp4.engines.network import autocast, autocast_dtype, unwrap_ddp
from monai_fp4.engines.nonfinite import first_nonfinite_layer
from monai_fp4.errors import NumericsError
from monai_fp4.networks.memory_format import channels_last
from monai_fp4.quantization.conversion import quantized_layers
from monai_fp4.quantization.layers.separate import separate

__all__ = ["EvaluationStep", "mirrored", "segment", "segment_pieces"]

Views = tuple[tuple[int, ...], ...]


def mirrored(flips: bool) -> Views:
    """The views that a network's answers are averaged over: the image alone, or the four flips of the slice plane.

    >>> mirrored(True)
    ((), (2,), (3,), (2, 3))
    """
    return ((), (2,), (3,), (2, 3)) if flips else ((),)


def segment_pieces(
    network: nn.Module,
    scans: Sequence[Tensor],
    sizes: Sequence[tuple[int, ...]],
    *,
    device: torch.device,
    inferer: Inferer,
    chunk: int = 64,
    views: Views = ((),),
) -> Iterator[tuple[int, Tensor]]:
    """Segment the scans of one batch, each at its own size, piece by piece, since a scan at its own size may be large.

    A scan's logits do not depend on what else is in the batch: FP4 layers scale each scan by its own maximum. Nor on
    whether there is anything else: a scan of few slices that comes alone is given a blank slice for company where
    layers compute in FP4, since a tensor that is scaled apart is rounded otherwise than one that is alone. The caller
    sets evaluation mode, ``no_grad`` and autocast.

    Args:
        network: the network.
        scans: as the network sees them, ``[n, C, h, w]`` slices or ``[1, C, h, w, d]``; several only where all their
            slices fit into one chunk.
        sizes: each scan's own size, without the slices of a 2D network.
        device: where to compute.
        inferer: MONAI's way to call the network.
        chunk: slices a forward pass.
        views: see `mirrored`.

    Yields:
        The number of a scan, and FP32 logits ``[b, 1, *size]`` of its next ``b`` slices.
    """

    def logits(piece: Tensor) -> Tensor:
        images = channels_last(piece.to(device, torch.float32))
        seen = [inferer(images.flip(dims), network).flip(dims).float() for dims in views]
        return torch.stack(seen).mean(0) if len(seen) > 1 else seen[0]

    def resized(part: Tensor, size: tuple[int, ...]) -> Tensor:
        return functional.interpolate(part, size=size, mode="bilinear" if len(size) == 2 else "trilinear")

    few = scans[0].ndim == 4 and len(scans[0]) < FEW_SLICES
    if len(scans) == 1 and not (few and any(layer.active for _, layer in quantized_layers(network))):
        for piece in scans[0].split(chunk):
            yield 0, resized(logits(piece), sizes[0])
        return
    together = [*scans, torch.zeros_like(scans[0][:1])] if len(scans) == 1 else scans
    counts = [len(scan) for scan in together]
    with separate(counts):
        parts = logits(torch.cat([scan.float() for scan in together])).split(counts)[: len(scans)]
    yield from ((number, resized(*each)) for number, each in enumerate(zip(parts, sizes, strict=True)))


def segment(
    network: nn.Module, scans: Sequence[Tensor], sizes: Sequence[tuple[int, ...]], **options: Any
) -> list[Tensor]:
    """Segment whole scans: FP32 logits ``[n, 1, *size]`` of each; arguments are those of `segment_pieces`."""
    found: list[list[Tensor]] = [[] for _ in scans]
    for number, piece in segment_pieces(network, scans, sizes, **options):
        found[number].append(piece)
    return [torch.cat(pieces) for pieces in found]


class EvaluationStep:
    """Segment patients: ``iteration_update`` of MONAI's SupervisedEvaluator.

    A 2D network sees a patient's slices in chunks, a 3D network the whole volume; patients of few slices share a chunk
    (`monai_fp4.data.in_batches`), and none changes another's result (`segment`). The logits are brought to the scan's
    own size before the sigmoid, so that every metric is one of the scan, not of ``image_size``. The evaluator's
    ``state.output`` becomes a list of one dict a patient: ``image`` [C, h, w, D] as the network saw it, ``label`` uint8
    (2: does not count) and ``pred`` (probabilities, FP32) [1, H, W, D] at the scan's size, ``patient``, ``loss``, and
    ``spacing`` in millimetres, None where the files do not say.

    Args:
        image_size: the size that the network takes; two numbers mean slices, three a whole volume.
        amp: autocast.
        chunk: slices a forward pass.
        loss: loss to report, on the logits at the scan's own size; None reports none.
        dtype: what autocast casts to, ``"bfloat16"`` or ``"float16"``.
        slice_losses: also give ``slice_losses``, the loss of each slice by itself, in place of one of the whole scan.
        flips: average the logits over the four flips of the slice plane, at four times the cost.
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        amp: bool = True,
        chunk: int = 64,
        loss: nn.Module | None = None,
        dtype: str = "bfloat16",
        slice_losses: bool = False,
        flips: bool = False,
    ) -> None:
        self.spatial_dims = len(image_size)
        self.amp = flag("amp", amp)
        self.chunk = chunk
        self.loss = loss
        self.flips = mirrored(flag("flips", flips))
        self.dtype = autocast_dtype(dtype)
        self.slice_losses = slice_losses

    def __call__(
        self, engine: SupervisedEvaluator, batch: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Segment one patient, or a batch of them.

        Raises:
            NumericsError: when the network answers NaN or infinity.
        """
        patients = [batch] if isinstance(batch, Mapping) else batch
        engine.state.output = output = []
        # Not DDP's forward, which waits for the other ranks at every call: they may have fewer patients.
        network = unwrap_ddp(engine.network)
        for together in in_batches(patients, self._slices, self.chunk):
            output += self._segmented(engine, network, together)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _slices(self, item: Mapping[str, Any]) -> int:
        return int(item[Keys.IMAGE].shape[-1]) if self.spatial_dims == 2 else self.chunk

    def _segmented(
        self, engine: SupervisedEvaluator, network: nn.Module, patients: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        device, flat = engine.state.device, self.spatial_dims == 2
        scans = [item[Keys.IMAGE].movedim(-1, 0) if flat else item[Keys.IMAGE][None] for item in patients]
        sizes = [tuple(item[Keys.LABEL].shape[1 : 3 if flat else 4]) for item in patients]
        with engine.mode(engine.network), autocast(device, self.amp, self.dtype):
            found = segment(
                network, scans, sizes, device=device, inferer=engine.inferer, chunk=self.chunk, views=self.flips
            )
        if not all(logits.isfinite().all() for logits in found):
            raise self._not_finite(network, patients, scans, device)
        return [
            self._output(item, logits.movedim(0, -1) if flat else logits[0], device)
            for item, logits in zip(patients, found, strict=True)
        ]

    def _output(self, item: Mapping[str, Any], logits: Tensor, device: torch.device) -> dict[str, Any]:
        label = item[Keys.LABEL].to(device)
        output = {
            Keys.IMAGE: item[Keys.IMAGE],
            Keys.LABEL: label,
            Keys.PRED: torch.sigmoid(logits),
            "patient": item["patient"],
            "number": item.get("number", 0),
            "spacing": item.get("facts", {}).get("spacing"),
        }
        if self.loss is not None and self.slice_losses:
            slices = zip(logits.unbind(-1), _truth(label).unbind(-1), strict=True)
            losses = torch.stack([self.loss(scores[None], truth[None]) for scores, truth in slices])
            output |= {"slice_losses": losses, Keys.LOSS: losses.mean().item()}
        elif self.loss is not None:
            output[Keys.LOSS] = self.loss(logits[None], _truth(label)[None]).item()
        return output

    def _not_finite(
        self,
        network: nn.Module,
        patients: Sequence[Mapping[str, Any]],
        scans: Sequence[Tensor],
        device: torch.device,
    ) -> NumericsError:
        """The error: which patient alone makes a layer answer NaN or infinity, and which layer."""
        layers = [
            first_nonfinite_layer(network, channels_last(scan.to(device, torch.float32)), self.amp, self.dtype)
            for scan in scans
        ]
        at = next((number for number, layer in enumerate(layers) if layer), 0)
        return NumericsError(
            f"the network must answer finite numbers, but for patient {patients[at]['patient']} it did not, from layer "
            f"'{layers[at]}' on; check the scan and the checkpoint"
        )


def _truth(label: Tensor) -> Tensor:
    """A label as losses take it: NaN where it does not count."""
    ignored = label == IGNORED
    return label.float().masked_fill(ignored, torch.nan) if ignored.any() else label
