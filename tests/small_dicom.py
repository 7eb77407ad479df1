"""Small DICOM data sets, written by pydicom and highdicom; no real picture is among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPE = (8, 7, 5)
"""Rows, columns, slices."""


def slices(
    seed: int,
    *,
    description: str = "FLAIR",
    patient: str = "p",
    shape: Sequence[int] = SHAPE,
    spacing: tuple[float, float, float] = (0.5, 0.75, 2.5),
    directions: Sequence[float] = (1, 0, 0, 0, 1, 0),
    study: str | None = None,
) -> list[pydicom.Dataset]:
    """A CT series of random numbers, from the lowest slice up; stored values are those that `stored` gives."""
    uid, frame, study = generate_uid(), generate_uid(), study or generate_uid()
    values = stored(seed, shape)
    normal = np.cross(directions[:3], directions[3:])
    found = []
    for number in range(shape[2]):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.SeriesInstanceUID, data.FrameOfReferenceUID, data.StudyInstanceUID = uid, frame, study
        data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = patient, "", "", ""
        data.StudyDate = data.StudyTime = data.StudyID = data.AccessionNumber = data.ReferringPhysicianName = ""
        data.Modality, data.SeriesDescription, data.SeriesNumber = "CT", description, 1
        data.InstanceNumber = shape[2] - number  # against the order of places
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Rows, data.Columns = shape[:2]
        data.PixelSpacing = list(spacing[:2])
        data.SliceThickness = spacing[2]
        data.ImageOrientationPatient = list(map(float, directions))
        data.ImagePositionPatient = [float(f"{v:.6g}") for v in np.array([10, 20, 30]) + normal * spacing[2] * number]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept = 2, -1000
        data.PixelData = values[..., number].astype("<u2").tobytes()
        found.append(data)
    return found


def stored(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """The numbers behind `slices`, ``[rows, columns, slices]``."""
    return np.random.default_rng(seed).integers(0, 2000, tuple(shape))


def save(series: Sequence[pydicom.Dataset], folder: Path, name: str = "IM") -> Path:
    """Write a series, in an order that is not the one of the places."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(sorted(series, key=lambda data: data.SOPInstanceUID)):
        data.save_as(folder / f"{name}{number:04d}.dcm", enforce_file_format=True)
    return folder


def segmentation(series: Sequence[pydicom.Dataset], mask: np.ndarray, **changes: Any) -> Any:
    """A DICOM-SEG of a mask ``[rows, columns, slices]`` in the order of the series, by highdicom."""
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="lesion",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Neoplasm,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    options = {"segmentation_type": highdicom.seg.SegmentationTypeValues.BINARY} | changes
    return highdicom.seg.Segmentation(
        source_images=list(series),
        pixel_array=np.moveaxis(mask, -1, 0).astype(np.uint8),
        segment_descriptions=[segment],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="tests",
        manufacturer_model_name="tests",
        software_versions="1",
        device_serial_number="1",
        **options,
    )


def lesion(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """A mask with two slices of lesion, ``[rows, columns, slices]``."""
    mask = np.zeros(tuple(shape), np.uint8)
    mask[2:4, 1 + seed % 3 : 4, 1:3] = 1
    return mask


def write_dicom(root: Path, patients: Sequence[str]) -> Path:
    """A folder a patient with two series and a DICOM-SEG."""
    for number, patient in enumerate(patients):
        study = generate_uid()
        series = slices(number, patient=patient, study=study)
        save(series, root / patient / "one")
        save(slices(10 + number, description="T1", patient=patient, study=study), root / patient / "two")
        segmentation(series, lesion(number)).save_as(root / patient / "seg.dcm")
    return root
