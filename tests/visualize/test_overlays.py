from __future__ import annotations

import numpy as np
import torch
from synthetic_patients import synthetic_cohort, synthetic_patient

from monai_fp4.visualize import Reason, SliceGallery, grey_slice


def chosen(patients, each=2, threshold=0.5):
    gallery = SliceGallery(each, threshold)
    for patient in patients:
        gallery.add(patient)
    return [overlay for slices in gallery.chosen(threshold).values() for overlay in slices]


def test_largest_lesions_worst_misses_and_false_alarms_are_chosen():
    patients = synthetic_cohort()
    result = chosen(patients)
    by_reason = {reason: [o.patient for o in result if o.reason is reason] for reason in Reason}
    assert by_reason[Reason.LARGEST] == ["large", "middle"]
    assert by_reason[Reason.MISSED][0] == "missed"
    assert len(by_reason[Reason.FALSE_ALARM]) == 2


def test_numbers_and_slices_are_those_of_the_arrays():
    patients = {p["patient"]: p for p in synthetic_cohort()}
    for overlay in chosen(patients.values(), each=5):
        item = patients[overlay.patient]
        label, pred = item["label"][0].float(), item["pred"][0]  # one lesion each
        unseen = label * (pred < 0.5)
        amounts = {
            Reason.LARGEST: label,
            Reason.MISSED: unseen * (unseen.sum((0, 1)) / label.sum((0, 1)).clamp(min=1)),
            Reason.FALSE_ALARM: (1 - label) * pred * (pred >= 0.5),
        }[overlay.reason].sum((0, 1))
        assert overlay.index == int(amounts.argmax())
        assert abs(overlay.amount - float(amounts.max())) < 1e-3
        np.testing.assert_array_equal(overlay.label, label[..., overlay.index].bool().numpy())
        np.testing.assert_array_equal(overlay.probability, pred[..., overlay.index].numpy())
        assert overlay.image.shape == overlay.label.shape and 0 <= overlay.image.min() < overlay.image.max() <= 1


def test_the_order_of_patients_does_not_matter_even_for_ties():
    twins = [synthetic_patient(name, seed=1, radius=8) for name in ("c", "a", "b", "d")]
    forward = [(o.patient, o.index, o.reason) for o in chosen(twins)]
    backward = [(o.patient, o.index, o.reason) for o in chosen(twins[::-1])]
    assert forward == backward and forward[0][0] == "a"


def test_patients_without_tumour_give_no_tumour_slices():
    assert all(o.reason is Reason.FALSE_ALARM for o in chosen([synthetic_patient("healthy", seed=1, radius=0)]))


def planted(pred: float) -> dict:
    """A large lesion in slice 1, found but for its rim, and a small one in slice 3 of a given probability."""
    label, given = torch.zeros(1, 32, 32, 4, dtype=torch.uint8), torch.full((1, 32, 32, 4), 0.1)
    label[:, 2:22, 2:22, 1], given[:, 2:20, 2:22, 1] = 1, 0.9
    label[:, 28:30, 28:30, 3], given[:, 28:30, 28:30, 3] = 1, pred
    return {"image": torch.rand(3, 32, 32, 4), "label": label, "pred": given, "patient": "anna"}


def test_a_small_lesion_that_was_overlooked_beside_a_large_one_is_a_miss():
    item = planted(0.1)
    item["label"][..., 1] += item["label"][..., 3]  # in the slice of the large one
    item["label"][..., 2:] = 0
    lost = [o for o in chosen([item], each=1) if o.reason is Reason.MISSED]
    assert lost[0].amount == 4 + 40 * 40 / 400


def test_nothing_missed_is_no_miss_and_what_does_not_count_no_false_alarm():
    item = planted(0.9)
    item["pred"][item["label"] == 1] = 0.45
    item["pred"][:, 0, :, 0], item["label"][:, 0, :, 0] = 0.9, 2
    assert {o.reason for o in chosen([item], threshold=0.4)} == {Reason.LARGEST}
    assert {o.reason for o in chosen([item])} == {Reason.LARGEST, Reason.MISSED}
    item["pred"][item["label"] == 1] = 0.9999  # by a network that is sure of everything
    assert {o.reason for o in chosen([item], threshold=0.99995)} == {Reason.LARGEST, Reason.MISSED}
    gallery = SliceGallery(1, 0.5)  # of a threshold that was another while the patients went by
    gallery.add(item)
    assert list(gallery.chosen(0.4)) == [Reason.LARGEST]


def test_slices_of_many_million_pixels_have_grey_values():
    assert grey_slice(torch.rand(1, 8, 8, 1), 0, (4100, 4100, 1)).shape == (4100, 4100)


def test_a_network_of_another_depth_shows_the_matching_slice():
    item = synthetic_patient("anna", seed=1, radius=8, depth=6)
    item["image"] = torch.stack([torch.full((24, 24), float(i)) for i in range(3)], -1)[None]
    item["image"][0, 0, 0] += 0.5  # so that there is a range of grey values
    item["label"].zero_()
    item["label"][0, :4, :4, 5] = 1
    overlay = next(o for o in chosen([item]) if o.reason is Reason.LARGEST)
    assert overlay.index == 5 and overlay.image.max() == 1
