"""One training step and one evaluated patient."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from tiny_runs import Dataset, contents, item, metrics, refusal, train, workflow
from torch import nn

from monai_fp4.bundle.options import RunOptions, defaults
from monai_fp4.bundle.run_folder import RunFolder
from monai_fp4.engines import (
    EvaluationStep,
    TrainingStep,
    autocast,
    build_and_seed,
    first_nonfinite_layer,
    fuse_adam,
    prepare_network,
    seed_everything,
)
from monai_fp4.errors import NumericsError
from monai_fp4.losses import TverskyBCELoss
from monai_fp4.networks import match_layouts
from monai_fp4.quantization.conversion import convert


def trainer(network: nn.Module, batches: list[dict[str, torch.Tensor]], **step: Any) -> SupervisedTrainer:
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5),
        loss_function=nn.BCEWithLogitsLoss(),
        iteration_update=TrainingStep(**step),
        decollate=False,
    )


def batch(value: float = 0.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 8, 8, generator=generator) + value
    return {"image": image, "label": (torch.rand(2, 1, 8, 8, generator=generator) < 0.3).float()}


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))


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


def moody() -> nn.Sequential:
    """A network that answers otherwise in training than in evaluation, by its batch norm and by its dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))


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


@pytest.mark.parametrize(
    ("poison", "what", "where"),
    [
        ("image", "loss", "the input image"),
        ("weight", "loss", "layer '2'"),
        ("label", "loss", "the loss function"),
        ("gradient", "gradient", "the gradient of 0.weight"),
    ],
)
def test_nan_stops_the_step_and_leaves_the_weights(poison: str, what: str, where: str) -> None:
    network, given = convolutions(), batch()
    engine = trainer(network, [batch(), batch(), given], amp=False)
    before: list[torch.Tensor] = []

    def spoil(engine: Engine) -> None:
        if poison == "weight":
            network[2].weight.data[0, 1] = float("nan")
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


def evaluate(network: nn.Module, given: dict[str, Any], image_size: tuple[int, ...], **step: Any) -> dict[str, Any]:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[given],
        network=network,
        iteration_update=EvaluationStep(image_size=image_size, **step),
        decollate=False,
    )
    evaluator.run()
    (output,) = evaluator.state.output
    return output


def test_a_patient_is_segmented_in_evaluation_mode_and_training_goes_on_as_it_was() -> None:
    network, reference = moody().train(), moody()
    for each in (network, reference):  # statistics that no patient has
        each[1].running_mean.fill_(0.7)
    given = {"image": torch.randn(3, 8, 8, 2), "label": torch.zeros(1, 8, 8, 2, dtype=torch.uint8), "patient": "anna"}
    output = evaluate(network, given, (8, 8), amp=False)
    with torch.no_grad():
        logits = reference.eval()(given["image"].movedim(-1, 0)).movedim(0, -1)
    torch.testing.assert_close(output["pred"], torch.sigmoid(logits))
    assert network.training and network[2].training
    assert torch.equal(network[1].running_mean, reference[1].running_mean)


def test_what_a_patient_s_segmentation_fires_and_hands_on() -> None:
    given = {"image": torch.randn(3, 8, 8, 2), "label": torch.zeros(1, 8, 8, 2, dtype=torch.uint8), "patient": "anna"}
    step, seen = EvaluationStep(image_size=(8, 8)), []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[given], network=convolutions(), iteration_update=step,
        decollate=False,
    )  # fmt: skip
    assert step.amp is True and step.chunk == 64
    for event in (IterationEvents.FORWARD_COMPLETED, IterationEvents.MODEL_COMPLETED):
        evaluator.add_event_handler(event, lambda e, name=event.name: seen.append((name, e.state.output[0]["patient"])))
    evaluator.run()
    assert seen == [("FORWARD_COMPLETED", "anna"), ("MODEL_COMPLETED", "anna")]


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_a_patient_is_segmented_slice_by_slice_at_the_size_of_the_scan(chunk: int) -> None:
    network = convolutions()
    image, label = torch.randn(3, 8, 12, 5), torch.zeros(1, 21, 17, 5, dtype=torch.uint8)
    label[0, 3:9, 4:8] = 1
    given = {"image": image, "label": label, "patient": "anna"}
    output = evaluate(network, given, (8, 12), amp=False, chunk=chunk, loss=TverskyBCELoss())
    with torch.no_grad():
        slices = [
            nn.functional.interpolate(network(image[None, ..., n]), size=(21, 17), mode="bilinear") for n in range(5)
        ]
    logits = torch.stack(slices, dim=-1)
    torch.testing.assert_close(output["pred"], torch.sigmoid(logits[0]))
    assert output["pred"].shape == label.shape and output["patient"] == "anna"
    assert output["loss"] == pytest.approx(TverskyBCELoss()(logits, label[None].float()).item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_flips_are_averaged_and_make_the_answer_follow_the_scan() -> None:
    network = convolutions()
    image, label = torch.randn(3, 8, 12, 2), torch.zeros(1, 8, 12, 2, dtype=torch.uint8)
    given = {"image": image, "label": label, "patient": "anna"}
    output = evaluate(network, given, (8, 12), amp=False, flips=True)["pred"]
    slices, planes = image.movedim(-1, 0), [(), (2,), (3,), (2, 3)]
    with torch.no_grad():
        mean = sum(network(slices.flip(dims)).flip(dims) for dims in planes) / 4
    torch.testing.assert_close(output, torch.sigmoid(mean.movedim(0, -1)))
    assert not torch.allclose(output, evaluate(network, given, (8, 12), amp=False)["pred"])
    mirrored = evaluate(network, given | {"image": image.flip(1)}, (8, 12), amp=False, flips=True)["pred"]
    torch.testing.assert_close(mirrored, output.flip(1))


def test_a_volume_is_segmented_whole() -> None:
    network = nn.Conv3d(2, 1, 3, padding=1)
    image, label = torch.randn(2, 8, 8, 4), torch.zeros(1, 10, 9, 6, dtype=torch.uint8)
    output = evaluate(network, {"image": image, "label": label, "patient": "anna"}, (8, 8, 4), amp=False)
    with torch.no_grad():
        logits = nn.functional.interpolate(network(image[None]), size=(10, 9, 6), mode="trilinear")
    torch.testing.assert_close(output["pred"], torch.sigmoid(logits[0]))
    assert "loss" not in output


def test_an_evaluation_that_is_not_finite_names_patient_and_layer() -> None:
    network = convolutions()
    network[2].weight.data[:] = float("nan")
    given = {"image": torch.randn(3, 8, 8, 2), "label": torch.zeros(1, 8, 8, 2), "patient": "anna"}
    with pytest.raises(NumericsError, match=r"patient anna .* layer '2'"):
        evaluate(network, given, (8, 8))


def test_the_weights_follow_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(seed + 3)  # whatever was drawn before
        network = build_and_seed("unet", "500k", seed=seed, in_channels=1, out_channels=1, image_size=[32, 32])
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_all_recipes_start_training_from_the_same_random_state(tmp_path: Path) -> None:
    drawn, weights = [], []
    for recipe in ("bf16", "sr_rht_2d"):
        network = build_and_seed("unet", "500k", seed=3, in_channels=1, out_channels=1, image_size=[32, 32])
        session = SimpleNamespace(
            options=RunOptions.from_config(**(defaults() | {"recipe": recipe, "image_size": [32, 32], "seed": 3})),
            device=torch.device("cpu"),
            backend=SimpleNamespace(name="emulated"),
            rank=1,
            world_size=1,
        )
        network = prepare_network(network, session)  # type: ignore[arg-type]
        weights.append(network.state_dict())
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_seeds_of_epochs_and_ranks_differ() -> None:
    drawn = set()
    for numbers in product((0, 1, 2**32 - 1), (1, 2, 10**6), (0, 1)):
        seed_everything(*numbers)
        drawn.add(torch.rand(1, dtype=torch.float64).item())
    assert len(drawn) == 18


def test_autocast_is_bf16_or_nothing() -> None:
    with autocast(torch.device("cpu"), True):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), False):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_amp_may_be_a_text_as_a_command_line_makes_it(text: str, value: bool) -> None:
    assert TrainingStep(amp=text).amp is value  # type: ignore[arg-type]
    assert EvaluationStep(image_size=(8, 8), amp=text).amp is value  # type: ignore[arg-type]
    assert len(EvaluationStep(image_size=(8, 8), flips=text).flips) == (4 if value else 1)  # type: ignore[arg-type]


def test_an_override_that_matches_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"base": "sr", "overrides": [{"pattern": "blok.*", "precision": "bf16"}]}
    session = SimpleNamespace(
        options=RunOptions.from_config(**(defaults() | {"recipe": recipe})),
        device=torch.device("cpu"),
        backend=SimpleNamespace(name="emulated"),
        rank=0,
        world_size=1,
        run_folder=RunFolder(tmp_path),
    )
    prepare_network(convolutions(), session)  # type: ignore[arg-type]
    assert "note: override 'blok.*' of recipe sr_custom matches no layer" in capsys.readouterr().out


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
