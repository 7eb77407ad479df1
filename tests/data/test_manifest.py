"""Manifests: the schema, writing and reading, the shipped ones, and every way in which one can contradict itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from small_data import write_nifti
from synthetic_manifests import manifest, patient

from monai_fp4.data import (
    assign_folds,
    build_manifest,
    load_datalist,
    load_manifest,
    save_manifest,
    select_patients,
    shipped_manifests,
)
from monai_fp4.data.manifest import from_json, manifest_dir, to_json
from monai_fp4.data.records import Manifest, Split
from monai_fp4.errors import DataError


@pytest.fixture
def good() -> Manifest:
    train = assign_folds([patient(number, "AB"[number % 2], 10 + number) for number in range(6)], 3, 0)
    return manifest((*train, patient(9, volume=None, split=Split.TEST)), 3)


@pytest.fixture
def document(good: Manifest) -> dict:
    return json.loads(to_json(good))


def load(document: dict, folder: Path) -> Manifest:
    path = folder / "m.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load_manifest(path)


def test_schema_is_a_schema():
    Draft202012Validator.check_schema(json.loads((manifest_dir() / "manifest.schema.json").read_text(encoding="utf-8")))


def test_what_is_written_is_read_back(good, tmp_path):
    assert load_manifest(save_manifest(good, tmp_path / "m.json")) == good
    assert load_manifest(str(tmp_path / "m.json")) == good
    assert load_manifest(good) is good


def test_an_image_takes_one_line(good):
    assert sum('"mask_sha256"' in line for line in to_json(good).splitlines()) == 7


def test_an_existing_file_is_kept_unless_forced(good, tmp_path):
    path = tmp_path / "m.json"
    path.write_text("mine")
    with pytest.raises(DataError, match=r"--force"):
        save_manifest(good, path)
    assert path.read_text() == "mine"
    assert load_manifest(save_manifest(good, path, force=True)) == good
    assert [each.name for each in tmp_path.iterdir()] == ["m.json"]


def test_a_failed_write_leaves_the_old_file(good, tmp_path, monkeypatch):
    path = save_manifest(good, tmp_path / "m.json")
    before = path.read_text()
    monkeypatch.setattr("monai_fp4.data.manifest.to_json", lambda manifest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_manifest(good, path, force=True)
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["m.json"]


def test_output_in_a_folder_that_is_not_there(good, tmp_path):
    with pytest.raises(DataError, match=r"create it first"):
        save_manifest(good, tmp_path / "no" / "m.json")


@pytest.mark.parametrize("name", ["phantom", "nodules", "lgg"])
def test_shipped_manifests_are_found_from_anywhere_and_written_as_we_write(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert name in shipped_manifests()
    shipped = load_manifest(name)
    assert shipped.folds == 5
    assert to_json(shipped) == (manifest_dir() / f"{name}.json").read_text(encoding="utf-8")


def test_lgg_is_the_whole_published_set():
    lgg = load_manifest("lgg")
    groups = [each.group for each in lgg.patients]
    assert len(lgg.patients) == 110
    assert {group: groups.count(group) for group in sorted(set(groups))} == {
        "CS": 16,
        "DU": 45,
        "EZ": 1,
        "FG": 14,
        "HT": 34,
    }
    assert sum(len(each.images) for each in lgg.patients) == 3929
    assert sum(each.tumour_slices for each in lgg.patients) == 1373
    test = select_patients(lgg, 0, "test")
    assert len(test) == 22
    assert {each.tumour_voxels for each in test} == {None}
    sizes = [len(select_patients(lgg, fold, "val")) for fold in range(5)]
    assert sorted(sizes) == [17, 17, 18, 18, 18]


def test_unknown_names_come_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"nearest names are 'phantom'"):
        load_manifest("fantom")
    with pytest.raises(DataError, match=r"no such file.*lgg, lgg_paper, nodules, phantom"):
        load_manifest("elsewhere/m.json")


@pytest.mark.parametrize("text", ["{", "", "\x00"])
def test_not_json(text, tmp_path):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match=r"m\.json.*build it again"):
        load_manifest(tmp_path / "m.json")


def edit(document: dict, path: str, value: object) -> None:
    *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in parents:
        document = document[step]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("patients", [], r"at patients: \[\] should be non-empty"),
        ("patients.1.split", "tset", r"at patients\[1\]\.split: 'tset' is not one of"),
        ("patients.0.images", [], r"patients\[0\]\.images"),
        ("patients.0.images.0.sha256", "12ab", r"patients\[0\]\.images\[0\]\.sha256: '12ab' does not match"),
        ("patients.0.images.0.image", "/etc/passwd", r"images\[0\]\.image"),
        ("patients.0.images.0.mask", "a/../../b.tif", r"images\[0\]\.mask"),
        ("patients.2.fold", "0", r"patients\[2\]\.fold"),
        ("format", "petri", "data format 'petri' is not known; .* build the manifest again"),
        ("extra", 1, "'extra' was unexpected"),
        ("schema_version", 2, "expected schema_version 1"),
    ],
)
def test_fields_against_the_schema(document, path, value, message, tmp_path):
    edit(document, path, value)
    with pytest.raises(DataError, match=message):
        load(document, tmp_path)


def test_not_an_object(tmp_path):
    with pytest.raises(DataError, match=r"the whole file"):
        from_json([], source="m.json")


def test_a_patient_in_two_folds(document, tmp_path):
    twin = json.loads(json.dumps(document["patients"][0])) | {"fold": 2}
    document["patients"][0]["fold"] = 1
    document["patients"].append(twin)
    with pytest.raises(DataError, match=r"'p0' 2 times.*fold 1, fold 2"):
        load(document, tmp_path)


def test_a_file_of_two_patients(document, tmp_path):
    document["patients"][1]["images"][0]["image"] = document["patients"][0]["images"][0]["image"]
    with pytest.raises(DataError, match=r"p0/p0_1\.tif in 'p0'.*and 'p1'"):
        load(document, tmp_path)


def test_a_patient_under_two_names(document, tmp_path):
    document["patients"][1]["images"][0]["sha256"] = document["patients"][0]["images"][0]["sha256"]
    with pytest.raises(DataError, match=r"1 images of 'p0' .* again under 'p1'"):
        load(document, tmp_path)


def test_a_blank_slice_that_two_patients_share_is_no_copy(good):
    extra = replace(good.patients[0].images[0], sha256="e" * 64)

    def longer(each):
        return replace(
            each, images=(*each.images, replace(extra, image=f"{each.id}/{each.id}_2.tif", mask=f"{each.id}/m"))
        )

    patients = tuple(longer(each) for each in good.patients)
    text = to_json(replace(good, patients=patients))
    assert len(from_json(json.loads(text), "m.json").patients) == 7
    from monai_fp4.data.checks import check_patients

    check_patients(replace(good, patients=patients), "m.json")


def test_a_fold_without_tumour(document, tmp_path):
    for each in document["patients"]:
        if each["fold"] == 1:
            each["tumour_voxels"] = 0
    with pytest.raises(DataError, match=r"none in its 2 patients in fold 1"):
        load(document, tmp_path)


def test_a_fold_without_patients(document, tmp_path):
    document["folds"] = 4
    with pytest.raises(DataError, match=r"no patient at all in fold 3"):
        load(document, tmp_path)


@pytest.mark.parametrize(
    ("number", "field", "value", "message"),
    [
        (6, "fold", 1, "no fold in the test split, found fold 1 for patient 'p9'"),
        (0, "fold", None, "a fold of 0 to 2, found None for patient 'p0'"),
        (0, "fold", 3, "below 3, found 3 for patient 'p0'"),
    ],
)
def test_folds_that_do_not_fit(document, number, field, value, message, tmp_path):
    document["patients"][number][field] = value
    with pytest.raises(DataError, match=message):
        load(document, tmp_path)


@pytest.mark.parametrize(("number", "found"), [("3", "3"), ("2" * 5000, "None")])
def test_a_slice_gap(document, tmp_path, number, found):
    images = document["patients"][0]["images"]
    images.append(images[0] | {"image": f"p0/p0_{number}.tif", "mask": "p0/p0_3_mask.tif"})
    with pytest.raises(DataError, match=rf"without a gap, found {found} after 1"):
        load(document, tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "../x.nii",
        "a/../../x.nii",
        "/etc/passwd",
        "a\n/../x",
        "..",
        "a\\..\\x",
        "a\n",
        "a\x1b[2J.nii",
        "a\u202eb",
        "a\u2028b",
    ],
)
@pytest.mark.parametrize("field", ["image", "mask"])
def test_a_path_stays_in_the_data_folder(document, tmp_path, path, field):
    document["patients"][0]["images"][0][field] = path
    with pytest.raises(DataError, match=r"stay in the data folder|follow manifest.schema.json") as refused:
        load(document, tmp_path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "name", ["\x1b]0;x\x07", "a\nb", "$__import__('os')", "a$b$", "@seed", "%a.json::b", "a\u202eb", "\x9b2J"]
)
@pytest.mark.parametrize("field", ["id", "group", "person", "name", "channels"])
def test_names_that_a_terminal_a_figure_or_a_config_would_obey(document, tmp_path, name, field):
    if field in document:
        document[field] = [name] if field == "channels" else name
    else:
        document["patients"][0][field] = name
    with pytest.raises(DataError, match=r"printable text") as refused:
        load(document, tmp_path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "name", ["../../.ssh", "..", "/etc/cron.d", "a/../../b", "a\\..\\b", "\\\\host\\share", "C:/x", "c:x", "/"]
)
def test_an_id_leads_nowhere_as_a_folder_of_results(document, tmp_path, name):
    """Masks of an evaluation are written into predictions/<id>."""
    document["patients"][0]["id"] = name
    with pytest.raises(DataError, match=r"folders below the results") as refused:
        load(document, tmp_path)
    assert str(refused.value).isprintable()
    document["patients"][0]["id"] = "sub-1/ses-2..b"
    load(document, tmp_path)


def test_names_of_all_languages_are_names(document, tmp_path):
    document["patients"][0]["id"] = "Łukasz 李\u3000Ünal-Ó\u00a0n@home 5%"
    assert any("Łukasz" in each.id for each in load(document, tmp_path).patients)


@pytest.mark.parametrize("field", ["folds", "seed"])
def test_a_number_with_a_point_is_no_integer(document, tmp_path, field):
    with pytest.raises(DataError, match=field):
        load(document | {field: 3.0}, tmp_path)


def test_links_lead_out_of_the_data_folder_only_if_allowed(tmp_path, monkeypatch):
    archive = write_nifti(tmp_path / "archive", ["anna", "bert"])
    root = tmp_path / "data"
    root.mkdir()
    (root / "anna").symlink_to(archive / "anna")
    (root / "bert").symlink_to(archive / "bert")
    found = build_manifest(root, folds=2)
    with pytest.raises(DataError, match="MONAI_FP4_FOLLOW_LINKS=1"):
        load_datalist(found, root, "all")
    monkeypatch.setenv("MONAI_FP4_FOLLOW_LINKS", "1")
    assert len(load_datalist(found, root, "all")) == 2
    monkeypatch.delenv("MONAI_FP4_FOLLOW_LINKS")
    (tmp_path / "link").symlink_to(archive)  # a data folder may be a link, and links inside of it are its own
    (archive / "anna").rename(archive / "anne")
    (archive / "anna").symlink_to("anne")
    assert len(load_datalist(found, tmp_path / "link", "all")) == 2


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_fuzz(good, tmp_path, data):
    """Only our errors, of a manifest with one field replaced by anything, or some bytes of it."""
    document = json.loads(to_json(good))
    holder = data.draw(st.sampled_from([document, document["patients"][0], document["patients"][0]["images"][0]]))
    holder[data.draw(st.sampled_from([*sorted(holder), "reading"]))] = data.draw(_JSON)
    content = bytearray(json.dumps(document).encode())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[place] = data.draw(st.integers(0, 255))
    (tmp_path / "m.json").write_bytes(content)
    try:
        load_manifest(tmp_path / "m.json")
    except DataError as refused:
        text = str(refused)
    else:
        text = ""
    assert len(text) < 1500
