"""The files of one study: mask, maps, a preview and the report.

======================  ============================================================================
``mask.*``              1 (PNG: 255) where the model calls lesion, in the format of the scan
``probability.*``       on demand: the probability of each voxel
``disagreement.*``      on demand, of several networks: the highest probability minus the lowest
``preview.png``         three slices with the model's contour
``report.json``         volume, lesions, threshold, model, checksums, warnings
======================  ============================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.atomic import write_atomically
from monai_fp4.data.readers.files import sha256_of
from monai_fp4.data.scans import Image
from monai_fp4.inference.formats import write_itk, write_nifti, write_pictures
from monai_fp4.inference.segmentation import write_segmentation
from monai_fp4.inference.segmented import Segmented
from monai_fp4.metrics.lesions import lesions_of
from monai_fp4.visualize import grey_slice, prediction_preview

__all__ = ["lesions_of", "write_mask", "write_results"]

WRITERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "nifti": write_nifti,
        "nifti_pairs": write_nifti,
        "itk": write_itk,
        "dicom": write_segmentation,
        "pictures": write_pictures,
    }
)
"""By the name of the scan's reader."""

_SHOWN = 3


def write_mask(
    folder: Path, name: str, values: NDArray[Any], scan: Image, source: str, kind: str, models: Sequence[str] = ()
) -> list[Path]:
    """Write one volume ``[H, W, D]`` in the format of the scan; a scan without a place becomes pictures.

    A DICOM-SEG names the ``models`` that it comes from by the SHA-256 of their weights.
    """
    writer = write_pictures if scan.affine is None else WRITERS[kind]
    named = {"models": models} if writer is write_segmentation else {}
    return list(writer(folder, name, np.ascontiguousarray(scan.to_file(values)), scan, source, **named))


def write_results(
    folder: Path, key: str, found: Segmented, scan: Image, source: str, kind: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Write every file of a study; the report last.

    Args:
        folder: where to.
        key: what the study is called.
        found: what became of the scan.
        scan: the scan.
        source: its first file.
        kind: the name of its reader.
        about: the model and the input, for the report.

    Returns:
        The report.
    """
    models, paths = [model["sha256"] for model in about["models"]], []
    for name in ("mask", "probability", "disagreement"):
        values = getattr(found, name)
        if values is not None:
            paths += write_mask(folder, name, values, scan, source, kind, models)
    _preview(folder / "preview.png", key, found, scan)
    lost = found.lost_lesions
    report = {
        "study": key,
        **_measures(found.mask, scan),
        **({} if lost is None else {"lesions_of_one_network": lost}),
        "warnings": list(found.warnings),
        "image": {
            "format": kind,
            "size": list(scan.shape),
            "spacing_mm": None if scan.affine is None else np.linalg.norm(scan.affine[:3, :3], axis=0).tolist(),
            "plane": None if scan.place is None else scan.place.plane,
        },
        **about,
        "files": {path.name: sha256_of(path) for path in sorted(paths)},
    }
    write_atomically(folder / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def _measures(mask: NDArray[np.uint8], scan: Image) -> dict[str, Any]:
    volume = None if scan.affine is None else abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
    sizes = lesions_of(mask)
    return {
        "volume_ml": None if volume is None else round(sum(sizes) * volume, 6),
        "voxels": sum(sizes),
        "lesion_count": len(sizes),
        "lesions": [
            {"voxels": size, "volume_ml": None if volume is None else round(size * volume, 6)} for size in sizes
        ],
    }


def _preview(path: Path, key: str, found: Segmented, scan: Image) -> None:
    """The slices with the most lesion that are no neighbours; of an empty mask, slices spread over the scan."""
    amounts = found.mask.sum(axis=(0, 1), dtype=np.int64)
    depth = len(amounts)
    chosen: list[int] = []
    for number in np.argsort(-amounts, kind="stable"):
        if len(chosen) < _SHOWN and amounts[number] and all(abs(number - other) > depth // 10 for other in chosen):
            chosen.append(int(number))
    if not chosen:
        chosen = sorted({depth * part // (_SHOWN + 1) for part in range(1, _SHOWN + 1)})
    slices = [
        (number, grey_slice(found.seen, number, found.mask.shape), found.mask[..., number] > 0)
        for number in sorted(chosen)
    ]
    known: dict[str, Any] = {}
    if scan.place is not None:  # columns run from the patient's right to the left
        known = {"sides": ("R", "L"), "spacing": scan.place.spacing[:2]}
    marked = f"{key}: marked in {np.count_nonzero(amounts)} of {depth} slice{'s' * (depth != 1)}"
    write_atomically(path, prediction_preview(slices, depth=depth, title=marked, **known))
