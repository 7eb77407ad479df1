"""A synthetic chest CT data set with lung nodules, so that a study can be run on a second task.

Thirty chests of 12 to 16 slices, 128 x 128, in Hounsfield units, one NIfTI volume and one mask each: all that the
phantom is not. One channel in place of three, a scale with a unit in place of grey values, a slice distance of twice
the pixels, and lesions of 4 to 12 pixels, three voxels in a thousand. Vessels, airways, chalk and thickened pleura
look like nodules; some nodules are as faint as ground glass; every institution's scanner has its own noise and
sharpness; and five patients have no nodule at all.

It is computed and stands for no real CT. The files are the same, bit for bit, on every machine, because
``data_manifests/nodules.json`` holds their hashes; :mod:`monai_fp4.data.phantoms.drawing` says how.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from monai_fp4.data.phantoms.chest import Chest, Nodule
from monai_fp4.data.phantoms.chest_wall import draw_body
from monai_fp4.data.phantoms.drawing import Field, noise, uniform
from monai_fp4.data.phantoms.generated import institution_of, patient_ids, write_patients
from monai_fp4.data.phantoms.lung import draw_lungs
from monai_fp4.data.phantoms.nifti import encode_nifti

__all__ = ["PATIENTS", "TEST_PATIENTS", "make_nodules_patient", "nodules_groups", "nodules_patients", "write_nodules"]

PATIENTS = 30
"""How many patients the set has."""
SIZE = 128
SPACING = (2.7, 2.7, 5.0)

# Noise of each institution's scanner in Hounsfield units, how much its kernel blurs, and whether it pads the corners.
_SCANNERS = {"A": (22.0, 0.20, True), "B": (34.0, 0.05, False), "C": (14.0, 0.45, True), "D": (45.0, 0.10, False)}
_WITHOUT_NODULE = (3, 10, 17, 23, 28)


def nodules_patients(count: int = PATIENTS) -> tuple[str, ...]:
    """Ids of the patients, ``CHEST_<institution>_<number>``."""
    return patient_ids("CHEST_H", count)


def nodules_groups(count: int = PATIENTS) -> dict[str, str]:
    """Institution by patient: the NIfTI layout has no place for it."""
    return {patient: patient.split("_")[1] for patient in nodules_patients(count)}


TEST_PATIENTS = nodules_patients()[-6:]
"""The patients of the test split."""


def write_nodules(folder: str | Path, *, patients: int = PATIENTS, size: int = SIZE, seed: int = 0) -> Path:
    """Write the nodules' files; the defaults give what the shipped manifest names.

    Args:
        folder: a folder that does not exist, or is empty; it is filled whole or not at all.
        patients: how many chests.
        size: pixels along each side of a slice; the chest is as wide whatever the size.
        seed: other chests for another seed.

    Returns:
        ``folder``.

    Raises:
        DataError: there is something else in the folder, or it cannot be written.
    """

    def write(place: Path, index: int) -> None:
        image, mask = make_nodules_patient(index, size=size, seed=seed)
        spacing = (SPACING[0] * SIZE / size, SPACING[1] * SIZE / size, SPACING[2])
        (place / "ct.nii").write_bytes(encode_nifti(image, spacing))
        (place / "mask.nii").write_bytes(encode_nifti(mask, spacing))

    return write_patients(folder, "nodules", nodules_patients(patients), write)


def make_nodules_patient(index: int, *, size: int = SIZE, seed: int = 0) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw one patient: scan int16 ``[H, W, D]`` in Hounsfield units and mask uint8 ``[H, W, D]`` of 0 and 1."""
    random = RandomState(104729 + 7919 * seed + index)
    chest = _draw_chest(index, size, random)
    nodules = [] if index in _WITHOUT_NODULE else [_draw_nodule(random) for _ in range(3 + int(6 * _unit(random)))]
    axes = chest.axes
    hu, lung, cage = draw_body(chest, axes, random)
    hu, mask = draw_lungs(hu, lung, cage, chest, nodules, axes, random)
    return _scan(hu, chest, random), mask.astype(np.uint8)


def _unit(random: RandomState) -> float:
    return float(random.random_sample())


def _draw_chest(index: int, size: int, random: RandomState) -> Chest:
    spread, smooth, padded = _SCANNERS[institution_of(index)]
    return Chest(
        size=size,
        slices=12 + int(5 * _unit(random)),
        pixel=SPACING[0] * SIZE / size,
        spacing=SPACING[2],
        width=uniform(random, 0.66, 0.74),
        depth=uniform(random, 0.47, 0.55),
        fat=uniform(random, 0.01, 0.08),
        shift=(uniform(random, -0.04, 0.04), uniform(random, -0.10, -0.02)),
        lung=uniform(random, -885.0, -800.0),
        emphysema=uniform(random, -0.4, 0.5),
        haze=uniform(random, 20.0, 90.0),
        noise=spread * uniform(random, 0.8, 1.25),
        smooth=smooth,
        padded=padded,
        calcified=int(3.0 * _unit(random)),
        plaques=int(3.0 * _unit(random)),
    )


def _draw_nodule(random: RandomState) -> Nodule:
    kind = _unit(random)
    radius = uniform(random, 0.038, 0.084)
    glass = kind > 0.68
    return Nodule(
        # Ground glass is larger, as it would hardly be seen otherwise.
        radius=max(radius, 0.055) if glass else radius,
        stretch=(uniform(random, 0.85, 1.2), uniform(random, 0.85, 1.2), uniform(random, 0.9, 1.2)),
        value=uniform(random, -600.0, -380.0) if glass else uniform(random, -20.0, 60.0),
        core=uniform(random, -100.0, 40.0) if kind > 0.85 else None,
        ragged=uniform(random, 0.1, 0.45),
        pleural=_unit(random) < 0.2 and not glass,
    )


def _scan(hu: Field, chest: Chest, random: RandomState) -> NDArray[np.int16]:
    """Noise, the kernel's blur, whole numbers between -1024 and 3071, and what lies outside of the scanner's circle."""
    noisy = _blur(hu + chest.noise * noise(random, hu.shape), chest.smooth)
    values = np.clip(np.floor(noisy + 0.5), -1024.0, 3071.0)
    if chest.padded:
        place = (2.0 * np.arange(chest.size) + 1.0 - chest.size) / chest.size
        outside = place[:, None] * place[:, None] + place[None, :] * place[None, :] > 1.0
        values = np.where(outside[:, :, None], -1024.0, values)
    return values.astype(np.int16)


def _blur(values: Field, share: float) -> Field:
    """Give each voxel a share of the mean of its two neighbours, along rows and then along columns."""
    for axis in (0, 1):
        last = values.shape[axis] - 1
        before = np.take(values, np.maximum(np.arange(last + 1) - 1, 0), axis=axis)
        after = np.take(values, np.minimum(np.arange(last + 1) + 1, last), axis=axis)
        values = (1.0 - share) * values + share * (0.5 * (before + after))
    return values
