"""One patient segmented, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from one_step import convolutions, moody
from torch import nn

from monai_fp4.engines import (
    EvaluationStep,
)
from monai_fp4.errors import NumericsError
from monai_fp4.losses import TverskyBCELoss


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
