"""DICOM series in, DICOM-SEG out: read back by pydicom, highdicom and SimpleITK, and searched for names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
import small_dicom
from predicting import predict, read_json

from monai_fp4.data.readers.dicom_series import series_path
from monai_fp4.data.records import Reading
from monai_fp4.data.scans import read_image
from monai_fp4.inference import Ensemble

SHAPE = (20, 26, 7)
PLANTED = {
    "PatientName": "Planted^Jane", "PatientID": "QX4711", "PatientBirthDate": "19630417", "AccessionNumber": "ACC0815",
    "StudyDate": "20190203", "ReferringPhysicianName": "Doktor^Heimlich", "StudyID": "SID3344",
    "SeriesDescription": "flair Planted", "InstitutionName": "Geheimklinik",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(volume_run: Path) -> Ensemble:
    return Ensemble(str(volume_run), device="cpu")


def series(seed: int = 0, **options: Any) -> list[pydicom.Dataset]:
    found = small_dicom.slices(seed, shape=SHAPE, **options)
    for data in found:
        for name, value in PLANTED.items():
            setattr(data, name, value)
    return found


def expected(model: Ensemble, folder: Path, data: list[pydicom.Dataset]) -> tuple[np.ndarray, float]:
    """The probabilities by row, column and slice from the lowest up, and a threshold that calls some of them lesion."""
    scan = read_image([[series_path(str(folder), data[0].SeriesInstanceUID)]], Reading())
    (found,) = model([scan], maps=True)
    assert not isinstance(found, Exception) and found.probability is not None
    probability = found.probability
    threshold = float(np.quantile(probability, 0.8))
    return scan.to_file(probability), threshold


def frames_by_place(segmentation: Any) -> dict[tuple[float, ...], tuple[np.ndarray, str]]:
    """Pixels of each frame, and the instance that it was made from, by its position."""
    pixels = segmentation.pixel_array
    found = {}
    for number, group in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = tuple(round(float(v), 3) for v in group.PlanePositionSequence[0].ImagePositionPatient)
        found[place] = pixels[number] if pixels.ndim == 3 else pixels, source
    return found


OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)


@pytest.mark.parametrize("directions", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0), OBLIQUE])
def test_each_frame_lies_where_its_slice_does(
    directions: tuple[float, ...], model: Ensemble, volume_run: Path, tmp_path: Path
) -> None:
    data = series(directions=directions)
    folder = small_dicom.save(data, tmp_path / "in" / "series")
    probability, threshold = expected(model, folder, data)
    out = predict(volume_run, tmp_path / "in", tmp_path / "out", threshold=threshold, probabilities=True)
    (study,) = out.glob("study_*")
    assert {path.name for path in study.iterdir()} == {"mask.dcm", "probability.dcm", "preview.png", "report.json"}
    mask = highdicom.seg.segread(study / "mask.dcm")
    assert mask.SOPClassUID == pydicom.uid.SegmentationStorage
    assert (mask.StudyInstanceUID, mask.PatientID) == (data[0].StudyInstanceUID, "QX4711")
    assert mask.FrameOfReferenceUID == data[0].FrameOfReferenceUID
    frames = frames_by_place(mask)
    wanted = probability >= np.float32(threshold)
    assert wanted.any() and not wanted.all()
    for number, image in enumerate(data):  # `series` goes from the lowest slice up
        place = tuple(round(float(v), 3) for v in image.ImagePositionPatient)
        if wanted[..., number].any() or place in frames:
            pixels, source = frames[place]
            assert np.array_equal(pixels, wanted[..., number]) and source == image.SOPInstanceUID
    # highdicom's own idea of where the voxels lie, and ITK's.
    volume = mask.get_volume(combine_segments=True, allow_missing_positions=True)
    corner = volume.affine @ np.array([0, 0, 0, 1])
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    itk = reader.Execute()
    index = itk.TransformPhysicalPointToContinuousIndex(corner[:3].tolist())
    assert np.abs(np.array(index) - np.round(index)).max() * max(itk.GetSpacing()) < 1e-3
    assert volume.array.sum() == wanted.sum()
    itk_mask = SimpleITK.ReadImage(str(study / "mask.dcm"))
    assert SimpleITK.GetArrayFromImage(itk_mask).astype(bool).sum() == wanted.sum()
    shares = frames_by_place(highdicom.seg.segread(study / "probability.dcm"))
    for number, image in enumerate(data):
        pixels, _ = shares[tuple(round(float(v), 3) for v in image.ImagePositionPatient)]
        assert np.abs(pixels / 255 - probability[..., number]).max() < 1 / 255
    report = read_json(study / "report.json")
    assert report["volume_ml"] == pytest.approx(wanted.sum() * 0.5 * 0.75 * 2.5 / 1000, rel=1e-4)


def test_a_tilted_gantry(model: Ensemble, volume_run: Path, tmp_path: Path) -> None:
    data = series()
    for number, image in enumerate(data):
        image.ImagePositionPatient = [10.0, 20.0 + 0.8 * number, 30.0 + 2.5 * number]
    folder = small_dicom.save(data, tmp_path / "in")
    probability, threshold = expected(model, folder, data)
    (study,) = predict(volume_run, folder, tmp_path / "out", threshold=threshold).glob("study_*")
    frames = frames_by_place(pydicom.dcmread(study / "mask.dcm"))
    wanted = probability >= np.float32(threshold)
    for number, image in enumerate(data):
        if wanted[..., number].any():
            pixels, source = frames[tuple(round(float(v), 3) for v in image.ImagePositionPatient)]
            assert np.array_equal(pixels, wanted[..., number]) and source == image.SOPInstanceUID


def test_a_tree_of_examinations_and_what_is_no_scan(volume_run: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    first, second, localizer, other = series(0), series(1), series(2), series(3)
    for data in other:
        data.PatientID = "QX4712"
    localizer[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    small_dicom.save(first, tree / "jane", "A")
    small_dicom.save(second, tree / "jane", "B")  # in the same folder
    small_dicom.save(localizer[:1], tree / "jane", "C")
    small_dicom.save(other, tree / "joan" / "deep")
    small_dicom.segmentation(first, small_dicom.lesion(0, SHAPE)).save_as(tree / "jane" / "seg.dcm")
    (tree / "joan" / "notes.txt").write_text("no scan")
    damaged = series(4)
    small_dicom.save(damaged[:2] + damaged[4:], tree / "jack")
    with pytest.raises(SystemExit):
        predict(volume_run, tree, tmp_path / "out")
    summary = read_json(tmp_path / "out" / "summary.json")
    assert [row["status"] for row in summary["studies"]].count("predicted") == 3 and summary["failed"] == 1
    (failed,) = (row for row in summary["studies"] if row["status"] == "failed")
    assert "mm apart" in failed["why"]


def test_an_empty_mask_is_a_segmentation_too(volume_run: Path, tmp_path: Path) -> None:
    folder = small_dicom.save(series(), tmp_path / "in")
    (study,) = predict(volume_run, folder, tmp_path / "out", threshold=1.0).glob("study_*")
    mask = pydicom.dcmread(study / "mask.dcm")
    assert not mask.pixel_array.any() and int(mask.NumberOfFrames) == SHAPE[2]
    assert read_json(study / "report.json")["lesions"] == []


def test_the_same_prediction_made_again_is_the_same_object_and_any_other_is_another(
    volume_run: Path, other_run: Path, tmp_path: Path
) -> None:
    folder = small_dicom.save(series(), tmp_path / "in")
    again = [pydicom.dcmread(path) for path in sorted(folder.iterdir(), reverse=True)]  # in another order
    copied = small_dicom.save(again, tmp_path / "copy", "other")
    found = []
    for number, (run, source, threshold) in enumerate(
        ((volume_run, folder, 0.4), (volume_run, copied, 0.4), (volume_run, folder, 1.0), (other_run, folder, 1.0))
    ):
        out = predict(run, source, tmp_path / str(number), threshold=threshold)
        found.append(pydicom.dcmread(next(out.glob("*/mask.dcm"))))
    times = ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "ContributionDateTime")
    for data in found[:2]:
        for holder in (data, *data.ContributingEquipmentSequence):
            for name in times:
                holder.pop(name, None)
    assert found[0].to_json() == found[1].to_json()
    assert all(len({data.get(name) for data in found}) == 3 for name in ("SOPInstanceUID", "SeriesInstanceUID"))
    (algorithm,) = found[3].SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    weights = hashlib.sha256((other_run / "model.pt").read_bytes()).hexdigest()
    assert algorithm.AlgorithmParameters == f"model_1_sha256={weights}"


def test_names_are_in_no_file_but_the_segmentation(
    volume_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "PlantedFolder" / "Planted_Jane"
    small_dicom.save(series(0), tree / "Planted_ok", "Planted")
    broken = series(1)
    small_dicom.save(broken[:2] + broken[4:], tree / "Planted_gap", "Planted")
    colours = series(2)
    colours[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
    small_dicom.save(colours, tree / "Planted_turned", "Planted")
    (tree / "Planted_bad.nii.gz").write_bytes(b"\x1f\x8bPlanted")
    (tree / "Planted_empty.dcm").write_bytes(b"Planted")
    with pytest.raises(SystemExit):
        predict(volume_run, tree, tmp_path / "out", probabilities=True)
    shown = capfd.readouterr()
    assert "3 of 5 predicted" in shown.out or "1 of 5 predicted" in shown.out
    uids = {str(data.get(tag)) for data in broken + colours for tag in ("SOPInstanceUID", "SeriesInstanceUID")}
    words = [part for value in PLANTED.values() for part in value.split("^")] + ["Planted", *uids]
    texts = [shown.out + shown.err]
    for path in (tmp_path / "out").rglob("*"):
        texts.append(path.relative_to(tmp_path / "out").as_posix())
        if path.is_file() and path.suffix != ".dcm":
            texts.append(path.read_bytes().decode("latin-1"))
    for word in words:
        for text in texts:
            assert word == "flair Planted" or word not in text.replace("PlantedFolder", ""), (word, text[:2000])
