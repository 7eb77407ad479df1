"""Names of patients are in nothing that a run, an evaluation or a message writes: planted ones are searched for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import pytest
import small_dicom
import torch
from predicting import predict
from tiny_runs import Dataset, evaluation, train

from monai_fp4.data import build_manifest, save_manifest
from monai_fp4.errors import DataError
from monai_fp4.inference import Redactor, SavePredictions, Studies, Study, evaluated

PLANTED = {
    "PatientName": "Planted^Jane", "PatientID": "QX4711", "PatientBirthDate": "19630417", "AccessionNumber": "ACC0815",
    "StudyDate": "20190203", "ReferringPhysicianName": "Doktor^Heimlich", "StudyID": "SID3344",
    "InstitutionName": "Geheimklinik", "StudyDescription": "Skull Wichtigmann",
}  # fmt: skip


def write(root: Path, key: str, number: int) -> None:
    shape = (20, 26, 9)
    data = small_dicom.slices(number, shape=shape)
    for each in data:
        for name, value in PLANTED.items():
            setattr(each, name, value)
        each.PatientID += str(number)
    small_dicom.save(data, root / key, "Planted")
    small_dicom.segmentation(data, small_dicom.lesion(number, shape)).save_as(root / key / "seg.dcm")


def test_what_headers_and_files_say_is_in_nothing_that_a_run_and_an_evaluation_write(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The patient's key is the folder that the user named; files within it are called after the patient."""
    for number in range(4):
        write(tmp_path / "scans", f"key{number}", number)
    manifest = build_manifest(tmp_path / "scans", format="dicom", folds=2, seed=0, name="dicom", channels=["flair"])
    data = Dataset(tmp_path / "scans", save_manifest(manifest, tmp_path / "manifest.json"))
    run = train(data, tmp_path / "run", epochs=1)
    flow = evaluation(run, data, tmp_path / "evaluation", split="val", predictions=True)
    flow.initialize()
    flow.run()
    shown = capfd.readouterr()
    words = [part for value in PLANTED.values() for part in value.replace("^", " ").split()] + ["Planted"]
    words.remove("Skull")
    texts = {"what was printed": shown.out + shown.err}
    for folder in (run, tmp_path / "evaluation"):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".dcm":
                texts[path.name] = path.name + path.read_bytes().decode("latin-1")
    texts["manifest"] = (tmp_path / "manifest.json").read_text()
    assert len(texts) > 8
    assert [(word, name) for word in words for name, text in texts.items() if word in text] == []
    (mask,) = list((tmp_path / "evaluation" / "predictions").glob("*/mask.dcm"))[:1]
    assert pydicom.dcmread(mask).PatientID.startswith("QX4711")  # a segmentation belongs to its examination


@pytest.mark.parametrize("gone", [True, False], ids=["a scan that is gone", "a mask that cannot be written"])
def test_an_evaluation_that_cannot_write_a_mask_says_no_path(
    gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = tmp_path / "Planted_Jane.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 3), np.float32), np.eye(4)), scan)
    saver = SavePredictions(tmp_path, [{"patient": "p1", "images": [{"image": str(scan), "mask": str(scan)}]}], 0.5)
    if gone:
        scan.unlink()
    monkeypatch.setattr(evaluated, "write_mask", fail)
    engine = SimpleNamespace(state=SimpleNamespace(output=[{"patient": "p1", "pred": torch.ones(1, 8, 8, 3)}]))
    with pytest.raises(DataError) as caught:
        saver._write(engine)  # type: ignore[arg-type]
    assert "Planted" not in str(caught.value) and str(tmp_path) not in str(caught.value) and "'p1'" in str(caught.value)


def fail(*_: object) -> None:
    raise DataError(
        "expected a series that a DICOM-SEG can refer to in /scans/Planted_Jane.nii, found none; correct it"
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("in /data/Doe_Jane/CT/IM1.dcm, found", "in (hidden), found"),
        ("between IM1.dcm and IM2.dcm", "between (hidden) and (hidden)"),
        ("PatientID 'QX 7' of DOE", "PatientID '(hidden)' of (hidden)"),
        ("two\nlines of Jane", "two lines of (hidden)"),
        ("a doerak, imported", "a doerak, imported"),
    ],
)
def test_a_message_without_names(message: str, expected: str) -> None:
    study = Study("Doe_Jane/CT", (("/data/Doe_Jane/CT#1.2.3",),), personal=("Doe^Jane", "QX 7", "IM1.dcm", "IM2.dcm"))
    assert Redactor(Path("/data"), study)(message) == expected


def test_headers_hide_names_and_leave_sentences_whole(tmp_path: Path) -> None:
    """A name is hidden in all of its parts, one of a letter where it is written so, and a number of a digit never."""
    data = small_dicom.slices(0)
    for each in data:
        each.PatientName, each.PatientID, each.StudyDescription = "Planted^Jane^A", "7", "image of a series"
        each.OperatorsName = "Nurse^Ann"
    small_dicom.save(data, tmp_path / "in" / "x y")
    (study,) = Studies(tmp_path / "in", ["flair"])
    assert {"Planted^Jane^A", "Planted", "Jane", "Ann"} <= set(study.personal)
    redact = Redactor(tmp_path / "in", study)
    assert redact("a series of 7 by Jane A, found Ann") == "a series of 7 by (hidden) (hidden), found (hidden)"
    assert redact("the image of a series") == "the (hidden)"


def test_files_of_a_series_that_have_blanks_in_their_names(tmp_path: Path) -> None:
    folder = small_dicom.save(small_dicom.slices(0), tmp_path / "in" / "x y", "Nobody Knows ")
    (study,) = Studies(tmp_path / "in", ["flair"])
    redact = Redactor(tmp_path / "in", study)
    assert redact(f"pixels in {folder}/Nobody Knows 0001.dcm, found none") == "pixels in (hidden), found none"
    assert redact("between Nobody Knows 0001.dcm and it") == "between (hidden) and it"


def test_what_libraries_quote_of_a_file_is_hidden(
    volume_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The type of an NRRD header is any text, and pydicom logs a traceback of frames that it cannot decode."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "flair.nrrd").write_bytes(b"NRRD0004\ntype: Planted\ndimension: 3\nsizes: 2 2 2\n\n")
    data = small_dicom.slices(0)
    for each in data:
        each.PatientName, each.PatientID = "Planted^Jane", "QX4711"
        each.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        each.PixelData = pydicom.encaps.encapsulate([b"Planted, not a picture"])
        each["PixelData"].is_undefined_length = True
    small_dicom.save(data, tmp_path / "in" / "series")
    with pytest.raises(SystemExit):
        predict(volume_run, tmp_path / "in", tmp_path / "out")
    shown = capfd.readouterr()
    said = shown.out + shown.err + (tmp_path / "out" / "summary.json").read_text()
    assert said.count("damaged") >= 4 and "Planted" not in said and "Traceback" not in said


def test_the_whole_input_as_a_study_hides_no_word() -> None:
    assert Redactor(Path("in"), Study("study", (("in#1.2",),)))("expected a study") == "expected a study"


def test_an_input_that_is_called_like_a_word_leaves_words_whole() -> None:
    redact = Redactor(Path("in"), Study("Jane/x", (("in/Jane/x.nii",),)))
    assert redact("found in in/Jane/x.nii nothing; fetch it again") == "found in (hidden) nothing; fetch it again"
    assert Redactor(Path("scan"), Study("a", (("scan/a.nii",),)))("rescanned scans") == "rescanned scans"
