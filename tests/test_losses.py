from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import TverskyLoss
from tiny_runs import BUNDLES
from torch import Tensor, nn

from monai_fp4.errors import ConfigError
from monai_fp4.losses import TverskyBCELoss


def batch(seed: int = 0, scale: float = 3.0, shape: tuple[int, ...] = (3, 1, 16, 16)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(shape, generator=generator) < 0.1).float()
    return scale * torch.randn(shape, generator=generator) + 2 * labels, labels


@settings(deadline=None, max_examples=25)
@given(
    st.floats(0, 5), st.floats(0.1, 5), st.floats(0, 1), st.floats(0.05, 1), st.booleans(), st.sampled_from([1e-5, 1.0])
)
def test_is_the_weighted_sum_of_torch_and_monai(bce, tversky, alpha, beta, whole_batch, smooth):
    logits, labels = batch()
    loss = TverskyBCELoss(
        bce_weight=bce, tversky_weight=tversky, alpha=alpha, beta=beta, batch=whole_batch, smooth=smooth
    )(logits, labels)
    reference = TverskyLoss(sigmoid=True, alpha=alpha, beta=beta, batch=whole_batch, smooth_nr=smooth, smooth_dr=smooth)
    expected = bce * nn.BCEWithLogitsLoss()(logits, labels) + tversky * reference(logits, labels)
    torch.testing.assert_close(loss, expected)


def test_tversky_formula_by_hand_for_three_voxels():
    logits, labels = torch.tensor([[[2.0, -1.0, 0.5]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
    p = 1 / (1 + torch.exp(-logits.double().flatten()))
    tp, fp, fn = p[0] + p[1], p[2], (1 - p[0]) + (1 - p[1])
    expected = 1 - tp / (tp + 0.2 * fp + 0.8 * fn)
    loss = TverskyBCELoss(bce_weight=0, alpha=0.2, beta=0.8, tversky_weight=1, smooth=0)(logits, labels)
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)


def test_the_default_is_the_loss_of_every_training_bundle():
    logits, labels = batch(4)
    for path in BUNDLES.glob("*_*_*.json"):
        options = json.loads(path.read_text())["loss"]
        assert options.pop("_target_") == "monai_fp4.losses.TverskyBCELoss"
        assert TverskyBCELoss()(logits, labels) == TverskyBCELoss(**options)(logits, labels), path.name


def test_gradients_are_those_of_the_references():
    logits, labels = batch(1)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    TverskyBCELoss(bce_weight=1, tversky_weight=1)(ours, labels).backward()
    reference = TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
    (nn.BCEWithLogitsLoss()(theirs, labels) + reference(theirs, labels)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_computes_in_fp32_under_autocast_and_for_bf16_logits():
    logits, labels = batch(2, scale=6)
    logits = logits.bfloat16()
    expected = TverskyBCELoss()(logits.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = TverskyBCELoss()(logits, labels.to(torch.uint8))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_logits_have_finite_loss_and_gradient(value):
    logits = torch.full((1, 1, 4, 4), value, requires_grad=True)
    labels = torch.zeros(1, 1, 4, 4)
    labels[..., 0] = 1
    loss = TverskyBCELoss()(logits, labels)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_by_default_a_miss_costs_more_than_a_false_alarm():
    labels = torch.zeros(1, 1, 1, 20)
    labels[..., :10] = 1
    missed, false_alarm = 20 * labels - 10, 20 * labels - 10
    missed[..., 9], false_alarm[..., 10] = -10, 10
    loss = TverskyBCELoss(bce_weight=0)
    assert loss(missed, labels) > 1.5 * loss(false_alarm, labels)


def test_an_empty_slice_predicted_empty_costs_nothing():
    assert float(TverskyBCELoss(smooth=1.0)(torch.full((2, 1, 8, 8), -30.0), torch.zeros(2, 1, 8, 8))) < 1e-6


def test_pos_weight_is_torchs():
    logits, labels = batch(3)
    expected = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(7.0))(logits, labels)
    loss = TverskyBCELoss(bce_weight=1, tversky_weight=0, pos_weight=7)
    torch.testing.assert_close(loss(logits, labels), expected)
    assert not loss.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"bce_weight": -1},
        {"alpha": float("nan")},
        {"smooth": float("inf")},
        {"alpha": 0, "beta": 0},
        {"bce_weight": 0, "tversky_weight": 0},
        {"pos_weight": -2},
    ],
)
def test_refuses_weights_that_make_no_sense(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        TverskyBCELoss(**options)


def test_refuses_labels_of_another_shape():
    with pytest.raises(ConfigError, match=r"\(2, 1, 4, 4\).*\(2, 4, 4\)"):
        TverskyBCELoss()(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


@pytest.mark.parametrize("case", ["", "logits_times_10", "all_masks_empty"])
def test_the_papers_loss_has_its_reference_values(case):
    """Per image, with logits clamped to 20; see `rule` in the file for the logits."""
    reference = json.loads((Path(__file__).parent / "paper_reference.json").read_text())["loss_and_metrics"]
    expected = reference[case] if case else reference
    k = torch.arange(2 * 256 * 256, dtype=torch.int64)
    logits = (4 * (2 * ((7 * k * k + 13 * k + 5) % 1013).double() / 1012 - 1)).float().view(2, 1, 256, 256)
    labels = torch.zeros(2, 1, 256, 256)
    if case != "all_masks_empty":
        labels[0, 0, 50:90, 60:130] = 1
    logits = logits * 10 if case == "logits_times_10" else logits
    for bce, tversky, name in ((1, 0, "bce"), (0, 1, "tversky"), (1, 1, "total")):
        loss = TverskyBCELoss(bce_weight=bce, tversky_weight=tversky, batch=False, max_logit=20.0)
        assert loss(logits, labels).item() == pytest.approx(expected[name], rel=2e-6)


def test_a_clamped_logit_has_no_gradient():
    logits = torch.tensor([[[[-30.0, -5.0, 5.0, 30.0]]]], requires_grad=True)
    TverskyBCELoss(max_logit=20.0)(logits, torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])).backward()
    assert (logits.grad != 0).flatten().tolist() == [False, True, True, False]
