"""DICOM-SEG objects by highdicom: each frame refers to the slice that it was made from and lies where that lies.

A segmentation is a part of the patient's examination, so it carries the patient's and the examination's own modules, as
the standard wants. It is the one file of a prediction that names the patient. What an anonymized series lost of them is
there and empty, as the standard has it for what is not known.

Its UIDs are a hash of all that it says: the instances that it was made from, the voxels, the models, and the version of
this package. So the same prediction made again is the same object, which takes the other's place in an archive, and
any other is another. UIDs have to be unique and never used again for something else (PS3.5, section 9); for converted
objects, whose UIDs have to stay the same, the standard mentions hashing (PS3.17, KKK.7). All but the times of creation
is the same, bit by bit.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import UID, generate_uid
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


def write_segmentation(
    folder: Path, name: str, values: NDArray[Any], scan: Image, source: str, models: Sequence[str] = ()
) -> list[Path]:
    """Write one volume as DICOM-SEG: a mask as BINARY, a map of 0 to 1 as FRACTIONAL in steps of 1/255.

    A segmentation refers to one multi-frame object, or to files of one slice each. So where a volume lies in several
    multi-frame objects, as the parts of a concatenation do, each gets a segmentation of its own, in one series.

    Args:
        folder: where to.
        name: ``"mask"``, ``"probability"`` or ``"disagreement"``.
        values: ``[rows, columns, slices]`` from the lowest slice up, as the reader puts them together.
        scan: the scan.
        source: the path of its first series.
        models: SHA-256 of the weights of each network that gave it.

    Returns:
        The files.

    Raises:
        DataError: a segmentation cannot refer to such a series.
    """
    import highdicom  # seconds to import, and few have DICOM

    assert scan.affine is not None and DICOM.files is not None
    is_mask, frames = values.dtype == np.uint8, np.moveaxis(values, -1, 0)
    if not is_mask:
        frames = np.clip(frames.astype(np.float32), 0, 1)
    found = []
    with quiet():
        parts = _parts([_header(path, scan) for path in DICOM.files(Path(source))], scan)
        uids = [str(image.SOPInstanceUID) for images, _ in parts for image in images]
        said = [name, __version__, *models, *uids, hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest()]
        kinds = highdicom.seg.SegmentationTypeValues
        try:
            description = highdicom.seg.SegmentDescription(
                segment_number=1,
                segment_label=_NAMES[name],
                segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
                segmented_property_type=codes.SCT.Lesion,
                algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                    name="monai_fp4",
                    version=__version__,
                    family=codes.DCM.ArtificialIntelligence,
                    parameters={f"model_{n}_sha256": model for n, model in enumerate(models, 1)} or None,
                ),
            )
            for number, (images, slices) in enumerate(parts, 1):
                segmentation = highdicom.seg.Segmentation(
                    source_images=images,
                    pixel_array=np.ascontiguousarray(frames[slices]),
                    segmentation_type=kinds.BINARY if is_mask else kinds.FRACTIONAL,
                    segment_descriptions=[description],
                    series_instance_uid=_uid(said),
                    series_number=_NUMBERS[name],
                    sop_instance_uid=_uid([*said, str(number)]),
                    instance_number=number,
                    manufacturer="monai_fp4 contributors",
                    manufacturer_model_name="monai_fp4",
                    software_versions=__version__,
                    device_serial_number="none",
                    series_description=_NAMES[name],
                    max_fractional_value=255,
                    omit_empty_frames=bool(frames[slices].any()),
                    specific_character_set="ISO_IR 192",  # UTF-8 holds whatever alphabet the series has
                )
                for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
                    item.DimensionOrganizationUID = _uid([*said, str(number), "dimensions"])
                content = io.BytesIO()
                segmentation.save_as(content)
                found.append(content.getvalue())
        except Exception as error:  # whatever a header leads highdicom to
            reason = " ".join(str(error).split())[-200:] or type(error).__name__
            raise DataError(
                f"expected a series that a DICOM-SEG can refer to in {source}, found that it cannot ({reason}); "
                "convert it to NIfTI and predict that"
            ) from error
    paths = [folder / (f"{name}.dcm" if len(found) == 1 else f"{name}_{n}.dcm") for n in range(1, len(found) + 1)]
    for path, data in zip(paths, found, strict=True):
        write_atomically(path, data)
    return paths


def _uid(words: Sequence[str]) -> UID:
    return generate_uid(entropy_srcs=["\n".join(words)])


def _parts(images: Sequence[pydicom.Dataset], scan: Image) -> list[tuple[list[pydicom.Dataset], NDArray[np.int64]]]:
    """The files that a segmentation can refer to together, from the lowest slice up, and their slices' numbers."""
    heights = [_heights(_positions(image), scan) for image in images]
    ordered = sorted(zip(images, heights, strict=True), key=lambda pair: int(pair[1].min()))
    parts = [([image], own) for image, own in ordered if "PerFrameFunctionalGroupsSequence" in image]
    if single := [pair for pair in ordered if "PerFrameFunctionalGroupsSequence" not in pair[0]]:
        parts.append(([image for image, _ in single], np.concatenate([own for _, own in single])))
    return parts


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
