"""DICOM-SEG objects by highdicom: each frame refers to the slice that it was made from and lies where that lies.

A segmentation is a part of the patient's examination, so it carries the patient's and the examination's own modules, as
the standard wants. It is the one file of a prediction that names the patient.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from monai_fp4 import __version__
from monai_fp4.atomic import write_atomically
from monai_fp4.data.patients import Image
from monai_fp4.data.readers.dicom import DICOM
from monai_fp4.errors import DataError

__all__ = ["write_segmentation"]

_NAMES = {"mask": "Lesion", "probability": "Lesion probability", "disagreement": "Disagreement of the networks"}
_NUMBERS = {"mask": 901, "probability": 902, "disagreement": 903}


def write_segmentation(folder: Path, name: str, values: NDArray[Any], scan: Image, source: str) -> list[Path]:
    """Write one volume as DICOM-SEG: a mask as BINARY, a map of 0 to 1 as FRACTIONAL in steps of 1/255.

    Args:
        folder: where to.
        name: ``"mask"``, ``"probability"`` or ``"disagreement"``.
        values: ``[rows, columns, slices]`` from the lowest slice up, as the reader puts them together.
        scan: the scan.
        source: the path of its first series.

    Raises:
        DataError: highdicom cannot refer to such a series.
    """
    import highdicom  # seconds to import, and few have DICOM

    assert scan.affine is not None and DICOM.files is not None
    with warnings.catch_warnings(action="ignore"):
        images = [pydicom.dcmread(path) for path in DICOM.files(Path(source))]
        frames = np.moveaxis(values, -1, 0)
        if len(images) == 1:  # an enhanced object, whose frames may lie in any order
            frames = frames[_heights(_positions(images[0]), scan)]
        else:
            order = np.argsort(_heights([image.ImagePositionPatient for image in images], scan))
            images = [images[number] for number in order]
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


def _positions(image: pydicom.Dataset) -> list[Any]:
    shared = (image.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    found = []
    for frame in image.get("PerFrameFunctionalGroupsSequence") or [image]:
        group = frame.get("PlanePositionSequence") or shared.get("PlanePositionSequence")
        found.append(group[0].ImagePositionPatient if group else image.ImagePositionPatient)
    return found


def _heights(positions: list[Any], scan: Image) -> NDArray[np.int64]:
    """The number of the slice at each position, from the lowest up."""
    points = np.array([[-float(p[0]), -float(p[1]), float(p[2]), 1.0] for p in positions])
    assert scan.affine is not None
    return np.rint((np.linalg.inv(scan.affine) @ points.T)[2]).astype(np.int64)
