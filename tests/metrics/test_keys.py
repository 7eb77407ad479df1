from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from monai_fp4.errors import DataError, NumericsError
from monai_fp4.metrics.keys import SortedScores, key_scores, score_keys, split_keys

FLOATS = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(allow_nan=False, width=32))
# Few values, so that ties are common, with neighbours of 0 and 1 among them.
TIED = st.sampled_from([0.0, -0.0, 1e-40, 0.25, 0.5, float(np.nextafter(np.float32(1), np.float32(0))), 1.0, -3.0])


@settings(deadline=None)
@given(FLOATS, FLOATS)
def test_keys_compare_as_scores_do(a, b):
    size = min(a.size, b.size)
    a, b = a[:size], b[:size]
    np.testing.assert_array_equal(score_keys(a) < score_keys(b), a < b)
    np.testing.assert_array_equal(score_keys(a) == score_keys(b), a == b)


@settings(deadline=None)
@given(FLOATS)
def test_keys_decode_to_the_scores(a):
    np.testing.assert_array_equal(key_scores(score_keys(a)), a)


def test_keys_that_no_score_has_decode_to_infinity():
    np.testing.assert_array_equal(key_scores(np.array([0, 2**32 - 1], np.uint32)), [-np.inf, np.inf])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.one_of(TIED, st.floats(-1e3, 1e3, width=32)), st.booleans()), min_size=1, max_size=80))
def test_sorted_scores_agree_with_scikit_learn(pairs):
    scores = np.array([p[0] for p in pairs], np.float32)
    labels = np.array([p[1] for p in pairs])
    ordered = SortedScores.of(scores, labels)
    if labels.any():
        assert ordered.auprc() == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    else:
        assert np.isnan(ordered.auprc())
    assert ordered.distinct == np.unique(scores).size
    for threshold in scores[:5]:
        called = scores >= threshold
        assert ordered.at_or_above(float(threshold)) == (int((called & labels).sum()), int((called & ~labels).sum()))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_takes_tensors_of_any_float_dtype_with_gradient(kind):
    scores = torch.tensor([[0.5, 0.25]], dtype=kind, requires_grad=True)
    negatives, positives = split_keys(scores, torch.tensor([[True, False]]))
    assert key_scores(positives).tolist() == [0.5] and key_scores(negatives).tolist() == [0.25]


def test_infinite_scores_are_scores():
    negatives, positives = split_keys([np.inf, -np.inf], [1, 0])
    assert key_scores(positives).tolist() == [np.inf] and key_scores(negatives).tolist() == [-np.inf]


def test_nan_is_refused_and_counted():
    with pytest.raises(NumericsError, match="NaN in 2 of 3"):
        split_keys([0.5, float("nan"), float("nan")], [0, 1, 1])


@pytest.mark.parametrize(("labels", "odd"), [([0, 2, 1], "2"), ([0.5, 0, 1], "0.5"), ([0, -1, 1], "-1")])
def test_labels_other_than_0_and_1_are_refused(labels, odd):
    with pytest.raises(DataError, match=f"0 or 1, found {odd};"):
        split_keys([0.1, 0.2, 0.3], labels)


@pytest.mark.parametrize(
    ("scores", "found"),
    [(torch.tensor([1j, 0.5]), "complex64"), (np.array([1j, 0.5]), "complex128"), (["high", "low"], "<U4")],
)
def test_scores_that_are_no_real_numbers_are_refused(scores, found):
    with pytest.raises(DataError, match=f"real numbers as scores, found {found}"):
        split_keys(scores, [0, 1])


def test_sizes_that_differ_are_refused():
    with pytest.raises(DataError, match="found 2 for 3"):
        split_keys([0.1, 0.2, 0.3], [0, 1])


@pytest.mark.parametrize("size", [3, 20_000])  # few, and as many as compiled code is worth
def test_bytes_as_labels_are_checked_too(size):
    scores, labels = np.linspace(0, 1, size, dtype=np.float32), np.zeros(size, np.uint8)
    labels[size // 2] = 2
    with pytest.raises(DataError, match="0 or 1, found 2;"):
        split_keys(scores, labels)
    labels[size // 2], scores[-1] = 1, np.nan
    with pytest.raises(NumericsError, match=f"NaN in 1 of {size}"):
        split_keys(scores, labels)
