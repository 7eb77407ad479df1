"""What MONAI's SupervisedTrainer and SupervisedEvaluator do in one iteration, for BF16 and FP4.

Both engines are MONAI's own; a bundle gives them the steps below as ``iteration_update``. MONAI's step knows mixed
precision on CUDA only, and there with a GradScaler, whose loss scale would shift every gradient before it is quantized.
BF16 has the range of FP32 and needs no scaler.

The network is built, converted and seeded here too, because the order matters: the weights are drawn before the layers
are swapped, and the generators are seeded again afterwards, so that two recipes with one seed start from the same
weights and see the same slices in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from monai_fp4.conv3d import guard_conv3d
from monai_fp4.convert import convert
from monai_fp4.errors import NumericsError
from monai_fp4.networks import build_network
from monai_fp4.options import flag
from monai_fp4.session import Session

__all__ = [
    "EvaluationStep",
    "TrainingStep",
    "autocast",
    "channels_last",
    "first_nonfinite_layer",
    "fuse_adam",
    "lay_out",
    "match_layouts",
    "prepare_network",
    "seed_everything",
]


def channels_last(tensor: Tensor) -> Tensor:
    """Lay images out with the channels innermost, as convolutions in BF16 and blocks along channels want them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor


def lay_out(network: nn.Module, image_size: Sequence[int]) -> nn.Module:
    """Lay a network's weights out as `channels_last` does its images."""
    layout = torch.channels_last if len(image_size) == 2 else torch.channels_last_3d
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def seed_everything(seed: int, *numbers: int) -> None:
    """Seed torch's generators from a seed and any counters (epoch, rank), without leaving correlated streams."""
    mixed = seed
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 1)
    torch.manual_seed(mixed)


def prepare_network(network: nn.Module, session: Session) -> nn.Module:
    """Convert a network to the session's recipe and put it on its device, in DDP if there are several processes.

    Args:
        network: any float network; a bundle passes its ``network_def``.
        session: the run that it is for. The report of the conversion is written to its folder.

    Returns:
        The network to train.
    """
    options = session.options
    network = network.to(session.device)
    network, report = convert(network, options.recipe, backend=session.backend.name, dtype=compute_dtype(options.amp))
    network = lay_out(guard_conv3d(network), options.image_size)
    if session.rank == 0:
        session.run_folder.write_json("conversion.json", report.to_dict())
        print(report.summary(), *(f"note: {note}" for note in report.notes), sep="\n")
    seed_everything(options.seed)
    if session.world_size > 1:
        devices = [session.device.index] if session.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=devices)
    return network


def build_and_seed(
    arch: str, scale: str, *, seed: int, in_channels: int, out_channels: int, image_size: Any
) -> nn.Module:
    """Build one of the study's networks with weights that depend on the seed alone.

    Args:
        arch: architecture, see `monai_fp4.networks.ARCHITECTURES`.
        scale: scale, see `monai_fp4.networks.SCALES`.
        seed: seed of the initial weights.
        in_channels: image channels.
        out_channels: channels of the logits.
        image_size: two or three sizes; their number is the number of spatial dimensions.
    """
    seed_everything(seed)
    size = tuple(image_size)
    return build_network(arch, scale, in_channels, out_channels, image_size=size, spatial_dims=len(size))


def bare(network: nn.Module) -> nn.Module:
    """The network inside a DDP wrapper, or the network itself."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def compute_dtype(amp: bool) -> torch.dtype:
    """What the layers compute in: BF16 under autocast, else what the parameters are stored in."""
    return torch.bfloat16 if amp else torch.float32


def autocast(device: torch.device, amp: bool) -> torch.autocast:
    """BF16 autocast on the device, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp)


def fuse_adam(optimizer: Optimizer) -> None:
    """Let Adam or AdamW update all its parameters in one kernel, unless its options say otherwise.

    Without it the CPU steps through a dozen small operations for every parameter, up to a tenth of a training step.
    Once an optimizer has state nothing is changed: a resumed run goes on as it began, as its checkpoint says.
    """
    if type(optimizer) in (Adam, AdamW) and not optimizer.state:
        for group in optimizer.param_groups:
            if group["fused"] is None and not (group["foreach"] or group["differentiable"]):
                group["fused"] = True


def match_layouts(parameters: Iterable[nn.Parameter]) -> None:
    """Give every gradient the memory layout of its parameter.

    Autograd does so by itself; a gradient that a handler has assigned need not. Torch's fused Adam on a CPU walks both
    as they lie in memory without looking, and would update the wrong weights.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


class TrainingStep:
    """One optimizer step: ``iteration_update`` of MONAI's SupervisedTrainer.

    The trainer's ``state.output`` becomes a dict of ``image`` [B, C, *size], ``label`` [B, 1, *size], ``pred`` (logits
    [B, 1, *size], FP32), ``loss`` (float) and ``grad_norm`` (float). Adam and AdamW are fused, see `fuse_adam`.

    Args:
        amp: BF16 autocast.
        max_grad_norm: gradients with a larger norm are scaled down to it.
    """

    def __init__(self, *, amp: bool = True, max_grad_norm: float = 12.0) -> None:
        self.amp = flag("amp", amp)
        self.max_grad_norm = max_grad_norm

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Run the step.

        Raises:
            NumericsError: when the input, the loss or the gradient is not finite; the weights are left as they were.
        """
        device = engine.state.device
        images, labels = engine.prepare_batch(batch, device, engine.non_blocking, **engine.to_kwargs)
        images = channels_last(images)
        fuse_adam(engine.optimizer)
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        output: dict[str, Any] = {Keys.IMAGE: images, Keys.LABEL: labels}
        engine.state.output = output
        with autocast(device, self.amp):
            logits = engine.inferer(images, engine.network)
        logits = logits.float()
        output[Keys.PRED] = logits.detach()
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = engine.loss_function(logits, labels)
        output[Keys.LOSS] = loss.item()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        if not torch.isfinite(loss):
            raise self._not_finite("loss", engine, images)
        loss.backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        norm = nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_grad_norm)
        output["grad_norm"] = norm.item()
        if not torch.isfinite(norm):
            raise self._not_finite("gradient", engine, images)
        match_layouts(engine.network.parameters())
        engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _not_finite(self, what: str, engine: SupervisedTrainer, images: Tensor) -> NumericsError:
        state = engine.state
        if not torch.isfinite(images).all():
            where = "the input image"
        elif what == "gradient":
            named = bare(engine.network).named_parameters()
            where = next(
                (f"the gradient of {n}" for n, p in named if p.grad is not None and not p.grad.isfinite().all()), "?"
            )
        else:
            layer = first_nonfinite_layer(bare(engine.network), images, self.amp)
            where = f"the output of layer '{layer}'" if layer else "the loss function"
        kept = f"checkpoint.pt keeps epoch {state.epoch - 1}" if state.epoch > 1 else "no epoch was finished before"
        return NumericsError(
            f"the {what} must be finite, but at step {state.iteration} (epoch {state.epoch}) NaN or infinity first"
            f" stands in {where}; {kept}; lower learning_rate or check the scans"
        )


def first_nonfinite_layer(network: nn.Module, images: Tensor, amp: bool) -> str | None:
    """Run the network once more and name the first layer whose output is not finite, or None if all are."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        with torch.no_grad(), autocast(images.device, amp):
            network(images)
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else None


class EvaluationStep:
    """Segment one patient: ``iteration_update`` of MONAI's SupervisedEvaluator.

    A 2D network sees the patient's slices in chunks, a 3D network the whole volume. The logits are brought to the
    scan's own size before the sigmoid, so that every metric is one of the scan, not of ``image_size``. The evaluator's
    ``state.output`` becomes a list of one dict: ``image`` [C, h, w, D] as the network saw it, ``label`` uint8 and
    ``pred`` (probabilities, FP32) [1, H, W, D] at the scan's size, ``patient``, ``loss``.

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
        network = bare(engine.network)
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
            output[Keys.LOSS] = self.loss(logits[None], label[None]).item()
        engine.state.output = [output]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return [output]


def network_of_run(config: Mapping[str, Any], in_channels: int) -> nn.Module:
    """Build the unconverted network that a run's ``config.json`` describes, be it of the study or the user's own.

    Args:
        config: the run's whole config. Its ``network_def`` is built again, so a folder is to be trusted like code.
        in_channels: image channels, which a run takes from its manifest.
    """
    session = {"_target_": "types.SimpleNamespace", "in_channels": in_channels}
    return ConfigParser({**config, "session": session}).get_parsed_content("network_def")
