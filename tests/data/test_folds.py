"""Folds: sizes, strata and determinism, over drawn cohorts; and which patients each part of a fold holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_manifests import manifest, patient

from monai_fp4.data import assign_folds, load_manifest, select_patients
from monai_fp4.data.records import Split
from monai_fp4.errors import ConfigError, DataError

cohorts = st.lists(st.tuples(st.sampled_from("ABCD"), st.integers(0, 1000)), min_size=7, max_size=60).map(
    lambda rows: [patient(number, group, volume) for number, (group, volume) in enumerate(rows)]
)


@settings(deadline=None, max_examples=60)
@given(cohorts, st.integers(2, 7), st.integers(0, 5), st.randoms())
def test_folds_are_even_overall_and_within_each_institution_in_any_order(cohort, folds, seed, random):
    assigned = assign_folds(cohort, folds, seed)
    counts = Counter(each.fold for each in assigned)
    assert set(counts) == set(range(folds))
    assert max(counts.values()) - min(counts.values()) <= 1
    for group in {each.group for each in assigned}:
        within = Counter(each.fold for each in assigned if each.group == group)
        assert max(within.values()) - min(within.get(fold, 0) for fold in range(folds)) <= 1
    random.shuffle(cohort)
    assert assign_folds(cohort, folds, seed) == assigned


def test_large_and_small_tumours_are_in_every_fold():
    cohort = [patient(number, "A", 10 ** (number // 5)) for number in range(20)]  # four sizes, five of each
    for fold in range(5):
        volumes = [each.tumour_voxels for each in assign_folds(cohort, 5, 0) if each.fold == fold]
        assert sorted(volumes) == [1, 10, 100, 1000]


def test_another_seed_gives_other_folds_and_test_patients_have_none():
    cohort = [patient(number, "AB"[number % 2], number) for number in range(30)]
    cohort[3] = replace(cohort[3], split=Split.TEST)
    one, other = assign_folds(cohort, 5, 0), assign_folds(cohort, 5, 1)
    assert [each.fold for each in one] != [each.fold for each in other]
    assert [each.id for each in one if each.fold is None] == ["p3"]


@pytest.mark.parametrize(("count", "folds", "error"), [(8, 1, ConfigError), (3, 4, DataError)])
def test_numbers_of_folds_that_make_no_sense(count, folds, error):
    with pytest.raises(error, match="folds"):
        assign_folds([patient(number) for number in range(count)], folds, 0)


def test_parts_of_a_fold_share_nobody_and_leave_nobody_out():
    phantom = load_manifest("phantom")
    everyone = {each.id for each in phantom.patients}
    test = {each.id for each in select_patients(phantom, "all", "test")}
    validated = set()
    for fold in range(phantom.folds):
        train, val = ({each.id for each in select_patients(phantom, fold, part)} for part in ("train", "val"))
        assert not train & val
        assert not (train | val) & test
        assert train | val | test == everyone
        validated |= val
    assert validated == everyone - test
    assert {each.id for each in select_patients(phantom, "all", "train")} == everyone - test
    assert select_patients(phantom, "all", "val") == ()


def test_a_fold_may_be_given_by_its_digits():
    phantom = load_manifest("phantom")
    assert select_patients(phantom, "2", "val") == select_patients(phantom, 2, "val")


@pytest.mark.parametrize("fold", [5, -1, "5", "every", 1.5, True, None])
def test_unknown_folds_are_refused_with_those_that_there_are(fold):
    with pytest.raises(ConfigError, match="one of 0, 1, 2, 3, 4, all"):
        select_patients(load_manifest("phantom"), fold, "train")


def test_unknown_part():
    with pytest.raises(ConfigError, match="nearest names are 'train'"):
        select_patients(load_manifest("phantom"), 0, "trian")


def test_no_test_split_and_only_a_test_split():
    with pytest.raises(DataError, match="--split test"):
        select_patients(manifest(assign_folds([patient(1), patient(2)], 2, 0), 2), 0, "test")
    with pytest.raises(DataError, match="only the test split"):
        select_patients(manifest((patient(1, split=Split.TEST),), 0), "all", "train")
