"""All patients of a manifest: what is found, what is not, and that nobody is passed over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from survey_scans import scan, write_scans

from monai_fp4.data import HeldOut, Manifest, build_manifest, write_nodules, write_phantom
from monai_fp4.errors import DataError
from monai_fp4.report.survey import survey_manifest
from monai_fp4.report.survey.findings import findings


def sentences(manifest: Manifest | str, root: Path) -> str:
    return "\n".join(sentence for sentence, _ in findings(survey_manifest(manifest, root)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scans = {f"p{seed}": scan(seed) for seed in range(8)}
    scans["p5"] = scans["p2"][0] * 0.5 + 3, scans["p2"][1]  # p2 again, darker
    scans["p6"] = scans["p6"][0], scans["p6"][1][:, ::-1]
    scans["p7"] = scans["p7"][0], np.zeros_like(scans["p7"][1])
    return write_scans(tmp_path_factory.mktemp("scans"), scans)


def test_what_was_planted_is_found_and_nothing_else(folder: Path) -> None:
    folds = {f"p{seed}": {"fold": str(seed % 2)} for seed in range(8)}
    found = survey_manifest(build_manifest(folder, groups=folds), folder)
    (copy,) = found.copies
    assert [found.measured[n].patient.id for n in (copy.one, copy.other)] == ["p2", "p5"]
    assert found.divided(copy.one, copy.other)
    assert [found.measured[n].patient.id for n in found.placement.suspects] == ["p6"]
    assert [sentence for sentence, _ in findings(found)][:2] == [
        "1 pair of patients in different folds or splits seem to show the same",
        "the masks of 1 patient seem to lie beside the lesion",
    ]
    assert findings(found)[-1] == ("1 patient without a lesion", "masks")


def test_one_person_in_one_fold_is_no_leak(folder: Path) -> None:
    fields = {f"p{seed}": {"fold": str(seed % 2), "person": "anna" if seed in (2, 5) else ""} for seed in range(8)}
    fields["p5"]["fold"] = "0"
    assert "1 pair of patients in one fold seem" in sentences(build_manifest(folder, groups=fields), folder)


def test_a_named_split_divides_as_a_fold_does(folder: Path) -> None:
    manifest = build_manifest(folder, groups={f"p{seed}": {"fold": "0"} for seed in range(8)})
    manifest = replace(manifest, folds=1)
    found = survey_manifest(manifest, folder)
    assert not found.divided(found.copies[0].one, found.copies[0].other)
    split = replace(manifest, splits={"holdout": HeldOut(val=("p2",), test=("p1",))})
    found = survey_manifest(split, folder)
    assert found.divided(found.copies[0].one, found.copies[0].other)


@pytest.mark.parametrize(("name", "write"), [("phantom", write_phantom), ("nodules", write_nodules)])
def test_the_shipped_sets_hold_no_copies_and_no_misplaced_masks(name: str, write, tmp_path: Path) -> None:
    write(tmp_path / "data")
    found = survey_manifest(name, tmp_path / "data")
    assert found.copies == () and found.placement.suspects == {} and found.placement.common is None
    assert found.unreadable == {} and found.unusual == {}
    assert found.placement.usable == (name == "nodules")


def test_patients_that_cannot_be_read_are_named_without_their_paths(tmp_path: Path) -> None:
    root = write_scans(tmp_path / "Planted_Jane", {f"p{seed}": scan(seed) for seed in range(4)})
    manifest = build_manifest(root, folds=2)
    (root / "p0" / "image.nii.gz").write_bytes(b"not a volume")
    (root / "p2" / "mask.nii.gz").unlink()
    found = survey_manifest(manifest, root)
    assert list(found.unreadable) == ["p0", "p2"]
    assert [each.patient.id for each in found.measured] == ["p1", "p3"]
    assert "image 1 of patient 'p0', found that its SHA-256 differs" in found.unreadable["p0"]
    assert "expected a file at mask 1 of patient 'p2'" in found.unreadable["p2"]
    assert not any(word in reason for reason in found.unreadable.values() for word in ("Planted", ".nii", "/"))
    assert findings(found)[0] == ("2 patients could not be read or are not as the manifest says", "unreadable")


def test_nobody_can_be_read(tmp_path: Path) -> None:
    root = write_scans(tmp_path, {f"p{seed}": scan(seed) for seed in range(2)})
    manifest = build_manifest(root, folds=2)
    for path in root.rglob("image.nii.gz"):
        path.write_bytes(b"")
    found = survey_manifest(manifest, root)
    assert found.measured == () and len(found.unreadable) == 2 and found.doubts == [] and found.unusual == {}
    with pytest.raises(DataError, match="found none"):
        survey_manifest(manifest, tmp_path / "elsewhere")
