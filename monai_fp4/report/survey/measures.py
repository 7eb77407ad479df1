"""What is measured of one patient, while its files are in memory and never again.

Every number comes from the readers and rules that a training uses: the mask is the one that it would learn from, the
foreground the one that it would normalise by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_fp4.data.examination import Examined, examine_raw
from monai_fp4.data.messages import without_paths
from monai_fp4.data.patients import check_channels, read_raw
from monai_fp4.data.readers import Place
from monai_fp4.data.records import Patient, Reading
from monai_fp4.data.transforms import NormalizeForegroundd, percentiles, resize
from monai_fp4.errors import DataError
from monai_fp4.inference.results import lesions_of
from monai_fp4.report.survey.copies import Prints, prints_of
from monai_fp4.report.survey.placement import Fit, fit_of
from monai_fp4.visualize import fitted, grey_slice, mask_thumbnail

__all__ = ["PERCENTS", "Intensities", "Measured", "Thumbnail", "measure"]

PERCENTS = (0, 1, 50, 99, 100)
"""Of all voxels of a channel."""
_THUMBNAIL = 160


@dataclass(frozen=True)
class Intensities:
    """One channel of one patient.

    Attributes:
        percentiles: at :data:`PERCENTS`, of all voxels.
        mean: of the foreground, as :class:`monai_fp4.data.NormalizeForegroundd` finds it.
        spread: its standard deviation.
    """

    percentiles: tuple[float, ...]
    mean: float
    spread: float


@dataclass(frozen=True)
class Thumbnail:
    """The slice with the most lesion, or the middle one, with the mask's outline.

    Attributes:
        content: a WebP picture.
        width: in pixels.
        height: in pixels.
        slice: its number, from 0.
    """

    content: bytes = field(repr=False)
    width: int
    height: int
    slice: int


@dataclass(frozen=True)
class Measured:
    """One patient.

    Attributes:
        patient: its entry in the manifest.
        examined: values of the mask, voxels and slices of the lesion, and what is odd about the channels.
        shape: rows, columns, slices.
        place: spacing and plane; ``None`` where the files do not say.
        intensities: of each channel.
        alike: numbers of channels that hold the same values, and of others that do.
        lesions: voxels of each lesion, the largest first.
        thumbnail: a picture of it.
        prints: what it is recognised by.
        fit: how well the mask fits in each place; ``None`` without a lesion.
    """

    patient: Patient
    examined: Examined
    shape: tuple[int, int, int]
    place: Place | None
    intensities: tuple[Intensities, ...]
    alike: tuple[tuple[int, ...], ...]
    lesions: tuple[int, ...]
    thumbnail: Thumbnail
    prints: Prints
    fit: Fit | None

    @property
    def voxels(self) -> int:
        """Of the scan."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def lesion_ml(self) -> float | None:
        """Volume of the lesions in millilitres; ``None`` where the files do not say how large a voxel is."""
        return None if self.place is None else self.examined.tumour_voxels * self.place.voxel / 1000


def measure(record: Mapping[str, Any], patient: Patient) -> Measured:
    """Read a patient and measure it.

    Args:
        record: of :func:`monai_fp4.data.datalist.patient_record`.
        patient: its entry in the manifest.

    Raises:
        DataError: what :func:`monai_fp4.data.patients.read_patient` refuses, or another number of lesion voxels than
            the manifest names; files are named by number.
    """
    reading = Reading.from_json(record["reading"])
    with without_paths(patient.id, record["images"]):
        raw = read_raw(record)
        check_channels(record, len(raw.image))
        examined = examine_raw(raw, reading)
    if patient.tumour_voxels not in (None, examined.tumour_voxels):
        raise DataError(
            f"expected {patient.tumour_voxels} lesion voxels in patient {patient.id!r}, found "
            f"{examined.tumour_voxels}; build the manifest again"
        )
    mask = raw.volume(reading).mask[0] == 1
    image = raw.image
    return Measured(
        patient=patient,
        examined=examined,
        shape=mask.shape,
        place=raw.place,
        intensities=_intensities(image),
        alike=_alike(image),
        lesions=tuple(lesions_of(np.ascontiguousarray(_cropped(mask)).view(np.uint8))),
        thumbnail=_thumbnail(image, mask, raw.place),
        prints=prints_of(image),
        fit=fit_of(image, mask),
    )


def _cropped(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The box of a mask that holds all of its lesions."""
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        if len(inside):
            mask = mask.take(np.arange(inside[0], inside[-1] + 1), axis)
    return mask


def _alike(image: NDArray[np.float32]) -> tuple[tuple[int, ...], ...]:
    """Channels that are one another's copies; those of a single value are not."""
    groups: list[list[int]] = []
    for number, channel in enumerate(image):
        same = next((group for group in groups if np.array_equal(image[group[0]], channel)), None)
        if same is not None:
            same.append(number)
        elif channel.min() < channel.max():
            groups.append([number])
    return tuple(tuple(group) for group in groups if len(group) > 1)


def _intensities(image: NDArray[np.float32]) -> tuple[Intensities, ...]:
    scales = NormalizeForegroundd("image").scales(torch.from_numpy(image))
    return tuple(
        Intensities(tuple(map(float, percentiles(channel, list(PERCENTS)))), scale.mean, scale.spread)
        for channel, scale in zip(image, scales, strict=True)
    )


def _thumbnail(image: NDArray[np.float32], mask: NDArray[np.bool_], place: Place | None) -> Thumbnail:
    height, width, depth = mask.shape
    amounts = mask.sum((0, 1))
    number = int(amounts.argmax()) if amounts.any() else depth // 2
    size = fitted((height, width), (1.0, 1.0) if place is None else place.spacing[:2], _THUMBNAIL)
    plane = resize(torch.from_numpy(np.ascontiguousarray(image[..., number])), size)
    share = resize(torch.from_numpy(np.ascontiguousarray(mask[..., number])).float()[None], size)[0]
    outlined = share >= min(0.5, float(share.max())) if share.any() else share > 0  # the smallest lesion shows as well
    grey = grey_slice(plane[..., None], 0, (*size, 1))
    return Thumbnail(mask_thumbnail(grey, outlined.numpy()), size[1], size[0], number)
