"""DICOM on its way to studies: when an examination is whole, which modality it is of, and headers that lack a lot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import small_dicom
from predicting import predict, read_json
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid
from tiny_runs import Dataset, refusal, train

from monai_fp4.data import build_manifest, save_manifest
from monai_fp4.data.records import Reading
from monai_fp4.data.scans import read_image
from monai_fp4.errors import DataError
from monai_fp4.inference import Ensemble, Studies

SHAPE = (20, 26, 5)


def series(seed: int = 0, **tags: Any) -> list[pydicom.Dataset]:
    options = {name: tags.pop(name) for name in ("description", "patient", "study") if name in tags}
    found = small_dicom.slices(seed, shape=SHAPE, **options)
    for data in found:
        for name, value in tags.items():
            setattr(data, name, value)
    return found


def mr(seed: int = 0, **tags: Any) -> list[pydicom.Dataset]:
    return series(seed, Modality="MR", **tags)


def test_the_first_study_is_there_before_the_last_file_is_opened(tmp_path: Path) -> None:
    """An examination is given when the next folder with DICOM holds nothing of it; so are volumes beside it."""
    for number in range(4):
        small_dicom.save(series(number, patient=f"p{number}"), tmp_path / f"p{number}" / "series")
    (tmp_path / "p3" / "series" / "IM0000.dcm").unlink()
    opened = []
    studies = iter(found := Studies(tmp_path, ["flair"]))
    for study in studies:
        opened.append((study.place, found.passed))
    assert opened == [("p0/series", 5), ("p1/series", 10), ("p2/series", 15), ("p3/series", 19)]
    assert found.files == 19


def test_a_series_that_is_spread_over_folders_is_one_study(tmp_path: Path) -> None:
    """Also where an export opens a new folder every few files."""
    data = series()
    small_dicom.save(data[:3], tmp_path / "DIR000")
    small_dicom.save(data[3:], tmp_path / "DIR001")
    (study,) = Studies(tmp_path, ["flair"])
    assert study.slices == ((f"{tmp_path}#{data[0].SeriesInstanceUID}",),) and not study.problem


def test_a_late_part_of_a_series_is_no_study_of_its_own(tmp_path: Path) -> None:
    data = series()
    small_dicom.save(data[:3], tmp_path / "a")
    small_dicom.save(series(1, patient="q"), tmp_path / "b")
    small_dicom.save(data[3:], tmp_path / "c")
    first, second, late = Studies(tmp_path, ["flair"])
    assert not first.problem and not second.problem and "side by side" in late.problem


def test_one_uid_in_two_patients_makes_two_studies(tmp_path: Path) -> None:
    """As where names were exchanged and UIDs were not."""
    first, second = series(0, patient="p0"), series(1, patient="p1")
    for each in second:
        each.SeriesInstanceUID = first[0].SeriesInstanceUID
    small_dicom.save(first, tmp_path / "p0")
    small_dicom.save(second, tmp_path / "p1")
    assert [(study.place, study.problem) for study in Studies(tmp_path, ["flair"])] == [("p0", ""), ("p1", "")]


@pytest.mark.parametrize(
    ("modalities", "found"),
    [
        ([], ["one", "two"]),
        ([frozenset({"MR"})], ["one"]),
        ([frozenset({"CT", "MR"})], ["one", "two"]),
        ([frozenset({"PT"})], ["found CT, MR; use a model for it"]),
    ],
)
def test_series_of_another_modality(modalities: list[frozenset[str]], found: list[str], tmp_path: Path) -> None:
    """Passed over beside one that fits; refused where none does."""
    study = generate_uid()
    small_dicom.save(mr(0, study=study, description="ax"), tmp_path / "one")
    small_dicom.save(series(1, study=study, description="ax"), tmp_path / "two")
    studies = list(Studies(tmp_path, ["flair"], modalities=modalities))
    assert len(studies) == len(found)
    assert all(word in (study.problem or study.place) for study, word in zip(studies, found, strict=True))


def test_channels_of_two_modalities(tmp_path: Path) -> None:
    study = generate_uid()
    for name, kind in (("ct", "CT"), ("pet", "PT")):
        small_dicom.save(series(0, study=study, description=f"body {name}", Modality=kind), tmp_path / name)
    right = [frozenset({"CT"}), frozenset({"PT"})]
    (found,) = Studies(tmp_path, ["ct", "pet"], modalities=right)
    assert [Path(path).name.partition("#")[0] for path in found.slices[0]] == ["ct", "pet"]
    (refused,) = Studies(tmp_path, ["ct", "pet"], modalities=right[::-1])
    assert "series called 'ct', found 0" in refused.problem


def test_files_from_before_there_was_a_preamble(volume_run: Path, tmp_path: Path) -> None:
    data = series()
    (tmp_path / "in").mkdir()
    for number, each in enumerate(data):
        pydicom.Dataset(each).save_as(
            tmp_path / "in" / f"{number}.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False
        )
    out = predict(volume_run, tmp_path / "in", tmp_path / "out", threshold=0.0, modality="CT")
    (path,) = out.glob("*/mask.dcm")
    assert highdicom.seg.segread(path).pixel_array.all()


def test_each_header_is_read_a_few_times_however_many_series_lie_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        small_dicom.save(series(number, patient=f"p{number}"), tmp_path / "in", f"S{number}_")
    read, real = [], pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda path, *a, **o: read.append(path) or real(path, *a, **o))
    for study in Studies(tmp_path / "in", ["flair"]):
        read_image(study.slices, Reading())
    # Once to find studies, once to find the series, once for its voxels, and one more for the first file of each.
    assert len(read) <= 3 * 30 + 6


def test_screenshots_beside_a_series_are_passed_over(tmp_path: Path) -> None:
    study = generate_uid()
    small_dicom.save(series(0, study=study), tmp_path / "one")
    small_dicom.save(series(1, study=study, SOPClassUID=SecondaryCaptureImageStorage)[:1], tmp_path / "dose")
    small_dicom.save(series(2, study=study, SeriesDescription="t1"), tmp_path / "other")
    studies = Studies(tmp_path, ["flair"])
    (found,) = studies
    assert found.place == "one" and studies.others == 2


def test_a_slice_whose_header_is_cut_short_is_not_passed_over(tmp_path: Path) -> None:
    data = series()
    del data[4].Rows
    small_dicom.save(data, tmp_path / "one")
    (study,) = Studies(tmp_path, ["flair"])
    assert "expected pixels" in str(refused_by_reader(study.slices[0][0]))


def refused_by_reader(path: str) -> Exception:
    with pytest.raises(DataError) as caught:
        read_image([[path]], Reading())
    return caught.value


@pytest.fixture(scope="module")
def mr_run(volume_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as if its training scans had been MR."""
    folder = tmp_path_factory.mktemp("mr") / "run"
    shutil.copytree(volume_run, folder)
    known = read_json(folder / "training_data.json")
    assert known["modalities"] == [[]] and known["slices"] == [12, 12]
    (folder / "training_data.json").write_text(json.dumps(known | {"modalities": [["MR"]]}))
    return folder


def test_a_ct_given_to_a_model_of_mr_is_refused_unless_the_user_says_otherwise(
    mr_run: Path, volume_run: Path, tmp_path: Path
) -> None:
    small_dicom.save(series(), tmp_path / "ct")
    small_dicom.save(mr(), tmp_path / "mr")
    with pytest.raises(SystemExit):
        predict(mr_run, tmp_path / "ct", tmp_path / "refused")
    (row,) = read_json(tmp_path / "refused" / "summary.json")["studies"]
    assert "modality MR" in row["why"] and "found CT" in row["why"]
    for number, (run, source, options, words) in enumerate(
        [
            (mr_run, "mr", {}, ""),
            (mr_run, "ct", {"modality": "CT"}, ""),
            (mr_run, "ct", {"modality": "[ct]"}, ""),
            (volume_run, "ct", {}, "(CT) was not compared"),
            (volume_run, "ct", {"modality": "CT"}, ""),
        ]
    ):
        out = predict(run, tmp_path / source, tmp_path / f"out_{number}", **options)
        (report,) = out.glob("*/report.json")
        said = [warning for warning in read_json(report)["warnings"] if "modality" in warning]
        assert bool(said) == bool(words) and words in "".join(said)


@pytest.mark.parametrize("modality", ["", "[]", "[CT,MR]", 3, [1]])
def test_wrong_modalities(modality: Any, volume_run: Path, tmp_path: Path) -> None:
    small_dicom.save(series(), tmp_path / "ct")
    error = refusal(lambda: predict(volume_run, tmp_path / "ct", tmp_path / "out", modality=modality))
    assert "modality must be" in str(error) and not (tmp_path / "out").exists()


def test_a_run_on_dicom_remembers_what_it_was_trained_on(tmp_path: Path) -> None:
    shape = (20, 26, 9)
    for number in range(4):
        data = small_dicom.slices(number, shape=shape, patient=f"p{number}")
        for each in data:
            each.Modality = "MR"
        small_dicom.save(data, tmp_path / "scans" / f"p{number}")
        small_dicom.segmentation(data, small_dicom.lesion(number, shape)).save_as(
            tmp_path / "scans" / f"p{number}" / "seg.dcm"
        )
    manifest = build_manifest(tmp_path / "scans", format="dicom", folds=2, seed=0, name="dicom", channels=["flair"])
    dataset = Dataset(tmp_path / "scans", save_manifest(manifest, tmp_path / "manifest.json"))
    run = train(dataset, tmp_path / "run", epochs=1)
    assert read_json(run / "training_data.json")["modalities"] == [["MR"]]
    assert Ensemble(str(run), device="cpu").modalities == [frozenset({"MR"})]


LOST = {
    "no patient": dict.fromkeys(
        ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
         "StudyTime", "ReferringPhysicianName", "Modality", "SliceThickness", "SeriesNumber")
    ),
    "values that are none": {"PatientSex": "U", "PatientBirthDate": "00000000", "StudyDate": "2020-01-01",
                             "StudyTime": "12:00:00", "SliceThickness": ""},
    "another alphabet": {"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
                         "SpecificCharacterSet": ["", "ISO 2022 IR 87"]},
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_segmentation_of_a_series_whose_headers_lost_something(what: str, volume_run: Path, tmp_path: Path) -> None:
    data = series()
    for each in data:
        for name, value in LOST[what].items():
            if value is None:
                delattr(each, name)
            else:
                setattr(each, name, value)
    small_dicom.save(data, tmp_path / "in")
    out = predict(volume_run, tmp_path / "in", tmp_path / "out", threshold=0.0, modality="CT")
    (path,) = out.glob("*/mask.dcm")
    mask = highdicom.seg.segread(path)
    assert mask.pixel_array.all() and mask.number_of_frames == SHAPE[2]
    sources = [group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
               for group in mask.PerFrameFunctionalGroupsSequence]  # fmt: skip
    assert sorted(sources) == sorted(each.SOPInstanceUID for each in data)
    assert float(mask.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness) == 2.5
    assert str(mask.get("PatientName", "")) == (LOST[what].get("PatientName") or "")


@pytest.mark.parametrize("shared", [True, False])
def test_frames_of_an_enhanced_object_in_any_order(shared: bool, volume_run: Path, tmp_path: Path) -> None:
    """Also where each frame says itself how large its pixels are and how it is turned, as some scanners write it."""
    order = [3, 0, 4, 1, 2]
    small_dicom.save([enhanced(series(), order, shared=shared)], tmp_path / "in")
    out = predict(volume_run, tmp_path / "in", tmp_path / "out", threshold=0.4, probabilities=True, modality="MR")
    (path,) = out.glob("*/mask.dcm")
    classic = small_dicom.save(series(), tmp_path / "classic")
    (other,) = predict(volume_run, classic, tmp_path / "other", threshold=0.4, modality="CT").glob("*/mask.dcm")
    volumes = [highdicom.seg.segread(each).get_volume(combine_segments=True) for each in (path, other)]
    assert volumes[0].array.any() and np.array_equal(volumes[0].array, volumes[1].array)
    assert np.array_equal(volumes[0].affine, volumes[1].affine)


def test_each_of_several_enhanced_objects_of_a_volume_gets_its_segmentation(volume_run: Path, tmp_path: Path) -> None:
    data = series()
    both = [enhanced(data[3:], [1, 0]), enhanced(data[:3], [2, 0, 1])]
    small_dicom.save(both, tmp_path / "in")
    out = predict(volume_run, tmp_path / "in", tmp_path / "out", threshold=0.4, modality="MR")
    classic = small_dicom.save(series(), tmp_path / "classic")
    (other,) = predict(volume_run, classic, tmp_path / "other", threshold=0.4, modality="CT").glob("*/mask.dcm")
    found = [highdicom.seg.segread(path) for path in sorted(out.glob("*/mask_*.dcm"))]
    assert len({mask.SeriesInstanceUID for mask in found}) == 1 and [mask.InstanceNumber for mask in found] == [1, 2]
    assert [str(mask.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID)
            for mask in found] == [both[1].SOPInstanceUID, both[0].SOPInstanceUID]  # fmt: skip
    volumes = [mask.get_volume(combine_segments=True) for mask in (*found, highdicom.seg.segread(other))]
    whole = volumes.pop()
    assert whole.array.any() and sum(len(each.array) for each in volumes) == len(whole.array)
    for each in volumes:
        start = int(np.rint((np.linalg.inv(whole.affine) @ each.affine[:, 3])[0]))
        assert np.array_equal(whole.array[start : start + len(each.array)], each.array)


def enhanced(data: list[pydicom.Dataset], order: list[int], *, shared: bool = True) -> pydicom.Dataset:
    """The slices as one enhanced MR object, its frames in the given order."""
    whole = pydicom.Dataset()
    whole.update({element.tag: element for element in data[0]})
    whole.file_meta = data[0].file_meta
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    whole.SOPInstanceUID = whole.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    whole.Modality, whole.NumberOfFrames = "MR", len(order)
    whole.ContentDate, whole.ContentTime = "20200101", "120000"
    whole.PixelData = b"".join(data[number].PixelData for number in order)
    measures, orientation, values = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = data[0].PixelSpacing, data[0].SliceThickness
    orientation.ImageOrientationPatient = data[0].ImageOrientationPatient
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, -1000, "US"
    common = {"PixelMeasuresSequence": [measures], "PlaneOrientationSequence": [orientation]}
    whole.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    whole.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [values]
    frames = []
    for number in order:
        frame, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = data[number].ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    for name, sequence in common.items():
        for group in whole.SharedFunctionalGroupsSequence if shared else frames:
            setattr(group, name, sequence)
    whole.PerFrameFunctionalGroupsSequence = frames
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
                 "RescaleIntercept"):  # fmt: skip
        delattr(whole, name)
    return whole
