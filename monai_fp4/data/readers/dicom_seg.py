"""DICOM segmentations as labels, the segments' numbers, or as shares between 0 and 1, through highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_fp4.data.readers.limits import check_size
from monai_fp4.data.readers.volume import Decoded
from monai_fp4.data.records import Reading
from monai_fp4.errors import DataError

__all__ = ["decode_segmentation"]


def decode_segmentation(files: Sequence[Path], reading: Reading, source: Path) -> Decoded:
    """Decode the one file of a segmentation.

    Segments may overlap where the user's labels say which of them are the lesion. A fractional segmentation is handed
    out as probabilities or occupancies, which need a threshold like any soft mask.

    Raises:
        DataError: several files, several fractional segments, or overlapping ones of which nobody chose.
    """
    if len(files) > 1:
        raise DataError(f"expected one segmentation in {source}, found {len(files)} files; keep one")
    import highdicom  # seconds to import, and few have segmentations

    segmentation = highdicom.seg.segread(files[0])
    numbers = [int(number) for number in segmentation.segment_numbers]
    names = {number: str(segmentation.get_segment_description(number).segment_label) for number in numbers}
    fractional = segmentation.segmentation_type.value == "FRACTIONAL"
    if fractional and len(numbers) > 1:
        raise DataError(
            f"expected one segment in the fractional segmentation {files[0]}, found {_listed(names)}; save one alone, "
            "or all as binary"
        )
    geometry = segmentation.get_volume_geometry(allow_missing_positions=True)
    if geometry is not None:  # frames far apart span more than they hold
        check_size([*geometry.spatial_shape, len(numbers)], 32, files[0])
    try:
        volume = segmentation.get_volume(combine_segments=not fractional, skip_overlap_checks=False)
        values = np.asarray(volume.array)
    except RuntimeError as error:
        if "overlap" not in str(error):
            raise
        segmentation = highdicom.seg.segread(files[0])  # whose tables the first try has left locked
        volume = segmentation.get_volume(combine_segments=False)
        values = _painted(np.asarray(volume.array), names, reading, files[0])
    affine = volume.affine.copy()
    affine[:2] *= -1
    return Decoded(values[None, ..., 0] if fractional else values[None], affine, partial=True, names=names)


def _painted(segments: NDArray[Any], names: dict[int, str], reading: Reading, path: Path) -> NDArray[Any]:
    """Labels of segments ``[I, J, K, S]`` that overlap: what does not count lies above the lesion, and that above all.

    Raises:
        DataError: it was not said which are the lesion.
    """
    if not reading.labels:
        raise DataError(
            f"expected segments that do not overlap in {path}, found that some of {_listed(names)} do; say which are "
            "the lesion with --labels"
        )
    values = np.zeros(segments.shape[:-1], np.uint16)
    order = sorted(names, key=lambda number: (number in reading.ignore_label, number in reading.labels))
    for number in order:
        values[segments[..., list(names).index(number)] > 0] = number
    return values


def _listed(names: dict[int, str]) -> str:
    return ", ".join(f"{number} {name!r}" for number, name in names.items())
