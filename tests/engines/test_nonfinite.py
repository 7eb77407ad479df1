"""NaN and infinity: the step stops, the weights stay, and the sentence says where it began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from one_step import batch, convolutions, trainer
from tiny_runs import Dataset, contents, item, metrics, refusal, train, workflow
from torch import nn

from monai_fp4.engines import (
    first_nonfinite_layer,
)
from monai_fp4.errors import NumericsError


@pytest.mark.parametrize(
    ("poison", "what", "where"),
    [
        ("image", "loss", "the input image"),
        ("weight", "loss", "layer '2'"),
        ("label", "loss", "the loss function"),
        ("gradient", "gradient", "the gradient of 0.weight"),
        ("late gradient", "gradient", "the gradient of 2.weight"),
    ],
)
def test_nan_stops_the_step_and_leaves_the_weights(poison: str, what: str, where: str) -> None:
    network, given = convolutions(), batch()
    engine = trainer(network, [batch(), batch(), given], amp=False)
    before: list[torch.Tensor] = []

    def spoil(engine: Engine) -> None:
        if poison == "weight":
            network[2].weight.data[0, 1] = float("nan")
        elif poison == "late gradient":
            network[0].bias.requires_grad_(False)  # so that one before it has no gradient
            network[0].bias.grad = None
            network[2].weight.register_hook(lambda gradient: gradient * float("inf"))
        elif poison == "gradient":
            network[0].weight.register_hook(lambda gradient: gradient * float("inf"))
        else:
            given[poison][0, 0, 0, 0] = float("nan")
        before.extend(parameter.detach().clone() for parameter in network.parameters())

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), spoil)
    with pytest.raises(NumericsError) as error:
        engine.run()
    said = str(error.value)
    assert f"the {what} must be finite, but at step 3 (epoch 1)" in said and where in said
    assert "no epoch was finished before" in said
    assert len(before) == 4
    for now, then in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(now.detach(), then, rtol=0, atol=0, equal_nan=True)


def test_nan_in_a_run_names_the_step_and_keeps_the_last_checkpoint(tiny: Dataset, tmp_path: Path) -> None:
    flow = workflow(tiny, tmp_path / "run", "unet_500k_full")
    flow.initialize()
    network = item(flow, "network")
    kept: dict[str, Any] = {}

    def spoil(_engine: Engine) -> None:
        kept.update({k: v for k, v in contents(tmp_path / "run").items() if k.endswith(".pt")})
        next(p for n, p in network.named_parameters() if n.endswith("conv.weight")).data[0, 0, 0, 0] = float("nan")

    item(flow, "train#trainer").add_event_handler(Events.ITERATION_STARTED(once=4), spoil)
    error = refusal(flow.run)
    assert isinstance(error, NumericsError)
    assert "at step 4 (epoch 2)" in str(error) and "checkpoint.pt keeps epoch 1" in str(error)
    layer = str(error).split("layer '")[1].split("'")[0]
    assert layer == next(n for n, _ in network.named_modules() if n.endswith("conv"))
    now = {k: v for k, v in contents(tmp_path / "run").items() if k.endswith(".pt")}
    assert now == kept and "checkpoint.pt" in kept
    assert metrics(train(tiny, tmp_path / "run", "unet_500k_full"))["finished"] is True


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 1, 1))
    image = torch.randn(1, 3, 4, 4)
    assert first_nonfinite_layer(network, image, amp=False) is None
    network[1][1].bias.data[0] = float("inf")
    assert first_nonfinite_layer(network, image, amp=False) == "1.1"
    assert not any(module._forward_hooks for module in network.modules())


def test_what_overflows_in_fp16_alone_is_looked_for_in_fp16() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    nn.init.constant_(network[0].weight, 5e4)
    image = torch.ones(1, 3, 4, 4)
    assert first_nonfinite_layer(network, image, amp=True) is None
    assert first_nonfinite_layer(network, image, amp=True, dtype=torch.float16) == "0"
