"""The paper's split rule: its own lists on its own patients, and manifests that hold such splits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from script_modules import imported
from small_data import lgg_ids, write_lgg

from monai_fp4.data import (
    HeldOut,
    Manifest,
    build_manifest,
    load_manifest,
    paper_splits,
    save_manifest,
    select_patients,
    unseen_patients,
)
from monai_fp4.errors import ConfigError, DataError

PAPER = json.loads((Path(__file__).parents[1] / "paper_splits.json").read_text())
SLICES = {name: tuple(counts) for name, counts in PAPER["slices"].items()}
NAMES = [*map(str, range(5)), "holdout"]


def test_rule_gives_the_papers_lists() -> None:
    found = paper_splits(dict(reversed(SLICES.items())))
    assert list(found) == NAMES
    for name, held_out in found.items():
        assert {"val": list(held_out.val), "test": list(held_out.test)} == PAPER["splits"][name], name


@pytest.mark.parametrize("name", NAMES)
def test_shipped_manifest_holds_them(name: str) -> None:
    manifest, lgg = load_manifest("lgg_paper"), load_manifest("lgg")
    assert [p.images for p in manifest.patients] == [p.images for p in lgg.patients]
    assert {p.id: (len(p.images), p.tumour_slices) for p in manifest.patients} == SLICES
    parts = {part: [p.id for p in select_patients(manifest, name, part)] for part in ("train", "val", "test")}
    assert [len(ids) for ids in parts.values()] == [88, 11, 11]
    assert sorted(id for ids in parts.values() for id in ids) == sorted(SLICES)
    assert (parts["val"], parts["test"]) == tuple(PAPER["splits"][name][part] for part in ("val", "test"))
    assert [p.id for p in unseen_patients(manifest, name)] == parts["test"]


def test_shipped_manifest_is_what_is_published() -> None:
    with imported(["shipped_manifests"]) as scripts:
        assert scripts["shipped_manifests"].lgg_paper_manifest() == load_manifest("lgg_paper")


def test_a_patient_s_fold_is_the_one_that_holds_them_out() -> None:
    manifest = load_manifest("lgg_paper")
    for patient in manifest.patients:
        held_out = manifest.splits[str(patient.fold)]
        assert patient.id in (*held_out.val, *held_out.test)


def test_folds_of_such_a_manifest() -> None:
    manifest = load_manifest("lgg_paper")
    assert select_patients(manifest, 3, "val") == select_patients(manifest, "3", "val")
    assert len(select_patients(manifest, "all", "train")) == 110 and not unseen_patients(manifest, "all")
    for wrong in (5, "hold-out", True, -1):
        with pytest.raises(ConfigError, match="one of 0, 1, 2, 3, 4, holdout, all for manifest 'lgg_paper'"):
            select_patients(manifest, wrong, "train")
    with pytest.raises(ConfigError, match="one of 0, 1, 2, 3, 4, all for manifest 'lgg'"):
        select_patients(load_manifest("lgg"), "holdout", "val")


def test_rule_is_applied_to_a_data_folder_and_survives_the_file(tmp_path: Path) -> None:
    folder = write_lgg(tmp_path, {name: 1 + number % 6 for number, name in enumerate(lgg_ids(60))})
    manifest = build_manifest(folder, split_rule="paper", seed=7)
    assert list(manifest.splits) == NAMES and (manifest.folds, manifest.seed) == (5, 2026)
    slices = {p.id: (len(p.images), p.tumour_slices or 0) for p in manifest.patients}
    assert manifest.splits == paper_splits(slices)
    assert load_manifest(save_manifest(manifest, tmp_path / "m.json")) == manifest


def test_manifests_without_splits_are_written_as_before(tmp_path: Path) -> None:
    text = save_manifest(load_manifest("phantom"), tmp_path / "m.json").read_text()
    assert "splits" not in text and load_manifest(tmp_path / "m.json") == load_manifest("phantom")


def test_rule_on_the_88_patients_of_lgg() -> None:
    known = {p.id: (len(p.images), p.tumour_slices or 0) for p in load_manifest("lgg").patients if p.split == "train"}
    splits = paper_splits(known)
    held_out = [{*splits[str(fold)].val, *splits[str(fold)].test} for fold in range(5)]
    assert sum(map(len, held_out)) == len(set().union(*held_out)) == 88
    assert {len(each) for each in (*held_out, {*splits["holdout"].val, *splits["holdout"].test})} == {17, 18}
    assert all(abs(len(split.val) - len(split.test)) <= 1 for split in splits.values())


@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_too_few_patients_are_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"within three bins of tumour share, found {count} "):
        paper_splits({f"p{i}": (10, i % 10) for i in range(count)})


def test_without_scikit_learn_the_rule_says_so() -> None:
    with mock.patch.dict("sys.modules", {"sklearn.model_selection": None}), pytest.raises(ConfigError, match="scikit-"):
        paper_splits(SLICES)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split_rule 'papers' is not known"):
        build_manifest(tmp_path, split_rule="papers")
    with pytest.raises(ConfigError, match="leave split at 'train'"):
        build_manifest(tmp_path, split_rule="paper", split="test")


def with_split(held_out: HeldOut) -> Manifest:
    return replace(load_manifest("phantom"), splits={"mine": held_out})


@pytest.mark.parametrize(
    ("held_out", "found"),
    [
        (HeldOut(("PHANTOM_NA_0001",), ("PHANTOM_NA_0001",)), "'PHANTOM_NA_0001' 2 times"),
        (HeldOut(("nobody",), ("PHANTOM_NA_0001",)), "'nobody' who is not among"),
        (HeldOut(("PHANTOM_NA_0021",), ("PHANTOM_NA_0001",)), "'PHANTOM_NA_0021' who is not among"),
    ],
)
def test_splits_that_contradict_the_patients_are_refused(held_out: HeldOut, found: str, tmp_path: Path) -> None:
    path = save_manifest(with_split(held_out), tmp_path / "m.json")
    with pytest.raises(DataError, match=f"split 'mine' to hold out patients of the manifest, each once, found {found}"):
        load_manifest(path)


def test_a_split_that_leaves_nobody_to_train_on_is_refused(tmp_path: Path) -> None:
    first, *others = (p.id for p in load_manifest("phantom").patients if p.split == "train")
    path = save_manifest(with_split(HeldOut((first,), tuple(others))), tmp_path / "m.json")
    with pytest.raises(DataError, match="patients to train on in split 'mine', found none"):
        load_manifest(path)
