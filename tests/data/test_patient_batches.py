"""Who shares a forward pass: a rule over numbers of slices, and the batches of a data set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from small_data import lgg_ids, write_lgg

from monai_fp4.data import PatientDataset, PatientLoader, build_manifest, in_batches, load_datalist


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(1, 16), st.integers(1, 12))
def test_everybody_is_there_once_in_order_and_no_shared_batch_is_too_large(counts: list[int], most: int, few: int):
    patients = list(enumerate(counts))
    batches = list(in_batches(patients, lambda patient: patient[1], most, few))
    assert [patient for batch in batches for patient in batch] == patients
    for batch in batches:
        slices = [count for _, count in batch]
        assert len(batch) == 1 or (max(slices) < few and sum(slices) <= most)
    for before, after in itertools.pairwise(batches):  # nobody could have joined the batch before
        alone = before[-1][1] >= few or after[0][1] >= few
        assert alone or sum(count for _, count in before) + after[0][1] > most


def test_pictures_fill_batches_of_64():
    assert [len(batch) for batch in in_batches(range(153), lambda _: 1)] == [64, 64, 25]


def test_a_batch_is_given_before_the_next_patient_is_read():
    read = []

    def patients() -> Iterator[int]:
        for count in (9, 1, 9):
            read.append(count)
            yield count

    batches = in_batches(patients(), lambda count: count)
    assert next(batches) == [9] and read == [9, 1]


def test_a_data_set_s_batches_follow_slices_and_volumes_stay_alone(tmp_path):
    ids = lgg_ids(4)
    folder = write_lgg(tmp_path, dict(zip(ids, (2, 9, 3, 3), strict=True)))
    data = load_datalist(build_manifest(folder, folds=2), folder, "all", "train")
    slices = [len(record["images"]) for record in data]
    flat, volumes = PatientDataset(data, (8, 8)), PatientDataset(data, (8, 8, 4))
    assert flat.batches() == list(in_batches(range(4), slices.__getitem__))
    assert max(map(len, flat.batches())) > 1 and len(flat.batches(most=1)) == 4
    assert volumes.batches() == [[0], [1], [2], [3]]
    given = [[patient["patient"] for patient in batch] for batch in PatientLoader(flat)]
    assert given == [[data[index]["patient"] for index in batch] for batch in flat.batches()]
    assert [len(batch) for batch in PatientLoader(flat, slices=1)] == [1] * 4
