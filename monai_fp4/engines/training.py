"""One step of training: forward in BF16 or FP4, loss, backward, clipped gradients, optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from monai_fp4.bundle.options import flag
from monai_fp4.engines.network import autocast, autocast_dtype
from monai_fp4.engines.nonfinite import not_finite
from monai_fp4.networks.memory_format import channels_last, match_layouts

__all__ = ["TrainingStep", "fuse_adam"]


class TrainingStep:
    """One optimizer step: ``iteration_update`` of MONAI's SupervisedTrainer.

    The trainer's ``state.output`` becomes a dict of ``image`` [B, C, *size], ``label`` [B, 1, *size], ``pred`` (logits
    [B, 1, *size], FP32), ``loss`` (float) and ``grad_norm`` (float). Adam and AdamW are fused, see `fuse_adam`.

    Args:
        amp: autocast.
        max_grad_norm: gradients with a larger norm are scaled down to it.
        dtype: what autocast casts to, ``"bfloat16"`` or ``"float16"``.
        scaler: scales the loss, as FP16 needs it; a step whose gradient is not finite is then left out, as torch does.
        skip_nonfinite: leave a step out whose loss is not finite, in place of ending the run.
    """

    def __init__(
        self,
        *,
        amp: bool = True,
        max_grad_norm: float = 12.0,
        dtype: str = "bfloat16",
        scaler: torch.amp.GradScaler | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        self.amp = flag("amp", amp)
        self.dtype = autocast_dtype(dtype)
        self.scaler = torch.amp.GradScaler(enabled=False) if scaler is None else scaler
        self.skip_nonfinite = skip_nonfinite
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
        with autocast(device, self.amp, self.dtype):
            logits = engine.inferer(images, engine.network)
        logits = logits.float()
        output[Keys.PRED] = logits.detach()
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = engine.loss_function(logits, labels)
        output[Keys.LOSS] = loss.item()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        if not torch.isfinite(loss):
            if self.skip_nonfinite:
                output["grad_norm"] = math.nan
                return output
            raise not_finite("loss", engine, images, self.amp, self.dtype)
        self.scaler.scale(loss).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.scaler.unscale_(engine.optimizer)
        norm = nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_grad_norm)
        output["grad_norm"] = norm.item()
        if not torch.isfinite(norm) and not self.scaler.is_enabled():
            raise not_finite("gradient", engine, images, self.amp, self.dtype)
        match_layouts(engine.network.parameters())
        self.scaler.step(engine.optimizer)
        self.scaler.update()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output


def fuse_adam(optimizer: Optimizer) -> None:
    """Let Adam or AdamW update all its parameters in one kernel, unless its options say otherwise.

    Without it the CPU steps through a dozen small operations for every parameter, up to a tenth of a training step.
    Once an optimizer has state nothing is changed: a resumed run goes on as it began, as its checkpoint says.
    """
    if type(optimizer) in (Adam, AdamW) and not optimizer.state:
        for group in optimizer.param_groups:
            if group["fused"] is None and not (group["foreach"] or group["differentiable"]):
                group["fused"] = True
