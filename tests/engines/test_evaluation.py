"""One patient segmented, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from one_step import convolutions, moody
from torch import nn

from monai_fp4 import convert
from monai_fp4.engines import EvaluationStep
from monai_fp4.errors import NumericsError
from monai_fp4.losses import TverskyBCELoss
from monai_fp4.quantization.conversion import Action


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


def pictures(*sizes: tuple[int, int], slices: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": 10.0**number * torch.randn(3, 8, 8, slices, generator=generator),
            "label": (torch.rand(1, *size, slices, generator=generator) < 0.2).to(torch.uint8),
            "patient": f"picture {number}",
        }
        for number, size in enumerate(sizes)
    ]


def evaluate_batches(network: nn.Module, batches: list[Any], **step: Any) -> tuple[list[dict[str, Any]], list[int]]:
    """Outputs by patient, and the images of each forward pass."""
    passes: list[int] = []
    network.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    outputs: list[dict[str, Any]] = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=batches, network=network, decollate=False,
        iteration_update=EvaluationStep(image_size=(8, 8), **step),
    )  # fmt: skip
    evaluator.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda e: outputs.extend(e.state.output))
    evaluator.run()
    return outputs, passes


@pytest.mark.parametrize("flips", [False, True])
def test_pictures_of_several_patients_share_a_pass_and_keep_their_own_sizes(flips: bool) -> None:
    given, options = pictures((9, 5), (8, 8), (30, 4)), {"amp": False, "flips": flips, "loss": TverskyBCELoss()}
    outputs, passes = evaluate_batches(convolutions(), [given], **options)
    assert passes == [3] * (4 if flips else 1)
    for item, output in zip(given, outputs, strict=True):
        alone = evaluate(convolutions(), item, (8, 8), **options)
        assert output["patient"] == item["patient"] and output["pred"].shape == item["label"].shape
        torch.testing.assert_close(output["pred"], alone["pred"], rtol=1e-5, atol=1e-6)
        assert output["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert torch.equal(output["image"], item["image"]) and torch.equal(output["label"], item["label"])


def test_long_scans_are_given_as_they_were_whoever_is_in_their_batch() -> None:
    long, short = pictures((8, 8), (8, 8), slices=9), pictures((8, 8), (8, 8), slices=3)
    assert evaluate_batches(convolutions(), [long])[1] == [9, 9]
    assert evaluate_batches(convolutions(), [long], chunk=4)[1] == [4, 4, 1, 4, 4, 1]
    assert evaluate_batches(convolutions(), [[*short, long[0], *short]])[1] == [6, 9, 6]
    assert evaluate_batches(convolutions(), [short], chunk=5)[1] == [3, 3]


def test_in_fp4_a_patient_s_result_does_not_depend_on_the_others_in_the_batch() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 1, 1))
    network, report = convert(network, "full")
    assert report.layers[1].action is Action.SWAPPED
    given = pictures((8, 8), (8, 8), (8, 8))  # each ten times as bright as the one before
    (first, *_), _ = evaluate_batches(network, [given])
    (again, *_), _ = evaluate_batches(network, [given[:2]])
    assert torch.equal(first["pred"], again["pred"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = network.eval()(torch.cat([item["image"].movedim(-1, 0) for item in given]))
    assert not torch.equal(torch.sigmoid(mixed[0].float()), first["pred"][..., 0])


def test_of_a_batch_the_patient_is_named_whose_scan_overflows() -> None:
    given = pictures((8, 8), (8, 8), (8, 8))
    given[1]["image"][:] = torch.inf
    with pytest.raises(NumericsError, match=r"patient picture 1 .* layer '0'"):
        evaluate_batches(convolutions(), [given], amp=False)
