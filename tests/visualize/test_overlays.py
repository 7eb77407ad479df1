from __future__ import annotations

import numpy as np
import torch
from synthetic_patients import synthetic_cohort, synthetic_patient

from monai_fp4.visualize import Reason, SliceGallery


def chosen(patients, each=2):
    gallery = SliceGallery(each)
    for patient in patients:
        gallery.add(patient)
    return [overlay for slices in gallery.chosen().values() for overlay in slices]


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
        label, pred = item["label"][0].float(), item["pred"][0]
        amounts = {
            Reason.LARGEST: label,
            Reason.MISSED: label * (1 - pred) * ((label * (1 - pred)).sum((0, 1)) / label.sum((0, 1)).clamp(min=1)),
            Reason.FALSE_ALARM: (1 - label) * pred * (pred > 0.5),
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


def test_a_network_of_another_depth_shows_the_matching_slice():
    item = synthetic_patient("anna", seed=1, radius=8, depth=6)
    item["image"] = torch.stack([torch.full((24, 24), float(i)) for i in range(3)], -1)[None]
    item["image"][0, 0, 0] += 0.5  # so that there is a range of grey values
    item["label"].zero_()
    item["label"][0, :4, :4, 5] = 1
    overlay = next(o for o in chosen([item]) if o.reason is Reason.LARGEST)
    assert overlay.index == 5 and overlay.image.max() == 1
