"""Sorted scores as sources of cells: what spans two pieces is counted once."""

from __future__ import annotations

import numpy as np
import pytest

from monai_fp4.metrics import sources


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
@pytest.mark.parametrize("values", [range(9), [0, 0, 1, 1, 1, 2, 7, 7, 7], [3] * 9, [5]])
def test_distinct_keys_are_counted_across_pieces(
    piece: int, values: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_PIECE", piece)
    keys = np.array(values, np.uint32)
    source, expected = sources.score_source(keys, True), np.unique(keys)
    np.testing.assert_array_equal(source.distinct(expected.size), expected)
    assert source.distinct(expected.size - 1) is None
