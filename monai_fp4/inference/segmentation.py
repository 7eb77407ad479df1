"""DICOM-SEG objects by highdicom: each frame refers to the slice that it was made from and lies where that lies.

A segmentation is a part of the patient's examination, so it carries the patient's and the examination's own modules, as
the standard wants. It is the one file of a prediction that names the patient. What an anonymized series lost of them is
there and empty, as the standard has it for what is not known.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from monai_fp4 import __version__
from monai_fp4.atomic import write_atomically
from monai_fp4.data.readers.dicom import DICOM
from monai_fp4.data.readers.dicom_series import quiet
from monai_fp4.data.scans import Image
from monai_fp4.errors import DataError

__all__ = ["write_segmentation"]

_NAMES = {"mask": "Lesion", "probability": "Lesion probability", "disagreement": "Disagreement of the networks"}
_NUMBERS = {"mask": 901, "probability": 902, "disagreement": 903}
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_SEXES = ("M", "F", "O", "")


def write_segmentation(folder: Path, name: str, values: NDArray[Any], scan: Image, source: str) -> list[Path]:
    """Write one volume as DICOM-SEG: a mask as BINARY, a map of 0 to 1 as FRACTIONAL in steps of 1/255.

    Args:
        folder: where to.
        name: ``"mask"``, ``"probability"`` or ``"disagreement"``.
        values: ``[rows, columns, slices]`` from the lowest slice up, as the reader puts them together.
        scan: the scan.
        source: the path of its first series.

    Raises:
        DataError: a segmentation cannot refer to such a series.
    """
    import highdicom  # seconds to import, and few have DICOM

    assert scan.affine is not None and DICOM.files is not None
    with quiet():
        images = [_header(path, scan) for path in DICOM.files(Path(source))]
        enhanced = [image for image in images if int(image.get("NumberOfFrames") or 1) > 1]
        if enhanced and len(images) > 1:
            raise DataError(
                f"expected one multi-frame object, or files of one slice each, in {source}, found {len(images)} files "
                f"of which {len(enhanced)} hold several; join them, or convert the series to NIfTI and predict that"
            )
        frames = np.moveaxis(values, -1, 0)
        positions = [position for image in images for position in _positions(image)]
        heights = _heights(positions, scan)
        if enhanced:  # frames may lie in any order
            frames = frames[heights]
        else:
            images = [images[number] for number in np.argsort(heights)]
        is_mask = values.dtype == np.uint8
        kinds = highdicom.seg.SegmentationTypeValues
        if not is_mask:
            frames = np.clip(frames.astype(np.float32), 0, 1)
        try:
            description = highdicom.seg.SegmentDescription(
                segment_number=1,
                segment_label=_NAMES[name],
                segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                segmented_property_type=codes.SCT.Lesion,
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                    name="monai_fp4", version=__version__, family=codes.DCM.ArtificialIntelligence
                ),
            )
            segmentation = highdicom.seg.Segmentation(
                source_images=images,
                pixel_array=np.ascontiguousarray(frames),
                segmentation_type=kinds.BINARY if is_mask else kinds.FRACTIONAL,
                segment_descriptions=[description],
                series_instance_uid=generate_uid(),
                series_number=_NUMBERS[name],
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="monai_fp4 contributors",
                manufacturer_model_name="monai_fp4",
                software_versions=__version__,
                device_serial_number="none",
                series_description=_NAMES[name],
                max_fractional_value=255,
                omit_empty_frames=bool(values.any()),
                specific_character_set="ISO_IR 192",  # UTF-8 holds whatever alphabet the series has
            )
        except Exception as error:  # whatever a header leads highdicom to
            reason = " ".join(str(error).split())[-200:] or type(error).__name__
            raise DataError(
                f"expected a series that a DICOM-SEG can refer to in {source}, found that it cannot ({reason}); "
                "convert it to NIfTI and predict that"
            ) from error
        content = io.BytesIO()
        segmentation.save_as(content)
    path = folder / f"{name}.dcm"
    write_atomically(path, content.getvalue())
    return [path]


def _header(path: Path, scan: Image) -> pydicom.Dataset:
    """A file's header without its pixels, with all that highdicom asks a source for.

    What may be empty and is missing, or makes no sense, is there and empty; what all frames of an enhanced object have
    in common stands among what they share, also where each frame said it itself.
    """
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    for tag in _MAY_BE_EMPTY:
        try:
            value = header.get(tag)
            if tag.endswith("Date"):
                DA(value)
            elif tag.endswith("Time"):
                TM(value)
            elif tag == "PatientSex" and value not in _SEXES:
                value = None
        except ValueError:
            value = None
        if value is None:
            setattr(header, tag, "")
    if not header.get("Modality"):
        header.Modality = "OT"
    measures = header
    if frames := header.get("PerFrameFunctionalGroupsSequence"):
        if not header.get("SharedFunctionalGroupsSequence"):
            header.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
        shared = header.SharedFunctionalGroupsSequence[0]
        for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if not shared.get(name) and frames[0].get(name):
                setattr(shared, name, frames[0][name].value)
        measures = (shared.get("PixelMeasuresSequence") or [header])[0]
    if not measures.get("SliceThickness") and scan.affine is not None:
        measures.SliceThickness = f"{np.linalg.norm(scan.affine[:3, 2]):.10g}"
    return header


def _positions(image: pydicom.Dataset) -> list[Any]:
    shared = (image.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    found = []
    for frame in image.get("PerFrameFunctionalGroupsSequence") or [image]:
        group = frame.get("PlanePositionSequence") or shared.get("PlanePositionSequence")
        found.append(group[0].ImagePositionPatient if group else image.ImagePositionPatient)
    return found


def _heights(positions: Sequence[Any], scan: Image) -> NDArray[np.int64]:
    """The number of the slice at each position, from the lowest up."""
    points = np.array([[-float(p[0]), -float(p[1]), float(p[2]), 1.0] for p in positions])
    assert scan.affine is not None
    return np.rint((np.linalg.inv(scan.affine) @ points.T)[2]).astype(np.int64)
