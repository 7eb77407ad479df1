"""One training step, against plain torch."""

from __future__ import annotations

import json

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from one_step import batch, convolutions, moody, trainer
from tiny_runs import BUNDLES
from torch import nn

from monai_fp4 import convert
from monai_fp4.engines import (
    TrainingStep,
    fuse_adam,
)
from monai_fp4.errors import ConfigError
from monai_fp4.networks import match_layouts


def test_a_step_is_that_of_plain_torch() -> None:
    network, reference, given = convolutions(), convolutions(), batch()
    engine = trainer(network, [given], amp=False)
    engine.run()
    loss = nn.BCEWithLogitsLoss()(reference(given["image"]), given["label"])
    loss.backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in reference.parameters()]))
    torch.optim.SGD(reference.parameters(), lr=0.5).step()
    for one, other in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    output = engine.state.output
    assert output["loss"] == pytest.approx(loss.item()) and output["grad_norm"] == pytest.approx(norm.item())
    assert output["pred"].shape == given["label"].shape and not output["pred"].requires_grad
    assert torch.equal(output["image"], given["image"]) and torch.equal(output["label"], given["label"])


def test_a_step_trains_whatever_mode_the_network_was_left_in() -> None:
    network, reference, given = moody().eval(), moody().train(), batch()
    engine = trainer(network, [given], amp=False)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda _: torch.manual_seed(5))
    engine.run()
    torch.manual_seed(5)
    # Dropout draws in the order of the memory.
    logits = reference(given["image"].to(memory_format=torch.channels_last))
    loss = nn.BCEWithLogitsLoss()(logits, given["label"])
    assert engine.state.output["loss"] == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(network[1].running_mean, reference[1].running_mean)
    assert network.training and network[1].running_mean.any()


def test_a_step_begins_without_the_gradient_of_the_last() -> None:
    network, reference, given = convolutions(), convolutions(), [batch(), batch(1.0)]
    trainer(network, given, amp=False).run()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
    for each in given:
        optimizer.zero_grad()
        nn.BCEWithLogitsLoss()(reference(each["image"]), each["label"]).backward()
        optimizer.step()
    for one, other in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_fires_the_events_of_monai_s_in_their_order() -> None:
    engine, seen = trainer(convolutions(), [batch()], amp=False), []
    for event in IterationEvents:
        engine.register_events(event)
        engine.add_event_handler(event, lambda e, event=event: seen.append((event.name, sorted(e.state.output))))
    before = [parameter.detach().clone() for parameter in engine.network.parameters()]
    engine.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda e: seen.append(all(torch.equal(*p) for p in zip(e.network.parameters(), before, strict=True))),
    )
    engine.run()
    forward = ["image", "label", "pred"]
    assert seen == [
        ("FORWARD_COMPLETED", forward),
        ("LOSS_COMPLETED", sorted([*forward, "loss"])),
        ("BACKWARD_COMPLETED", sorted([*forward, "loss"])),
        True,
        ("MODEL_COMPLETED", sorted([*forward, "loss", "grad_norm"])),
    ]


def test_gradients_of_the_largest_norm_allowed_are_left_alone() -> None:
    network, start = convolutions(), convolutions()
    engine = trainer(network, [batch()], amp=False, max_grad_norm=1e3)
    engine.run()
    moved = [(one - other).detach() for one, other in zip(network.parameters(), start.parameters(), strict=True)]
    norm = torch.linalg.vector_norm(torch.cat([each.flatten() for each in moved]))
    assert norm.item() == pytest.approx(0.5 * engine.state.output["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_is_fused_and_steps_as_plain_adam(kind: type[torch.optim.Adam]) -> None:
    network, reference = (net.to(memory_format=torch.channels_last) for net in (convolutions(), convolutions()))
    engine = trainer(network, [batch(), batch(1.0)], amp=False)
    engine.optimizer = kind(network.parameters(), lr=0.1, weight_decay=0.5)
    plain = kind(reference.parameters(), lr=0.1, weight_decay=0.5, fused=False)
    engine.run()
    for given in (batch(), batch(1.0)):
        plain.zero_grad()
        nn.BCEWithLogitsLoss()(reference(given["image"]), given["label"]).backward()
        plain.step()
    assert [group["fused"] for group in engine.optimizer.param_groups] == [True]
    for one, other in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_optimizer_that_says_how_it_steps_or_has_begun_is_left_alone() -> None:
    weights = [nn.Parameter(torch.ones(3))]
    weights[0].grad = torch.ones(3)
    chosen = [torch.optim.AdamW(weights, **how) for how in ({"fused": False}, {"foreach": True}, {"fused": True})]
    begun = torch.optim.AdamW(weights)
    begun.step()
    for optimizer in (*chosen, begun, torch.optim.SGD(weights, lr=0.1)):
        before = [{**group, "params": None} for group in optimizer.param_groups]
        fuse_adam(optimizer)
        assert [{**group, "params": None} for group in optimizer.param_groups] == before


def test_large_gradients_are_scaled_down() -> None:
    network, start = convolutions(), convolutions()
    trainer(network, [batch()], amp=False, max_grad_norm=1e-3).run()
    moved = [one - other for one, other in zip(network.parameters(), start.parameters(), strict=True)]
    norm = torch.linalg.vector_norm(torch.cat([each.detach().flatten() for each in moved]))
    assert norm.item() == pytest.approx(0.5e-3, rel=1e-3)


@pytest.mark.parametrize("amp", [True, False])
@pytest.mark.parametrize("recipe", ["bf16", "full"])
def test_autocast_computes_in_bf16(amp: bool, recipe: str) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 1, 1))
    network, report = convert(wide, recipe)
    assert any(layer.action == "swapped" for layer in report.layers) == (recipe == "full")
    seen: list[torch.dtype] = []
    for layer in network:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    engine = trainer(network, [batch()], amp=amp)
    engine.run()
    assert seen == [torch.bfloat16 if amp else torch.float32] * 3
    assert engine.state.output["pred"].dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_a_gradient_in_another_layout_updates_the_right_weights() -> None:
    torch.manual_seed(0)
    networks = [torch.nn.Conv2d(4, 6, 3) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    for network in networks:
        network.to(memory_format=torch.channels_last)
        network.weight.grad = torch.arange(6.0 * 4 * 9).view(6, 4, 3, 3) - 70  # a contiguous one
    match_layouts(networks[0].parameters())
    assert networks[0].weight.grad.stride() == networks[0].weight.stride()
    torch.optim.AdamW(networks[0].parameters(), fused=True).step()
    torch.optim.AdamW(networks[1].parameters(), foreach=False).step()
    torch.testing.assert_close(networks[0].weight, networks[1].weight)


def test_a_gradient_that_a_handler_laid_out_otherwise_updates_the_right_weights() -> None:
    usual, changed = (convolutions().to(memory_format=torch.channels_last) for _ in range(2))
    for network in (usual, changed):
        engine = trainer(network, [batch()], amp=False)
        engine.optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        if network is changed:
            engine.register_events(IterationEvents.BACKWARD_COMPLETED)

            def relay(engine: Engine) -> None:
                for parameter in engine.network.parameters():
                    parameter.grad = parameter.grad.contiguous()

            engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, relay)
        engine.run()
    for one, other in zip(usual.parameters(), changed.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_default_step_is_that_of_the_bundles() -> None:
    options = json.loads((BUNDLES / "unet_500k_sr.json").read_text())["train"]["step"]
    assert options == {"_target_": "monai_fp4.engines.TrainingStep", "amp": "@amp", "max_grad_norm": 12.0}
    assert (TrainingStep().amp, TrainingStep().max_grad_norm) == (True, 12.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_is_to_the_dtype_that_is_asked_for(dtype: str) -> None:
    seen = []
    network = convolutions()
    network[0].register_forward_hook(lambda _module, _given, output: seen.append(output.dtype))
    trainer(network, [batch()], dtype=dtype).run()
    assert seen == [getattr(torch, dtype)]
    with pytest.raises(ConfigError, match="autocast dtype 'half' is not known"):
        TrainingStep(dtype="half")


def test_a_scaled_loss_gives_the_same_step() -> None:
    networks = [convolutions(), convolutions()]
    norms = []
    for network, scaler in zip(networks, (None, torch.amp.GradScaler("cpu", init_scale=1024.0)), strict=True):
        engine = trainer(network, [batch()], amp=False, scaler=scaler, max_grad_norm=0.1)
        engine.run()
        norms.append(engine.state.output["grad_norm"])
    assert norms[0] == pytest.approx(norms[1]) and norms[0] > 0.1  # clipped after unscaling
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other)


def test_a_scaler_leaves_out_the_step_of_an_infinite_gradient_and_scales_less() -> None:
    network, scaler = convolutions(), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    trainer(network, [batch(100.0)], amp=False, scaler=scaler).run()
    assert all(map(torch.equal, before, network.parameters()))
    assert scaler.get_scale() == 2.0**126


def test_a_loss_that_is_not_finite_can_be_skipped() -> None:
    network, reference = convolutions(), convolutions()
    spoilt = batch()
    spoilt["label"] = spoilt["label"] * torch.nan
    trainer(network, [spoilt, batch()], amp=False, skip_nonfinite=True).run()
    trainer(reference, [batch()], amp=False).run()
    for one, other in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, other)
