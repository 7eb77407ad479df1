"""What several networks answer together, and what their mean loses."""

from __future__ import annotations

import numpy as np
import torch

from monai_fp4.inference.segmented import Segmented

SIZE = (6, 5, 4)


def test_what_all_networks_call_is_in_the_mask_whatever_their_thresholds() -> None:
    random = torch.Generator().manual_seed(0)
    thresholds = [0.9, 0.05, 0.4]
    scores = torch.rand(3, *SIZE, generator=random)
    found = Segmented.empty(SIZE, torch.zeros(1), (), maps=True, several=True)
    for piece in scores.split(3, dim=-1):
        found.add(piece, float(np.mean(thresholds)), thresholds)
    unanimous = (scores >= torch.tensor(thresholds).reshape(-1, 1, 1, 1)).all(0).numpy()
    assert unanimous.any() and (found.mask[unanimous] == 1).all()
    assert found.probability is not None and np.array_equal(found.probability, scores.mean(0).numpy())


def test_a_lesion_that_one_network_calls_and_the_mean_does_not_is_counted() -> None:
    scores = torch.zeros(2, *SIZE)
    scores[0, 0, 0, 0] = 0.3  # by the first alone
    scores[:, 4, 4, 1:3] = 0.8  # by both
    found = Segmented.empty(SIZE, torch.zeros(1), (), maps=False, several=True)
    found.add(scores, 0.5, [0.2, 0.8])
    assert found.mask.sum() == 2 and found.lost_lesions == 1
    assert Segmented.empty(SIZE, torch.zeros(1), (), maps=False, several=False).lost_lesions is None
