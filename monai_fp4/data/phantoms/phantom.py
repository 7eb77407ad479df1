"""A synthetic brain MRI data set, so that everything runs before any real data is at hand.

Twenty-four heads of 10 to 14 slices, 128 x 128, three channels, written in the layout of the LGG set. They share
what makes the real one hard: intensities that vary from patient to patient, a bias field, noise, a bright scalp,
bright spots that are no tumour, lesions that are faint, dark or small, a sequence that is missing, and two patients
without any tumour.

The files are the same, bit for bit, on every machine, because ``data_manifests/phantom.json`` holds their hashes:
:mod:`monai_fp4.data.phantoms.drawing` says how, and :mod:`monai_fp4.data.phantoms.tiff` why no image library writes
them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from monai_fp4.data.phantoms import drawing
from monai_fp4.data.phantoms.anatomy import Head, Lesion, draw_head
from monai_fp4.data.phantoms.generated import institution_of, patient_ids, write_patients
from monai_fp4.data.phantoms.tiff import encode_tiff

__all__ = ["PATIENTS", "TEST_PATIENTS", "phantom_patients", "write_phantom"]

PATIENTS = 24
"""How many patients the set has."""
SIZE = 128

# FLAIR contrast of the tumour against white matter, patient by patient: plain, faint, dark. 0: a head without tumour.
_CONTRASTS = (0.34, 0.16, 0.26, 0.09, 0.38, -0.16, 0.22, 0.0, 0.30, 0.12, 0.20, 0.28)
_WITHOUT_POST_CONTRAST = (5, 14)  # FLAIR in place of the sequence that is missing, as in ten patients of the LGG set


def phantom_patients(count: int = PATIENTS) -> tuple[str, ...]:
    """Ids of the patients, ``PHANTOM_<institution>_<number>``."""
    return patient_ids("PHANTOM_N", count)


TEST_PATIENTS = phantom_patients()[-4:]
"""The patients of the test split."""


def write_phantom(folder: str | Path, *, patients: int = PATIENTS, size: int = SIZE, seed: int = 0) -> Path:
    """Write the phantom's files; the defaults give what the shipped manifest names.

    Args:
        folder: a folder that does not exist, or is empty; it is filled whole or not at all.
        patients: how many heads.
        size: pixels along each side of a slice.
        seed: other heads for another seed.

    Returns:
        ``folder``.

    Raises:
        DataError: there is something else in the folder, or it cannot be written.
    """

    def write(place: Path, index: int) -> None:
        _write_patient(place, index, size, seed)

    return write_patients(folder, "phantom", phantom_patients(patients), write)


def _write_patient(folder: Path, index: int, size: int, seed: int) -> None:
    image, mask = make_patient(index, size=size, seed=seed)
    for number in range(image.shape[-1]):
        stem = f"{folder.name}_{number + 1}"
        # Pictures are [rows, columns, RGB].
        (folder / f"{stem}.tif").write_bytes(encode_tiff(np.moveaxis(image[..., number], 0, -1)))
        (folder / f"{stem}_mask.tif").write_bytes(encode_tiff(mask[..., number] * np.uint8(255)))


def make_patient(index: int, *, size: int = SIZE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw one patient: image uint8 ``[3, H, W, D]`` and mask uint8 ``[H, W, D]`` of 0 and 1."""
    random = np.random.RandomState(7919 * seed + index)
    institution = institution_of(index)
    contrast = _CONTRASTS[index % len(_CONTRASTS)]

    uniform = partial(drawing.uniform, random)

    head = Head(
        size=size,
        slices=10 + int(5 * random.random_sample()),
        width=uniform(0.60, 0.74),
        length=uniform(0.80, 0.92),
        shift=(uniform(-0.06, 0.06), uniform(-0.05, 0.05)),
        tilt=uniform(-0.08, 0.08),
        ventricles=uniform(0.8, 1.35),
        # Scanners differ more than heads do.
        gains=tuple(uniform(70, 150) if institution in "AC" else uniform(130, 235) for _ in range(3)),
        curves=tuple(uniform(0.65, 1.5) for _ in range(3)),
        bias=uniform(0.10, 0.35),
        noise=uniform(1.5, 4.0) if institution != "B" else uniform(3.0, 7.0),
        caps=uniform(0.0, 0.22),
        spots=int(7 * random.random_sample()),
        post_contrast=index not in _WITHOUT_POST_CONTRAST,
    )
    lesions: list[Lesion] = []
    if contrast:
        for _ in range(1 if random.random_sample() < 0.75 else 2):
            side = 1.0 if random.random_sample() < 0.5 else -1.0
            lesions.append(
                Lesion(
                    centre=(side * uniform(0.14, 0.40), uniform(-0.46, 0.46), uniform(-0.25, 0.45)),
                    radius=uniform(0.11, 0.32),
                    stretch=(uniform(0.75, 1.3), uniform(0.75, 1.3), uniform(0.9, 1.5)),
                    contrast=contrast,
                    softness=uniform(0.15, 0.55),
                    ragged=uniform(0.25, 0.6),
                    rim=uniform(0.2, 0.45) if random.random_sample() < 0.35 else 0.0,
                    core=uniform(0.3, 0.9) if random.random_sample() < 0.3 else 0.0,
                )
            )
    return draw_head(head, lesions, random)
