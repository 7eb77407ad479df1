"""DICOM series and segmentations: the numbers and places that pydicom, SimpleITK and highdicom tell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.sr.codedict import codes
from pydicom.uid import EnhancedCTImageStorage, JPEGLSLossless, RLELossless, generate_uid
from small_dicom import SHAPE, lesion, save, segmentation, slices, stored, write_dicom

from monai_fp4.data import Manifest, check_manifest, load_datalist
from monai_fp4.data.build import find_and_examine
from monai_fp4.data.patients import Volume, read_patient
from monai_fp4.data.readers import dicom_series
from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError

OBLIQUE = tuple(np.array([[0.8, 0.6, 0.0], [0.0, 0.0, -1.0]]).ravel())
"""Coronal, and turned by 37 degrees."""


def build(root: Path, **options: Any) -> Manifest:
    return find_and_examine(root, folds=2, **options)[0]


def read(manifest: Manifest, root: Path, patient: str = "anna") -> Volume:
    records = load_datalist(manifest, root, "all", "train")
    return read_patient(next(record for record in records if record["patient"] == patient))


def two_patients(root: Path, seed: int = 0, **options: Any) -> list[pydicom.Dataset]:
    """Patients anna and bert, each with one series and a segmentation; returns anna's slices."""
    found = []
    for number, patient in enumerate(("anna", "bert")):
        series = slices(seed + number, patient=patient, **options)
        save(series, root / patient)
        segmentation(series, lesion(number)).save_as(root / patient / "seg.dcm")
        found.append(series)
    return found[0]


def looked_at_by_itk(folder: Path) -> np.ndarray:
    """A series as ITK sorts and rescales it, turned to rows to the back, columns to the left, slices to the head."""
    reader = SimpleITK.ImageSeriesReader()
    series = [reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))]
    reader.SetFileNames(max(series, key=len))
    return SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(reader.Execute(), "LPS")).transpose(1, 2, 0)


def test_slices_are_sorted_by_place_and_rescaled(tmp_path):
    two_patients(tmp_path)
    manifest = build(tmp_path)
    assert manifest.format == "dicom" and manifest.channels == ("FLAIR",)
    volume = read(manifest, tmp_path)
    assert np.array_equal(volume.image[0], stored(0) * 2.0 - 1000)
    assert np.array_equal(volume.mask[0], lesion(0))


@pytest.mark.parametrize("directions", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0), OBLIQUE])
def test_volumes_are_turned_as_itk_turns_them(tmp_path, directions):
    two_patients(tmp_path, directions=directions)
    volume = read(build(tmp_path), tmp_path)
    assert np.array_equal(volume.image[0], looked_at_by_itk(tmp_path / "anna"))
    values = stored(0) * 2.0 - 1000
    assert np.array_equal(np.sort(volume.image[0][volume.mask[0] == 1]), np.sort(values[lesion(0) == 1]))


def test_a_segmentation_lists_only_the_slices_with_lesion(tmp_path):
    two_patients(tmp_path)
    frames = highdicom.seg.segread(tmp_path / "anna" / "seg.dcm").number_of_frames
    assert frames == 2 < SHAPE[2]
    assert read(build(tmp_path), tmp_path).mask.shape == (1, *SHAPE)


def test_series_are_channels_and_a_pattern_chooses(tmp_path):
    write_dicom(tmp_path, ["anna", "bert"])
    manifest = build(tmp_path)
    assert manifest.channels == ("FLAIR", "T1")
    assert np.array_equal(read(manifest, tmp_path).image[1], stored(10) * 2.0 - 1000)
    assert check_manifest(manifest, tmp_path) == manifest
    chosen = build(tmp_path, series="^T1")
    assert chosen.channels == ("T1",)
    with pytest.raises(
        DataError, match=r"an image series in .*anna, found .*FLAIR, .*SEG.*choose series with --series"
    ):
        build(tmp_path, series="T2", format="dicom")


@pytest.mark.parametrize(
    ("tag", "vr", "value", "refused"),
    [
        ("SeriesNumber", "IS", b"ab", None),
        ("SeriesNumber", "IS", b"1\\2 ", None),
        ("ImageType", "US", b"\1\0", None),
        ("ImageType", "FD", b"abc", None),
        ("SeriesDescription", "US", b"\1\0\2", r"the series CT of 'anna' in every patient"),
        ("SeriesDescription", "US", b"\1\0", r"the series 1 of 'anna' in every patient"),
        ("PatientID", "DS", b"x ", r"one patient below .*anna, found PatientID"),
        ("SeriesInstanceUID", "DS", b"x ", r"a SeriesInstanceUID in the DICOM file .*, found x"),
        ("SeriesInstanceUID", "FD", b"abc", r"a SeriesInstanceUID in the DICOM file .*, found none"),
    ],
)
def test_a_tag_that_holds_another_thing_is_no_traceback(tmp_path, tag, vr, value, refused):
    two_patients(tmp_path)
    for path in (tmp_path / "anna").glob("IM*"):
        data = pydicom.dcmread(path)
        number = pydicom.tag.Tag(tag)
        data[number] = pydicom.dataelem.RawDataElement(number, vr, len(value), value, 0, False, True)
        data.save_as(path)
    if refused is None:
        assert build(tmp_path).channels == ("FLAIR",)
    else:
        with pytest.raises(DataError, match=refused):
            build(tmp_path, format="dicom")


def test_a_localizer_and_files_that_are_none_are_listed_and_left(tmp_path):
    two_patients(tmp_path)
    scout = slices(5, description="scout", patient="anna", shape=(4, 4, 1))
    scout[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(scout, tmp_path / "anna" / "scout")
    (tmp_path / "anna" / "notes.txt").write_text("x")
    manifest, findings = find_and_examine(tmp_path, folds=2)
    assert manifest.channels == ("FLAIR",)
    assert findings.facts[2] == "masks: DICOM-SEG"
    assert findings.facts[-1] == "not read, as no rule takes them: anna/notes.txt, anna/scout/IM0000.dcm"


def test_a_mask_may_be_nifti(tmp_path):
    for number, patient in enumerate(("anna", "bert")):
        series = slices(number, patient=patient)
        save(series, tmp_path / patient / "ct")
        # LPS to RAS: columns run to the left, rows to the back.
        affine = np.array([[0, -0.75, 0, -10], [-0.5, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
        nibabel.save(nibabel.Nifti1Image(lesion(number), affine), tmp_path / patient / "mask.nii.gz")
    volume = read(build(tmp_path), tmp_path)
    assert np.array_equal(volume.mask[0], lesion(0))
    assert np.array_equal(volume.image[0], stored(0) * 2.0 - 1000)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_slices(tmp_path, syntax):
    for patient in ("anna", "bert"):
        series = slices(0 if patient == "anna" else 1, patient=patient)
        plain = segmentation(series, lesion(0))
        for data in series:
            data.compress(syntax, generate_instance_uid=False)
        save(series, tmp_path / patient)
        plain.save_as(tmp_path / patient / "seg.dcm")
    assert np.array_equal(read(build(tmp_path), tmp_path).image[0], stored(0) * 2.0 - 1000)


def test_jpeg_lossless_as_itk_writes_it(tmp_path):
    """JPEG Lossless is what pydicom cannot decode alone."""
    series = two_patients(tmp_path)
    for number, data in enumerate(series):
        writer = SimpleITK.ImageFileWriter()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(tmp_path / "one.dcm"))
        writer.Execute(SimpleITK.GetImageFromArray(stored(0)[None, ..., number].astype(np.uint16)))
        encoded = pydicom.dcmread(tmp_path / "one.dcm")
        data.file_meta.TransferSyntaxUID = encoded.file_meta.TransferSyntaxUID
        assert data.file_meta.TransferSyntaxUID.is_compressed
        data.PixelData = encoded.PixelData
        data["PixelData"].is_undefined_length = True
    (tmp_path / "one.dcm").unlink()
    save(series, tmp_path / "anna")
    assert np.array_equal(read(build(tmp_path), tmp_path).image[0], stored(0) * 2.0 - 1000)


def test_monochrome1_is_turned_to_bright_on_dark(tmp_path):
    for patient in ("anna", "bert"):
        series = slices(0 if patient == "anna" else 1, patient=patient)
        seg = segmentation(series, lesion(0))
        for data in series:
            data.PhotometricInterpretation, data.BitsStored, data.HighBit = "MONOCHROME1", 12, 11
            data.Modality = "DX"
        save(series, tmp_path / patient)
        seg.save_as(tmp_path / patient / "seg.dcm")
    assert np.array_equal(read(build(tmp_path), tmp_path).image[0], (4095.0 - stored(0)) * 2 - 1000)


def test_numbers_that_have_a_unit_keep_it_however_they_are_shown(tmp_path):
    for modality, kind in (("CT", None), ("MR", "HU")):
        root = tmp_path / modality
        two_patients(root)
        for path in root.rglob("IM*"):
            data = pydicom.dcmread(path)
            data.PhotometricInterpretation, data.Modality = "MONOCHROME1", modality
            if kind:
                data.RescaleType = kind
            data.save_as(path)
        assert np.array_equal(read(build(root), root).image[0], stored(0) * 2.0 - 1000)


def test_files_from_before_there_was_a_preamble(tmp_path):
    two_patients(tmp_path)
    for path in tmp_path.rglob("IM*"):
        data = pydicom.dcmread(path)
        pydicom.Dataset(data).save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    volume = read(build(tmp_path), tmp_path)
    assert np.array_equal(volume.image[0], stored(0) * 2.0 - 1000) and np.array_equal(volume.mask[0], lesion(0))


def segments(series: Sequence[pydicom.Dataset], masks: Sequence[np.ndarray], names: Sequence[str], kind: str) -> Any:
    """A segmentation of several segments, or of shares; masks are ``[rows, columns, slices]``."""
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names, 1)
    ]
    ordered = sorted(series, key=lambda data: data.ImagePositionPatient[2])
    return highdicom.seg.Segmentation(
        source_images=ordered,
        pixel_array=np.stack([np.moveaxis(mask, -1, 0) for mask in masks], -1),
        segment_descriptions=described,
        segmentation_type=kind,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="tests",
        manufacturer_model_name="tests",
        software_versions="1",
        device_serial_number="1",
    )


def with_segments(root: Path, masks: Any, names: Any, kind: str = "BINARY") -> Path:
    """Patients anna and bert with segmentations of what ``masks`` and ``names`` give for 0 and 1."""
    for number, patient in enumerate(("anna", "bert")):
        series = slices(number, patient=patient)
        save(series, root / patient)
        segments(series, masks(number), names(number), kind).save_as(root / patient / "seg.dcm")
    return root


CYST = np.zeros(SHAPE, np.uint8)
CYST[3:7, 1:4, 2:4] = 1


def test_segments_that_overlap_are_the_lesion_together_or_one_above_the_other(tmp_path):
    root = with_segments(tmp_path, lambda number: (lesion(number), CYST), lambda _: ("tumour", "cyst"))
    assert (lesion(0) & CYST).any()
    for labels, expected in (((1, 2), lesion(0) | CYST), ((1,), lesion(0)), ((2,), CYST)):
        found = read(build(root, reading=Reading(labels=labels)), root).mask[0]
        assert np.array_equal(found, expected)
    found = read(build(root, reading=Reading(labels=(2,), ignore_label=(1,))), root).mask[0]
    assert np.array_equal(found, np.where(lesion(0), 2, CYST))
    with pytest.raises(
        DataError, match=r"overlap in .*seg\.dcm, found that some of 1 'tumour', 2 'cyst' do; say which"
    ):
        build(root)


def test_segments_are_told_by_their_names(tmp_path):
    apart = np.zeros(SHAPE, np.uint8)
    apart[6:, :2] = 1

    def swapped(number: int) -> tuple[Any, ...]:
        return (lesion(number), apart)[:: -1 if number else 1]

    root = with_segments(tmp_path / "a", swapped, lambda number: ("tumour", "cyst")[:: -1 if number else 1])
    with pytest.raises(DataError, match=r"'cyst' is 2 in 'anna' and 1 in 'bert', of which --labels names one; save"):
        build(root, reading=Reading(labels=(1,)))
    build(root, reading=Reading(labels=(1, 2)))
    root = with_segments(tmp_path / "b", lambda number: (lesion(number), apart), lambda _: ("lesion", "lesion"))
    assert np.array_equal(read(build(root, reading=Reading(labels=(1,))), root).mask[0], lesion(0))


def test_fractional_segmentations_are_soft_masks(tmp_path):
    shares = lesion(0) * np.float64(0.75)
    shares[2, 1, 1] = 0.25
    root = with_segments(tmp_path / "a", lambda _: (shares,), lambda _: ("lesion",), "FRACTIONAL")
    assert np.array_equal(read(build(root, reading=Reading(mask_threshold=0.5)), root).mask[0], shares > 0.5)
    assert np.array_equal(read(build(root, reading=Reading(mask_threshold=0.2)), root).mask[0], shares > 0.2)
    with pytest.raises(DataError, match=r"found 0, 0\.25\d*, 0\.7\d*; say from which value on .*--mask_threshold"):
        build(root)
    root = with_segments(tmp_path / "b", lambda n: (lesion(n) * 1.0,), lambda _: ("lesion",), "FRACTIONAL")
    assert np.array_equal(read(build(root), root).mask[0], lesion(0))
    root = with_segments(tmp_path / "c", lambda _: (shares, shares), lambda _: ("a", "b"), "FRACTIONAL")
    with pytest.raises(DataError, match=r"one segment in the fractional segmentation .*, found 1 'a', 2 'b'; save"):
        build(root, reading=Reading(mask_threshold=0.5))


def test_a_tilted_gantry_keeps_its_shear(tmp_path):
    """The slices' corners move within the plane from slice to slice; a mask of the same shear lies upon them."""
    for number, patient in enumerate(("anna", "bert")):
        series = slices(number, patient=patient)
        for index, data in enumerate(series):
            data.ImagePositionPatient = [10, 20 + 0.7 * index, 30 + 2.5 * index]
        save(series, tmp_path / patient / "ct")
        affine = np.array([[0, -0.75, 0, -10], [-0.5, 0, -0.7, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
        nibabel.save(nibabel.Nifti1Image(lesion(number), affine), tmp_path / patient / "mask.nii.gz")
    assert np.array_equal(read(build(tmp_path), tmp_path).mask[0], lesion(0))
    straight = affine.copy()
    straight[:, 2] = [0, 0, 2.5, 0]
    nibabel.save(nibabel.Nifti1Image(lesion(1), straight), tmp_path / "bert" / "mask.nii.gz")
    with pytest.raises(DataError, match=r"corners of .*mask\.nii\.gz up to 2\.8 mm"):
        build(tmp_path)


def enhanced(series: Sequence[pydicom.Dataset]) -> pydicom.Dataset:
    """The same slices as the frames of one enhanced object, in a mixed order."""
    order = np.random.default_rng(0).permutation(len(series))
    data = pydicom.dcmread(_written(series[0]))
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    shared, frames = pydicom.Dataset(), []
    orientation, measures = pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = data.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, data.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    for number in order:
        frame, place, values = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = series[number].ImagePositionPatient
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 3, int(number), "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [values]
        frames.append(frame)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, name)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.NumberOfFrames = len(series)
    data.PixelData = b"".join(series[number].PixelData for number in order)
    return data


def _written(data: pydicom.Dataset) -> Any:
    from io import BytesIO

    buffer = BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return buffer


def test_frames_of_an_enhanced_object_are_sorted_and_rescaled_each(tmp_path):
    for number, patient in enumerate(("anna", "bert")):
        series = slices(number, patient=patient)
        segmentation(series, lesion(number)).save_as(_folder(tmp_path / patient) / "seg.dcm")
        save([enhanced(series)], tmp_path / patient)
    volume = read(build(tmp_path), tmp_path)
    assert np.array_equal(volume.image[0], stored(0) * 3.0 + np.arange(SHAPE[2]))
    assert np.array_equal(volume.mask[0], lesion(0))


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_a_slice_that_was_exchanged_is_another_series(tmp_path):
    two_patients(tmp_path)
    manifest = build(tmp_path)
    path = next((tmp_path / "anna").glob("IM*.dcm"))
    data = pydicom.dcmread(path)
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(path)
    with pytest.raises(DataError, match=r"anna#[0-9.]+, found that its SHA-256 differs"):
        check_manifest(manifest, tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"found .* mm between|SHA-256 differs"):
        check_manifest(manifest, tmp_path)


def patients(root: Path, numbers: Sequence[str], descriptions: Sequence[str] = ("FLAIR",) * 9) -> Path:
    """Folders v0, v1, ... whose files have these PatientIDs and SeriesDescriptions."""
    for index, number in enumerate(numbers):
        series = slices(index, patient=number, description=descriptions[index])
        save(series, root / f"v{index}")
        segmentation(series, lesion(index)).save_as(root / f"v{index}" / "seg.dcm")
    return root


def test_folders_of_one_patient_id_are_one_person(tmp_path):
    root = patients(tmp_path, ["anna", "bert", "anna", "cleo", "anna"])
    for seed in range(5):
        manifest = build(root, seed=seed)
        assert [patient.who for patient in manifest.patients] == ["v0", "v1", "v0", "v3", "v0"]  # no PatientID is kept
        folds = {patient.id: patient.fold for patient in manifest.patients}
        assert folds["v0"] == folds["v2"] == folds["v4"]
    assert not any(patient.person for patient in build(root, patient_pattern=".+").patients)


def test_one_patient_id_for_all_is_no_person(tmp_path):
    root = patients(tmp_path, ["ANON"] * 4)
    with pytest.raises(
        DataError, match=r"a PatientID of each person in .*, found one in all 4 folders; if each folder"
    ):
        build(root)
    assert len(build(root, patient_pattern=".+").patients) == 4
    assert len(build(root, groups={f"v{n}": {"group": "x"} for n in range(4)}).patients) == 4
    assert len(build(patients(tmp_path / "empty", [""] * 4)).patients) == 4


def test_reports_and_pictures_of_the_screen_are_no_channels(tmp_path):
    root = patients(tmp_path, ["anna", "bert"])
    for patient in ("v0", "v1"):
        report = slices(9, patient=("anna", "bert")[int(patient[1])], description="Dose Report")[:1]
        report[0].Modality, report[0].ImageType = "OT", ["DERIVED", "SECONDARY", "SCREEN SAVE"]
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(report[0], tag)
        save(report, root / patient / "report")
    manifest, findings = find_and_examine(root, folds=2)
    assert manifest.channels == ("FLAIR",)
    assert any("not read" in fact and "v0/report/IM0000.dcm" in fact for fact in findings.facts)


def test_series_of_many_names_are_called_by_the_group_of_a_pattern(tmp_path):
    root = patients(tmp_path, ["anna", "bert", "cleo"], ["FLAIR", "flair_tse", "ax T2 Flair\\POST"])
    with pytest.raises(
        DataError, match=r"the series FLAIR of 'v0' in every .*found flair_tse in 'v1', 'v2'; choose wi"
    ):
        build(root)
    manifest = build(root, series="(?i)(flair)")
    assert manifest.channels == ("flair",)
    assert np.array_equal(read(manifest, root, "v2").image[0], stored(2) * 2.0 - 1000)


def test_dicom_that_is_refused_with_what_to_do(tmp_path):
    root = patients(tmp_path / "contours", ["anna", "bert"])
    contours = slices(0, patient="anna")[0]
    contours.Modality, contours.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    contours.save_as(root / "v0" / "seg.dcm")
    with pytest.raises(DataError, match=r"in .*v0, found contours \(RTSTRUCT\); convert them with 3D Slicer"):
        build(root)
    save(slices(0), tmp_path / "flat")
    with pytest.raises(
        DataError, match=r"a folder of each patient in .*flat, found 5 DICOM files beside them, such as"
    ) as e:
        build(tmp_path / "flat")
    assert "CSV" not in str(e.value)  # which lists files and no series


@pytest.mark.parametrize("modality", ["DX", "CT"])
def test_jpeg_lossless_of_monochrome1_is_turned_as_other_files_are(modality, tmp_path):
    """ITK decodes what pydicom does not, and turns pictures to bright on dark, even those of Hounsfield units."""
    root = patients(tmp_path, ["anna", "bert"])
    expected = read(build(root), root, "v0").image
    for path in sorted(root.glob("v0/IM*")):
        data = pydicom.dcmread(path)
        image = SimpleITK.GetImageFromArray(data.pixel_array)
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
            tag = pydicom.datadict.tag_for_keyword(keyword)
            image.SetMetaData(f"{tag >> 16:04x}|{tag & 0xFFFF:04x}", str(data[keyword].value))
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(image)
        packed = pydicom.dcmread(path)
        assert packed.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SeriesDescription"):
            setattr(packed, keyword, data[keyword].value)
        packed.PhotometricInterpretation, packed.Modality = "MONOCHROME1", modality
        packed.RescaleSlope, packed.RescaleIntercept = 1, 0
        packed.save_as(path)
    (root / "v0" / "seg.dcm").unlink()
    affine = np.array([[-0.75, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(lesion(0).transpose(1, 0, 2), affine), root / "v0" / "mask.nii")
    found, numbers = read(build(root), root, "v0").image, (expected + 1000) / 2
    assert np.array_equal(found, numbers if modality == "CT" else 2.0**packed.BitsStored - 1 - numbers)


def test_a_file_in_another_s_place_is_read_anew_whatever_its_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_series, "header_of", lambda path: {"SeriesInstanceUID": path.read_text()})
    file = tmp_path / "slice.dcm"
    for uid, other in (("1.2", "1.3"), ("1.3", "1.2")):
        file.write_text(uid)
        os.utime(file, (0, 0))  # in 1970, as on a machine without a clock
        assert dicom_series.series_files(Path(f"{tmp_path}#{uid}")) == [file]
        with pytest.raises(DataError, match="found none"):
            dicom_series.series_files(Path(f"{tmp_path}#{other}"))
