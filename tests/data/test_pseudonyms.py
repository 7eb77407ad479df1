"""Manifests that name nobody: the same folds, the same data, and a key file that is its owner's alone."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_dicom
from small_data import lgg_ids, run_manifest, write_lgg, write_nifti, write_png

from monai_fp4.data import Manifest, build_manifest, check_manifest, load_datalist, load_manifest, pseudonyms
from monai_fp4.data.patients import read_patient
from monai_fp4.data.pseudonyms import KEYS, KeyFile, hide, located, open_keys
from monai_fp4.errors import ConfigError, DataError, MonaiFP4Error

NAMES = [f"Planted_Jane_{number}" for number in range(6)]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "private" / "keys.json"


def build(data: Path, keys: Path | None, output: Path, *options: object) -> Manifest:
    output.parent.mkdir(exist_ok=True)
    hidden = ("--pseudonyms", keys) if keys else ()
    assert run_manifest("build", "--dataset_dir", data, "--folds", 2, "--output", output, *hidden, *options) == 0
    return load_manifest(output)


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = content(path)
    edit(document)
    path.write_text(json.dumps(document))


def dicom(root: Path) -> Path:
    shape = (20, 26, 9)
    for number, name in enumerate(NAMES[:4]):
        data = small_dicom.slices(number, shape=shape, patient=name)
        small_dicom.save(data, root / name, "Planted")
        small_dicom.segmentation(data, small_dicom.lesion(number, shape)).save_as(root / name / "seg.dcm")
    return root


def sessions(root: Path) -> Path:
    """Two scans of each person, as a table tells."""
    write_nifti(root, NAMES)
    rows = [
        f"{name}_v,{name}/flair.nii.gz,{name}/mask.nii.gz,{NAMES[number // 2]}" for number, name in enumerate(NAMES)
    ]
    (root / "table.csv").write_text("\n".join(["patient,image_flair,mask,person", *rows]) + "\n")
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "slices": lambda root: write_lgg(root, dict.fromkeys(lgg_ids(6), 3)),
    "volumes": lambda root: write_nifti(root, NAMES),
    "pictures": lambda root: write_png(root, [f"{name}/{number}" for name in NAMES for number in (1, 2)]),
    "dicom": dicom,
    "persons": sessions,
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_folds_groups_persons_and_voxels_are_those_of_the_names(
    layout: str, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = LAYOUTS[layout](tmp_path / "scans")
    plain = build(root, None, tmp_path / "shared" / "plain.json")
    hidden = build(root, keys, tmp_path / "shared" / "hidden.json")
    names = content(keys)["patients"]
    monkeypatch.setenv(KEYS, str(keys))
    back = {names[patient.id]: located(hidden, patient) for patient in hidden.patients}
    restored = {name: replace(patient, id=name, person=names.get(patient.person, "")) for name, patient in back.items()}
    assert restored == {patient.id: patient for patient in plain.patients}
    assert (hidden.name, hidden.channels, hidden.folds) == ("hidden", plain.channels, plain.folds)
    text = (tmp_path / "shared" / "hidden.json").read_text()
    words = {part for patient in plain.patients for part in re.split(r"\W|_", f"{patient.id} {patient.person}")}
    paths = {Path(path).stem for p in plain.patients for pair in p.images for path in (pair.image, pair.mask)}
    assert [word for word in words | paths if len(word) > 2 and word in text and word not in plain.channels] == []
    check_manifest(hidden, root)
    by_name = {record["patient"]: record for record in load_datalist(plain, root, "all", "train")}
    for record in load_datalist(hidden, root, "all", "train"):
        one, other = read_patient(record), read_patient(by_name[names[record["patient"]]])
        assert np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)


def test_a_later_build_gives_the_same_person_the_same_pseudonym_and_earlier_manifests_go_on(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_nifti(tmp_path / "scans", NAMES)
    for name in NAMES[4:]:
        (root / name).rename(tmp_path / name)
    first = build(root, keys, tmp_path / "shared" / "first.json")
    again = build(root, keys, tmp_path / "shared" / "again.json", "--name", "first")
    assert again == first
    for name in NAMES[4:]:
        (tmp_path / name).rename(root / name)
    second = build(root, keys, tmp_path / "shared" / "second.json")
    assert {p.id for p in first.patients} < {p.id for p in second.patients} and len(second.patients) == 6
    monkeypatch.setenv(KEYS, str(keys))
    check_manifest(first, root)
    check_manifest(second, root)
    other = build(root, tmp_path / "other" / "keys.json", tmp_path / "shared" / "other.json")
    assert not {p.id for p in other.patients} & {p.id for p in second.patients}


def test_the_split_of_the_paper_holds_out_pseudonyms(tmp_path: Path) -> None:
    manifest = load_manifest("lgg_paper")
    hidden, keys = hide(manifest, KeyFile(tmp_path / "keys.json", bytes(range(32))))
    for name, held_out in manifest.splits.items():
        for part in ("val", "test"):
            found = getattr(hidden.splits[name], part)
            assert {keys.patients[each] for each in found} == set(getattr(held_out, part))


def test_the_key_file_is_its_owners_alone_whatever_is_shared(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONAI_FP4_SHARED_FILES", "1")
    root = write_nifti(tmp_path / "scans", NAMES)
    build(root, keys, tmp_path / "shared" / "m.json")
    build(root, keys, tmp_path / "shared" / "n.json")
    assert keys.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "shared" / "m.json").stat().st_mode & 0o044, "a manifest is made to be shared"
    assert [path.name for path in keys.parent.iterdir()] == ["keys.json"]


def test_what_is_printed_says_where_the_names_are(tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_nifti(tmp_path / "scans", NAMES)
    build(root, None, tmp_path / "shared" / "plain.json")
    assert "note: patients' keys and paths stand in this manifest" in capsys.readouterr().out
    build(root, keys, tmp_path / "shared" / "hidden.json")
    said = capsys.readouterr().out
    assert f"{keys} says who is who" in said and KEYS in said and "Planted" not in said


@pytest.mark.parametrize("place", ["shared/keys.json", "shared/deep/keys.json", "link/keys.json", "shared/m.json"])
def test_a_key_file_with_the_manifest_is_refused_before_anything_is_read(tmp_path: Path, place: str) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    with pytest.raises(DataError, match="expected the key file apart from the manifest"):
        run_manifest(
            "build", "--dataset_dir", tmp_path, "--output", tmp_path / "shared/m.json", "--pseudonyms", tmp_path / place
        )
    assert list((tmp_path / "shared").iterdir()) == []


SPOIL: dict[str, tuple[Callable[[Path], object], str]] = {
    "read by others": (lambda keys: keys.chmod(0o640), "chmod 600"),
    "written by others": (lambda keys: keys.chmod(0o602), "chmod 600"),
    "empty": (lambda keys: keys.write_text(""), "is damaged"),
    "cut": (lambda keys: keys.write_bytes(keys.read_bytes()[:200]), "is damaged"),
    "not text": (lambda keys: keys.write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "a list": (lambda keys: keys.write_text("[]"), "must hold files, patients, secret"),
    "a manifest": (lambda keys: keys.write_text('{"schema_version": 1}'), "must hold files, patients, secret"),
    "deep": (lambda keys: keys.write_text("[" * 100_000), "deeper"),
    "no secret": (lambda keys: change(keys, lambda d: d.update(secret="")), "its secret is none"),
    "a secret of another": (lambda keys: change(keys, lambda d: d.update(secret="0" * 64)), "was changed"),
    "a number as secret": (lambda keys: change(keys, lambda d: d.update(secret=1)), "its secret is none"),
    "another name": (
        lambda keys: change(keys, lambda d: d["patients"].update(dict.fromkeys(d["patients"], "Bert"))), "was changed",
    ),
    "another path": (
        lambda keys: change(keys, lambda d: d["files"].update(dict.fromkeys(d["files"], "../x"))), "was changed",
    ),
    "names that are numbers": (
        lambda keys: change(keys, lambda d: d.update(patients={"p": 1})), "names by pseudonym",
    ),
    "a list of patients": (lambda keys: change(keys, lambda d: d.update(patients=[])), "names by pseudonym"),
    "a folder": (lambda keys: (keys.unlink(), keys.mkdir(0o700)), "no regular file"),
    "a pipe": (lambda keys: (keys.unlink(), os.mkfifo(keys, 0o600)), "no regular file"),
    "a lost link": (lambda keys: (keys.unlink(), keys.symlink_to("nowhere")), "No such file|cannot be read"),
    "a link to itself": (lambda keys: (keys.unlink(), keys.symlink_to(keys)), "[Ss]ymbolic|is damaged|cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("how", list(SPOIL))
def test_a_key_file_that_is_damaged_or_open_to_others_is_one_sentence(
    how: str, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_nifti(tmp_path / "scans", NAMES)
    manifest = build(root, keys, tmp_path / "shared" / "m.json")
    spoil, words = SPOIL[how]
    spoil(keys)
    pseudonyms._read_once.cache_clear()
    monkeypatch.setenv(KEYS, str(keys))
    before = keys.read_bytes() if keys.is_file() else None
    for use in (
        lambda: check_manifest(manifest, root),
        lambda: build(root, keys, tmp_path / "shared" / "n.json"),
    ):
        with pytest.raises(MonaiFP4Error, match=words) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "shared" / "n.json").exists()
    assert before is None or keys.read_bytes() == before, "nothing is written over"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "set it to the file that 'manifest build --pseudonyms' wrote"),
        ("", "set it to the file that 'manifest build --pseudonyms' wrote"),
        ("keys.json", "expected an absolute path in MONAI_FP4_KEYS"),
        ("/nowhere/keys.json", "cannot be read"),
        ("another's", "found another in"),
    ],
)
def test_training_says_which_key_file_it_wants(
    given: str | None, words: str, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_nifti(tmp_path / "scans", NAMES)
    manifest = build(root, keys, tmp_path / "shared" / "m.json")
    other = tmp_path / "other" / "keys.json"
    build(root, other, tmp_path / "shared" / "n.json")
    monkeypatch.delenv(KEYS, raising=False)
    if given is not None:
        monkeypatch.setenv(KEYS, str(other) if given == "another's" else given)
    with pytest.raises(DataError, match=words):
        load_datalist(manifest, root)


def test_another_key_file_of_the_same_date_is_another(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_nifti(tmp_path / "scans", NAMES)
    manifest = build(root, keys, tmp_path / "shared" / "m.json")
    other = tmp_path / "other" / "keys.json"
    build(root, other, tmp_path / "shared" / "n.json")
    monkeypatch.setenv(KEYS, str(keys))
    os.utime(keys, (0, 0))
    load_datalist(manifest, root)
    keys.write_bytes(other.read_bytes())
    os.utime(keys, (0, 0))  # in 1970, as on a machine without a clock
    with pytest.raises(DataError, match="found another"):
        load_datalist(manifest, root)


def test_a_patient_that_the_key_file_does_not_know_is_named_by_pseudonym(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_nifti(tmp_path / "scans", NAMES)
    manifest = build(root, keys, tmp_path / "shared" / "m.json")
    change(keys, lambda document: document.update(files={}))
    monkeypatch.setenv(KEYS, str(keys))
    with pytest.raises(DataError, match=rf"files of patient '{manifest.patients[0].id}' in the key file"):
        load_datalist(manifest, root)


def test_two_patients_with_one_pseudonym_are_refused(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_nifti(tmp_path / "scans", NAMES)
    monkeypatch.setattr(KeyFile, "_token", lambda self, kind, text: "0" * 12)
    with pytest.raises(DataError, match="two share one"):
        build(root, keys, tmp_path / "shared" / "m.json")
    assert not keys.exists() and not (tmp_path / "shared" / "m.json").exists()


def test_two_builds_at_once_lose_no_name(tmp_path: Path, keys: Path) -> None:
    """Each has read the key file before the other wrote it."""
    manifests = [build_manifest(write_nifti(tmp_path / f"s{n}", NAMES[3 * n :][:3]), folds=2) for n in (0, 1)]
    KeyFile(keys, bytes(32)).save()
    both = [open_keys(keys, tmp_path / "shared" / "m.json") for _ in manifests]
    for opened, manifest in zip(both, manifests, strict=True):
        hide(manifest, opened)[1].save()
    assert sorted(content(keys)["patients"].values()) == NAMES
    stranger = KeyFile(keys, bytes(range(32)))
    with pytest.raises(DataError, match="another build wrote it meanwhile"):
        stranger.save()


def test_builds_that_write_at_the_same_moment_lose_nothing(tmp_path: Path, keys: Path) -> None:
    KeyFile(keys, bytes(32)).save()
    manifest, wrong = build_manifest(write_nifti(tmp_path / "s", NAMES), folds=2), []

    def add(number: int) -> None:
        few = replace(manifest, patients=manifest.patients[number : number + 1])
        hidden = hide(few, KeyFile(keys, bytes(32)))[1]
        while True:
            try:
                hidden.save()
                return
            except ConfigError as error:  # one at a time
                if "one build" not in str(error):
                    wrong.append(error)
                    return

    threads = [threading.Thread(target=add, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and sorted(content(keys)["patients"].values()) == NAMES
